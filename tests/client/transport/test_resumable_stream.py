"""A stream over several calls, without a network: a deterministic server whose stream is cut at every place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, cast

import pytest

from gradellm.errors import UnimplementedError
from gradellm.models import Event
from gradellm.transport import calls
from gradellm.transport.resumable_stream import ResumableStream
from gradellm.v1 import explainer_pb2 as pb

SEED, LENGTH = 11, 3
PROMPT_TOKENS = [pb.PromptToken(id=1), pb.PromptToken(id=2)]


def started(seed: int = SEED) -> pb.Started:
    sampling = pb.Sampling(max_new_tokens=LENGTH, seed=seed)
    return pb.Started(prompt_tokens=PROMPT_TOKENS, provenance=pb.Provenance(sampling=sampling))


def generated(request: pb.GenerateRequest, lag: int) -> Iterator[pb.GenerateResponse]:
    """A server's stream: token t is a function of (seed, t), and rows follow their tokens by `lag` tokens."""
    forced = len(request.forced_ids)
    seed = request.seed if request.HasField("seed") else SEED
    assert not forced or list(request.forced_ids) == [100 * seed + t for t in range(forced)]
    beginning = started(seed)
    if request.attribution.HasField("tokens"):
        beginning.provenance.attribution.tokens.CopyFrom(request.attribution.tokens)
    yield pb.GenerateResponse(started=beginning)
    yield pb.GenerateResponse(prompt_progress=pb.Progress(done=1.0))
    length = request.max_new_tokens or LENGTH
    first = request.first_attribution if request.HasField("first_attribution") else forced
    explained = list(range(first, length)) if request.HasField("attribution") else []
    if request.attribution.HasField("tokens"):
        explained = [t for t in explained if t in request.attribution.tokens.indexes]
    num_rows = len(explained)
    for t in range(forced, length):
        yield pb.GenerateResponse(token=pb.Token(index=t, id=100 * seed + t))
        while explained and explained[0] <= t - lag:
            yield row(explained.pop(0))
    yield from map(row, explained)
    usage = pb.Usage(completion_tokens=length, attributed_tokens=num_rows)
    yield pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_MAX_NEW_TOKENS, usage=usage))


def row(index: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(attribution=pb.Attribution(token_index=index, scores=[index, 1.0]))


def received(stream: ResumableStream, cuts: Iterator[int | None], lag: int = 0) -> list[Event]:
    """The events of a stream whose n-th call is cut after as many responses as the n-th cut says."""
    events: list[Event] = []
    for cut in cuts:
        responses = generated(stream.request, lag)  # type: ignore[arg-type]
        for response in itertools.islice(responses, cut):
            event = stream.take(response, "a:1")
            if event is not None:
                events.append(event)
        if stream.is_over:
            return events
    raise AssertionError("the last call is not cut")


def in_order(events: list[Event]) -> list[Event]:
    """Without progress, rows at the end: after a cut they may arrive at other times."""
    rows = [event for event in events if event.attribution is not None]
    return [event for event in events if event.attribution is None and event.prompt_progress is None] + rows


KEYWORDS: dict[str, dict[str, Any]] = {
    "default": {},
    "without attribution": {"attribution": None},
    "a seed": {"seed": 5},
    "forced": {"forced_ids": [1100, 1101], "first_attribution": 1},
    "forced, explained from there": {"forced_ids": [1100]},
    "some tokens": {"tokens": [0, 2]},
    "some tokens, forced": {"tokens": [0, 1], "forced_ids": [1100, 1101], "first_attribution": 1},
}


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("name", KEYWORDS)
def test_a_generation_cut_at_any_two_places_is_complete(name: str, lag: int) -> None:
    def stream() -> ResumableStream:
        return ResumableStream(calls.generate("Once", KEYWORDS[name]))  # type: ignore[arg-type]

    undisturbed = received(stream(), iter([None]), lag)
    count = len(undisturbed)
    for cuts in itertools.product(range(count), repeat=2):
        assert in_order(received(stream(), iter([*cuts, None]), lag)) == in_order(undisturbed), cuts


def test_the_callers_request_is_sent_until_the_stream_has_begun() -> None:
    call = calls.generate("Once", {"temperature": 1.0})
    stream = ResumableStream(call)
    assert stream.request is stream.request is call.request
    beginning = started()
    beginning.provenance.sampling.temperature = 1.0
    stream.take(pb.GenerateResponse(started=beginning), "a:1")
    resumed: Any = stream.request
    assert (resumed.seed, resumed.max_new_tokens, resumed.temperature) == (SEED, LENGTH, 1.0)
    assert not call.request.HasField("seed")


def test_rows_that_lag_are_asked_for_again() -> None:
    """Two tokens and one row arrived: the second token's row is explained by the next server."""
    stream = ResumableStream(calls.generate("Once", {}))
    for response in itertools.islice(generated(stream.request, 1), 5):  # type: ignore[arg-type]
        stream.take(response, "a:1")
    resumed: Any = stream.request
    assert list(resumed.forced_ids) == [1100, 1101]
    assert resumed.first_attribution == 1


def test_the_number_of_explained_tokens_is_that_of_all_calls() -> None:
    def attributed(cuts: list[int | None], lag: int) -> int:
        (*_, last) = received(ResumableStream(calls.generate("Once", {})), iter(cuts), lag)
        assert last.finished is not None
        return last.finished.usage.attributed_tokens

    assert attributed([None], 0) == attributed([4, None], 0) == attributed([5, 3, None], 1) == LENGTH


def evaluation(*, seed: int | None = None, **keywords: Any) -> tuple[ResumableStream, Any]:
    call = calls.evaluate("Once", keywords)  # type: ignore[arg-type]
    stream = ResumableStream(call)
    stream.take(pb.EvaluateResponse(started=started(SEED if seed is None else seed)), "a:1")
    return stream, call.request


def test_an_evaluation_repeats_the_completion_that_the_server_chose() -> None:
    stream, original = evaluation(temperature=1.0)
    request: Any = stream.request
    assert (request.generation.seed, request.generation.temperature) == (SEED, 1.0)
    assert not original.generation.HasField("seed")
    stream, original = evaluation(completion=" upon")
    assert stream.request == original


def test_an_attribution_is_repeated_as_it_was() -> None:
    call = calls.attribute("Once", {"completion": " upon"})
    stream = ResumableStream(call)
    stream.take(pb.AttributeResponse(started=started()), "a:1")
    assert stream.request == call.request


def resolved(**switches: Any) -> pb.Started:
    """A beginning with the switches that the server uses."""
    message = started()
    message.provenance.attribution.CopyFrom(pb.AttributionOptions(method="grad_ellm", **switches))
    return message


def test_a_resumption_asks_for_the_switches_of_the_first_server() -> None:
    """Another server may have another default."""
    switches: dict[str, Any] = {"loosening": pb.LOOSENING_NONE, "sink": pb.SINK_EXCLUDE, "layers": pb.Layers(last=2)}
    unset = pb.AttributionOptions()
    requests: list[tuple[calls.Call[Any], Any]] = [
        (calls.generate("Once", {"attribution": None, "method": None}), pb.GenerateResponse),
        (calls.generate("Once", {}), pb.GenerateResponse),
        (calls.attribute("Once", {"completion": " upon"}), pb.AttributeResponse),
    ]
    for call, response in requests:
        stream, request = ResumableStream(call), cast("Any", call.request)
        beginning = resolved(preset=pb.PRESET_HEAD_ABS_NO_SINK, **switches)
        if not request.HasField("attribution") and response is pb.GenerateResponse:
            beginning.provenance.ClearField("attribution")
        stream.take(response(started=beginning), "a:1")
        resumed: Any = stream.request
        has_attribution = beginning.provenance.HasField("attribution")
        # The switches alone: the next server may be older than the preset.
        assert resumed.attribution == (resolved(**switches).provenance.attribution if has_attribution else unset)
        assert resumed.HasField("attribution") == has_attribution
        assert request.attribution != resumed.attribution or not resumed.HasField("attribution")


def test_an_evaluation_asks_for_the_methods_of_the_first_server() -> None:
    """By their names and switches; the server chose the first one."""
    stream = ResumableStream(calls.evaluate("Once", {"completion": " upon"}))
    request: Any = stream.request
    assert [method.name for method in request.evaluation.methods] == ["", "random"]
    options = pb.AttributionOptions(method="grad_ellm", preset=pb.PRESET_KNOCKOUT, magnitude=pb.MAGNITUDE_KNOCKOUT)
    random = pb.AttributionOptions(method="random", seed=0)
    beginning = started()
    beginning.provenance.evaluation.methods.add(name="knockout", attribution=options)
    beginning.provenance.evaluation.methods.add(name="random", attribution=random)
    stream.take(pb.EvaluateResponse(started=beginning), "a:1")
    repeated: Any = stream.request
    options.ClearField("preset")
    assert list(repeated.evaluation.methods) == [
        pb.EvaluatedMethod(name="knockout", attribution=options), pb.EvaluatedMethod(name="random", attribution=random)
    ]  # fmt: skip
    assert list(request.evaluation.methods) != list(repeated.evaluation.methods)


def test_a_server_that_is_older_than_a_switch_is_named() -> None:
    stream = ResumableStream(calls.generate("Once", {"loosening": "none", "sink": "exclude"}))
    with pytest.raises(UnimplementedError, match="a:1 is older than the switch sink"):
        stream.take(pb.GenerateResponse(started=resolved(loosening=pb.LOOSENING_NONE)), "a:1")
    stream = ResumableStream(calls.generate("Once", {"loosening": "none", "delivery": "chunked"}))
    assert stream.take(pb.GenerateResponse(started=resolved(loosening=pb.LOOSENING_NONE)), "a:1") is not None


def test_a_stream_is_not_continued_by_a_server_that_is_older_than_its_switches() -> None:
    """The first server's default has a switch that the second one does not know: its rows would be other ones."""
    newer: dict[str, Any] = {"loosening": pb.LOOSENING_NONE, "gradient": pb.GRADIENT_RELEVANCE}
    stream = ResumableStream(calls.generate("Once", {}))
    assert stream.take(pb.GenerateResponse(started=resolved(**newer)), "a:1") is not None
    assert stream.request is not None
    with pytest.raises(UnimplementedError, match="b:2 is older than the switch gradient"):
        stream.take(pb.GenerateResponse(started=resolved(loosening=pb.LOOSENING_NONE)), "b:2")
    evaluation = ResumableStream(calls.evaluate("Once", {"completion": " upon"}))
    beginning = started()
    beginning.provenance.evaluation.methods.add(name="x", attribution=pb.AttributionOptions(**newer))
    assert evaluation.take(pb.EvaluateResponse(started=beginning), "a:1") is not None
    assert evaluation.request is not None
    beginning.provenance.evaluation.methods[0].attribution.ClearField("gradient")
    with pytest.raises(UnimplementedError, match="b:2 is older than the switch gradient"):
        evaluation.take(pb.EvaluateResponse(started=beginning), "b:2")


def test_a_server_that_would_explain_every_token_is_named() -> None:
    """One that is older than the field, which it does not echo."""
    selections: tuple[Any, ...] = ([0, 4], 3, "pon")
    for tokens in selections:
        stream = ResumableStream(calls.attribute("Once", {"completion": " upon", "tokens": tokens}))
        with pytest.raises(UnimplementedError, match="a:1 is older than the field tokens, and would ignore it"):
            stream.take(pb.AttributeResponse(started=resolved()), "a:1")
    stream = ResumableStream(calls.attribute("Once", {"completion": " upon", "tokens": "pon"}))
    beginning = resolved(tokens=pb.TokenSelection(indexes=[1]))
    assert stream.take(pb.AttributeResponse(started=beginning), "a:1") is not None
    resumed: Any = stream.request
    assert resumed.attribution.tokens == pb.TokenSelection(indexes=[1])  # as the first server resolved the text's span


def test_results_of_an_evaluation_are_not_repeated() -> None:
    """Items of an unknown metric are told apart from those of known ones."""
    stream, _ = evaluation()
    items = [pb.EvaluationItem(step=step, name=name, metric=metric)  # type: ignore[arg-type]
             for step in (0, 5) for name in ("a", "b") for metric in (1, 2, 99)]  # fmt: skip
    responses = [
        *(pb.EvaluateResponse(item=item) for item in items),
        pb.EvaluateResponse(summary=pb.EvaluationSummary()),
    ]
    assert [stream.take(response, "a:1") is not None for response in responses * 2] == [True] * 13 + [False] * 13


def test_a_call_that_ends_too_early_is_truncated() -> None:
    stream = ResumableStream(calls.generate("Once", {}))
    assert stream.truncated("a:1") is None  # a stream of unknown events alone
    stream.take(pb.GenerateResponse(started=started()), "a:1")
    assert "the stream from a:1 ended before it was finished" in str(stream.truncated("a:1"))
    stream.take(pb.GenerateResponse(finished=pb.Finished()), "a:1")
    assert stream.truncated("a:1") is None


def test_events_of_an_unknown_kind_are_passed_over() -> None:
    stream = ResumableStream(calls.generate("Once", {}))
    assert stream.take(pb.GenerateResponse(), "a:1") is None
    assert not stream.is_over


def test_a_server_that_is_older_than_a_setting_of_sampling_is_not_asked() -> None:
    stream = ResumableStream(calls.generate("Once", {"min_p": 0.5, "stop": "x"}))
    assert stream.request
    with pytest.raises(UnimplementedError, match="the server at a:1 is older than the field min_p"):
        stream.take(pb.GenerateResponse(started=started()), "a:1")


def test_a_server_that_is_older_than_structured_output_is_named() -> None:
    stream = ResumableStream(calls.generate("Once", {"attribution": None, "regex": "a"}))
    with pytest.raises(UnimplementedError, match="a:1 is older than structured output"):
        stream.take(pb.GenerateResponse(started=started()), "a:1")
    newer = started()
    newer.provenance.structured_output.regex = "a"
    assert stream.take(pb.GenerateResponse(started=newer), "a:1") is not None
