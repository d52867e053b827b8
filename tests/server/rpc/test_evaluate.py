"""Evaluate over the wire: order of messages, refusals, scheduling during generation, and disconnects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine.faithfulness.metrics.curves import PIS
from gradellm_engine.faithfulness.perturbation_runner import PerturbationRunner
from server.conftest import RunningServer
from server.rpc.test_bad_input import refusal
from server.test_disconnects import until

PROMPT = pb.Input(prompt="Once upon a time")
OPTIONS = pb.AttributionOptions
RANDOM = pb.EvaluatedMethod(attribution=OPTIONS(method="random"))
PAPER = pb.EvaluatedMethod(attribution=OPTIONS(method="grad_ellm"))
QUICK: dict[str, Any] = {"pis": [0.25, 0.5, 0.75], "samples": 2}


def evaluation(**options: Any) -> pb.EvaluationOptions:
    return pb.EvaluationOptions(**{"methods": [PAPER, RANDOM], **QUICK, **options})


def request(completion: str | None = "abcdefgh", prompt_input: pb.Input = PROMPT, **options: Any) -> pb.EvaluateRequest:
    return pb.EvaluateRequest(input=prompt_input, completion=completion, evaluation=evaluation(**options))


def evaluate(server: RunningServer, message: pb.EvaluateRequest) -> list[pb.EvaluateResponse]:
    return list(server.stub.Evaluate(message))


def items(events: list[pb.EvaluateResponse]) -> list[pb.EvaluationItem]:
    return [event.item for event in events if event.HasField("item")]


def test_streams_started_items_summary_finished(server: RunningServer) -> None:
    metrics = [number for number in pb.Metric.values() if number not in (0, pb.METRIC_AUPRC, pb.METRIC_TOKEN_F1)]
    events = evaluate(server, request(metrics=metrics))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["summary", "finished"]
    assert kinds.count("token") == 8
    done = [event.progress.done for event in events if event.HasField("progress")]
    assert done == sorted(done)
    assert 0 < done[0] <= done[-1] <= 1
    found = items(events)
    assert {(i.step, i.name, i.metric) for i in found} == {
        (step, name, metric) for step in (0, 5) for name in ("grad_ellm", "random") for metric in metrics
    }
    for item in found:
        assert math.isfinite(item.value)
        points = len(QUICK["pis"]) if item.metric in (pb.METRIC_PI_SOFT_NS, pb.METRIC_PI_SOFT_NC) else 1
        assert len(item.points) == (points if item.metric <= pb.METRIC_SOFT_NC else 0)
        assert all(len(point.samples) == 2 for point in item.points)
        assert len(item.flips) == (20 if item.metric in (pb.METRIC_INSERTION, pb.METRIC_DELETION) else 0)
        assert item.HasField("expected_tokens") == (item.metric in (pb.METRIC_SOFT_NS, pb.METRIC_SOFT_NC))
    summary = events[-2].summary
    assert list(summary.steps) == [0, 5]
    assert summary.sequences_run < summary.sequences_asked
    for metric_summary in summary.metrics:
        assert metric_summary.HasField("difference_from_random") == (metric_summary.name != "random")
        assert metric_summary.interval.HasField("low") == (metric_summary.metric <= pb.METRIC_SOFT_NC)
        mean = sum(i.value for i in found if (i.name, i.metric) == (metric_summary.name, metric_summary.metric)) / 2
        assert metric_summary.interval.mean == pytest.approx(mean, abs=1e-12)


def test_provenance_reproduces_the_evaluation(server: RunningServer) -> None:
    events = evaluate(server, request(metrics=[pb.METRIC_PI_SOFT_NS], seed=7, stride=3, offset=1))
    resolved = events[0].started.provenance.evaluation
    assert (resolved.seed, resolved.stride, resolved.offset, resolved.perturb) == (7, 3, 1, pb.PERTURB_USER)
    assert resolved.methods[1].attribution.seed == 7  # random takes the evaluation's seed
    again = pb.EvaluateRequest(input=PROMPT, completion="abcdefgh", evaluation=resolved)
    assert items(evaluate(server, again)) == items(events)


def test_defaults_are_those_of_the_method(server: RunningServer) -> None:
    message = pb.EvaluateRequest(input=PROMPT, completion="a", evaluation=pb.EvaluationOptions(methods=[RANDOM]))
    events = evaluate(server, message)
    resolved = events[0].started.provenance.evaluation
    assert tuple(resolved.pis) == PIS
    assert (resolved.samples, resolved.stride, resolved.seed) == (3, 5, 0)
    assert list(resolved.metrics) == [pb.METRIC_PI_SOFT_NS, pb.METRIC_PI_SOFT_NC]


def test_given_scores_are_evaluated_like_a_methods_own(server: RunningServer) -> None:
    scores = [
        event.attribution
        for event in server.stub.Attribute(
            pb.AttributeRequest(input=PROMPT, completion="abcdefgh", attribution=PAPER.attribution)
        )
        if event.HasField("attribution")
    ]
    rows = [pb.ScoreRow(step=row.token_index, scores=row.scores) for row in scores]
    found = items(evaluate(server, request(scores=[pb.GivenScores(name="mine", rows=rows)])))
    values = {(i.name, i.step, i.metric): i.value for i in found}
    for (name, step, metric), value in values.items():
        if name == "mine":
            assert value == pytest.approx(values["grad_ellm", step, metric], abs=1e-6)


def test_a_completion_can_be_generated_first(server: RunningServer) -> None:
    generation = pb.GenerationOptions(max_new_tokens=6, temperature=1.0, seed=3)
    message = pb.EvaluateRequest(input=PROMPT, generation=generation, evaluation=evaluation())
    events = evaluate(server, message)
    ids = [event.token.id for event in events if event.HasField("token")]
    same = server.stub.Generate(pb.GenerateRequest(input=PROMPT, max_new_tokens=6, temperature=1.0, seed=3))
    assert ids == [event.token.id for event in same if event.HasField("token")]
    assert list(events[-2].summary.steps) == [0, 5]


def test_labels_attribute_the_most_likely_one(server: RunningServer) -> None:
    labels = ["a", "b", "c"]
    events = evaluate(server, pb.EvaluateRequest(input=PROMPT, labels=labels, evaluation=evaluation()))
    (first,) = [
        e.token
        for e in server.stub.Generate(pb.GenerateRequest(input=PROMPT, max_new_tokens=1, num_alternatives=20))
        if e.HasField("token")
    ]
    summary = events[-2].summary
    assert list(summary.steps) == [0]
    ranked = [alternative.text for alternative in first.alternatives]
    if any(label in ranked for label in labels):
        assert labels[summary.label_index] == next(text for text in ranked if text in labels)
    assert summary.answer_outside_labels == (ranked[0] not in labels)


# A request, the field that the error names, and a part of its message.
CASES: dict[str, tuple[pb.EvaluateRequest, str, str]] = {
    "nothing to evaluate": (request(methods=[]), "methods", "between 1 and 64"),
    "a method twice": (request(methods=[RANDOM, RANDOM]), "methods", "'random' is given twice"),
    "a method that is not there": (
        request(methods=[pb.EvaluatedMethod(attribution=OPTIONS(method="magic"))]), "attribution.method", "'magic'"),
    "a switch of another method": (
        request(methods=[pb.EvaluatedMethod(attribution=OPTIONS(method="saliency", steps=3))]),
        "attribution.steps", "not a switch of saliency"),
    "a contrast": (
        request(methods=[pb.EvaluatedMethod(attribution=OPTIONS(contrast=pb.Contrast(runner_up=True)))]),
        "attribution.contrast", "no meaning"),
    "a resolution": (
        request(methods=[pb.EvaluatedMethod(attribution=OPTIONS(resolution=pb.RESOLUTION_WORD))]),
        "attribution.resolution", "no meaning"),
    "tokens": (
        request(methods=[pb.EvaluatedMethod(attribution=OPTIONS(tokens=pb.TokenSelection(indexes=[0])))]),
        "attribution.tokens", "no meaning"),
    "pi of 0": (request(pis=[0.0, 0.5]), "pis", "above 0 and below 1"),
    "pi of 1": (request(pis=[0.5, 1.0]), "pis", "above 0 and below 1"),
    "NaN for a pi": (request(pis=[float("nan")]), "pis", "above 0 and below 1"),
    "pis that fall": (request(pis=[0.5, 0.2]), "pis", "ascend"),
    "no samples": (request(samples=0), "samples", "between 1 and 1000, was 0"),
    "too many samples": (request(samples=1001), "samples", "between 1 and 1000"),
    "stride of 0": (request(stride=0), "stride", "at least 1"),
    "a negative offset": (request(offset=-1), "offset", "at least 0"),
    "an offset behind the end": (request(offset=8), "offset", "a completion of 8 tokens has steps 0 to 7"),
    "a negative seed": (request(seed=-1), "seed", "2**63"),
    "an unknown metric": (request(metrics=[99]), "metrics", "99 is not a value"),
    "a metric twice": (request(metrics=[1, 1]), "metrics", "each once"),
    "no rationale": (request(metrics=[pb.METRIC_AUPRC]), "rationale", "names of the segments"),
    "a rationale without a use": (request(rationale=["why"]), "rationale", "only by the metrics auprc and token_f1"),
    "a rationale that is no segment": (
        request(metrics=[pb.METRIC_AUPRC], rationale=["why"]), "rationale", "'why' is not a segment"),
    "scores of the wrong length": (
        request(scores=[pb.GivenScores(name="mine", rows=[pb.ScoreRow(step=s, scores=[1.0]) for s in (0, 5)])]),
        "scores", "'mine' has 1 scores at step 0"),
    "NaN for a score": (
        request(scores=[pb.GivenScores(name="mine", rows=[pb.ScoreRow(step=0, scores=[float("nan")] * 17)])]),
        "scores", "the score of token 0 at step 0 is nan"),
    "scores that leave a step out": (
        request(scores=[pb.GivenScores(name="mine", rows=[pb.ScoreRow(step=0, scores=[1.0] * 17)])]),
        "scores", "no row for step 5"),
    "scores without a name": (
        request(scores=[pb.GivenScores(rows=[pb.ScoreRow(step=0, scores=[1.0] * 17)])]), "methods", "must have a name"),
    "scores without a completion": (
        pb.EvaluateRequest(input=PROMPT, evaluation=evaluation(
            scores=[pb.GivenScores(name="mine", rows=[pb.ScoreRow(step=0, scores=[1.0] * 17)])])),
        "scores", "need the completion"),
    "a completion and labels": (
        pb.EvaluateRequest(input=PROMPT, completion="a", labels=["a", "b"], evaluation=evaluation()),
        "completion", "at most one of completion, completion_ids, labels, generation"),
    "one label": (pb.EvaluateRequest(input=PROMPT, labels=["a"], evaluation=evaluation()), "labels", "two or more"),
    "labels that begin alike": (
        pb.EvaluateRequest(input=PROMPT, labels=["ab", "ac"], evaluation=evaluation()), "labels[1]", "same token"),
    "a label without text": (
        pb.EvaluateRequest(input=PROMPT, labels=["a", ""], evaluation=evaluation()), "labels[1]", "must not be empty"),
    "nothing that may be perturbed": (
        request(prompt_input=pb.Input(prompt_ids=[256])), "perturb", "no token of the user"),
    "positions outside the prompt": (request(perturb_positions=[17]), "perturb_positions", "17 tokens"),
    "too much": (
        request(pis=[i / 100 for i in range(1, 100)], samples=1000, stride=1,
                methods=[pb.EvaluatedMethod(name=str(i)) for i in range(8)]),
        "samples", "the limit is 1,000,000"),
    "no input": (pb.EvaluateRequest(completion="a", evaluation=evaluation()), "input", "none was given"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_invalid_requests_are_refused_before_any_work(server: RunningServer, case: str) -> None:
    message, field, words = CASES[case]
    code, _, violations, _ = refusal(lambda: evaluate(server, message))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(violations) == [field]
    assert words in violations[field]
    assert evaluate(server, request())[-1].HasField("finished")


def begun(server: RunningServer) -> Iterator[pb.EvaluateResponse]:
    """An evaluation that would take minutes, after its first result."""
    call = server.stub.Evaluate(request(samples=1000, stride=1))
    for event in call:
        if event.HasField("progress"):
            break
    return call  # type: ignore[no-any-return]


def test_cancellation_ends_an_evaluation_within_a_batch(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = 0
    original = PerturbationRunner._probabilities

    def counted(self: PerturbationRunner, *args: Any) -> Any:
        nonlocal batches
        batches += 1
        return original(self, *args)

    monkeypatch.setattr(PerturbationRunner, "_probabilities", counted)
    call = begun(server)
    call.cancel()  # type: ignore[attr-defined]
    until(lambda: not server.engine.scheduler.running)
    after = batches
    until(lambda: server.engine.scheduler._runner.pool.num_free_tokens == server.engine.kv_tokens)
    assert batches <= after + 1


def test_generation_continues_during_an_evaluation(server: RunningServer) -> None:
    call = begun(server)
    try:
        text = server.stub.Generate(
            pb.GenerateRequest(input=PROMPT, max_new_tokens=40, attribution=pb.AttributionOptions()), timeout=30
        )
        assert list(text)[-1].HasField("finished")
        assert next(iter(call)).WhichOneof("event") in ("progress", "item")  # the server still answers
    finally:
        call.cancel()  # type: ignore[attr-defined]


def test_a_deadline_ends_it(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(server.stub.Evaluate(request(samples=1000, stride=1), timeout=0.3))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: not server.engine.scheduler.running)
