"""Events to the wire: every field arrives, and an optional field is set only where the engine has a value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import (
    Attribution,
    AttributionSettings,
    Engine,
    EvaluationItem,
    EvaluationSummary,
    Event,
    Finished,
    FinishReason,
    Interval,
    Metric,
    MetricSummary,
    Progress,
    PromptInput,
    PromptProgress,
    Resolution,
    Sampling,
    Segment,
    Started,
    Step,
)
from gradellm_engine.core.outputs import Alternative
from gradellm_engine.faithfulness.results import Point
from gradellm_server.rpc.events_to_wire import responses

STEP = Step(2, 70, "é", 3, 4, -0.5, (Alternative(70, "é", -0.5),), False, 0, None, None, is_new=True)
ROW = Attribution(2, torch.tensor([0.1, -2.0]), None, 70, None)
INTERVAL = Interval(0.25, None, None, "monte_carlo", 3)
SUMMARY = MetricSummary("a", Metric.SOFT_NS, INTERVAL, 0.2, None, (), 1.5, 2)
FINISHED = Finished(FinishReason.STOP_TEXT, "\n", "text", 5, 4, 3, 2, 0.1, 0.2, 0.3, 0.4)


def wire(event: Event, kind: type[Any] = pb.GenerateResponse) -> Any:
    """The only message of an event that needs no engine, by the name of its field."""
    no_engine: Any = None
    (message,) = responses(kind, no_engine, event)
    return getattr(message, message.WhichOneof("event"))


def test_a_token_that_the_caller_has_is_not_sent_again() -> None:
    no_engine: Any = None
    assert responses(pb.GenerateResponse, no_engine, replace(STEP, is_new=False)) == []


def test_a_token() -> None:
    token = wire(STEP)
    assert (token.index, token.id, token.text, token.start, token.end) == (2, 70, "é", 3, 4)
    assert token.logprob == -0.5
    assert list(token.alternatives) == [pb.Alternative(id=70, text="é", logprob=-0.5)]
    assert token.HasField("word")  # 0, the first word, is not "no word"
    assert not token.HasField("source_index")
    column = wire(replace(STEP, word=None, source_index=0))
    assert not column.HasField("word")
    assert column.HasField("source_index")


def test_an_attribution_row() -> None:
    row = wire(ROW)
    assert list(row.scores) == ROW.scores.tolist()
    assert (row.token_index, row.target_token_id, list(row.source_indexes)) == (2, 70, [])
    assert not row.HasField("contrast_token_id")
    assert not row.HasField("error")
    row = wire(replace(ROW, source_indexes=torch.tensor([4, 1]), contrast_token_id=0, error=0.0))
    assert list(row.source_indexes) == [4, 1]
    assert row.HasField("contrast_token_id")
    assert row.HasField("error")


def test_the_two_kinds_of_progress_are_told_apart() -> None:
    no_engine: Any = None
    kinds = [responses(pb.AttributeResponse, no_engine, event)[0] for event in (Progress(0.5), PromptProgress(0.25))]
    assert [message.WhichOneof("event") for message in kinds] == ["progress", "prompt_progress"]
    assert (kinds[0].progress.done, kinds[1].prompt_progress.done) == (0.5, 0.25)


@pytest.fixture
def started(engine: Engine) -> Started:
    """A prompt with a segment, explained by segment."""
    return engine.generate(
        PromptInput(prompt="to be or not", segments=(Segment("or", 6, 8),)),
        Sampling(max_new_tokens=1),
        AttributionSettings(resolution=Resolution.SEGMENT),
    ).started


def test_prompt_tokens_have_their_segments_and_words(started: Started, engine: Engine) -> None:
    (message,) = responses(pb.GenerateResponse, engine, started)
    tokens = message.started.prompt_tokens
    assert [token.id for token in tokens] == started.prompt.ids
    assert [token.word for token in tokens] == started.prompt.words
    assert "".join(token.text for token in tokens if token.segment == "or") == "or"
    assert {token.segment for token in tokens} == {"", "or"}
    assert [token.special for token in tokens] == [True] + [False] * (len(tokens) - 1)  # the first is <s>
    assert not any(token.HasField("message") for token in tokens)


def test_sources_are_sent_unless_they_are_the_tokens(started: Started, engine: Engine) -> None:
    def sources(event: Started) -> list[tuple[str, tuple[int, ...]]]:
        (message,) = responses(pb.GenerateResponse, engine, event)
        return [(source.label, tuple(source.token_indexes)) for source in message.started.sources]

    assert sources(started) == [(source.label, source.token_indexes) for source in started.sources] != []
    assert started.attribution is not None
    by_token = replace(started, attribution=replace(started.attribution, resolution=Resolution.TOKEN))
    assert sources(by_token) == sources(replace(started, attribution=None)) == []


def test_an_evaluation_item() -> None:
    point = Point(pi=0.5, achieved=0.4, alpha=1.5, samples=(0.25, 0.75), mean=0.5)
    item = wire(EvaluationItem(3, "a", Metric.PI_SOFT_NC, 0.5, (point,)), pb.EvaluateResponse)
    assert (item.step, item.name, item.metric, item.value) == (3, "a", pb.METRIC_PI_SOFT_NC, 0.5)
    assert list(item.points) == [pb.EvaluationPoint(pi=0.5, achieved_pi=0.4, alpha=1.5, mean=0.5, samples=[0.25, 0.75])]
    assert not item.HasField("expected_tokens")
    original = EvaluationItem(3, "a", Metric.SOFT_NS, 0.5, (replace(point, pi=None),), expected_tokens=0.0)
    item = wire(original, pb.EvaluateResponse)
    assert not item.points[0].HasField("pi")
    assert item.HasField("expected_tokens")
    ranked = EvaluationItem(3, "a", Metric.DELETION, 0.5, flips=(True, False))
    assert list(wire(ranked, pb.EvaluateResponse).flips) == [True, False]


def test_a_summary() -> None:
    difference = Interval(-0.5, -1.0, 0.0, "bootstrap", 7)
    metrics = (SUMMARY, replace(SUMMARY, difference=difference, curve=(0.1, 0.2), expected_tokens=None))
    summary = wire(EvaluationSummary(metrics, (0, 5), (5,), 0, True, 9, 30, 40), pb.EvaluateResponse)
    assert (list(summary.steps), list(summary.skipped_steps)) == ([0, 5], [5])
    assert summary.HasField("label_index")
    assert (summary.answer_outside_labels, summary.perturbable_tokens) == (True, 9)
    assert (summary.sequences_run, summary.sequences_asked) == (30, 40)
    first, second = summary.metrics
    assert (first.name, first.metric, first.median, first.steps) == ("a", pb.METRIC_SOFT_NS, 0.2, 2)
    assert first.interval == pb.Interval(mean=0.25, kind=pb.INTERVAL_KIND_MONTE_CARLO, count=3)  # without ends
    assert not first.HasField("difference_from_random")
    assert first.expected_tokens == 1.5
    assert second.difference_from_random == pb.Interval(
        mean=-0.5, low=-1.0, high=0.0, kind=pb.INTERVAL_KIND_BOOTSTRAP, count=7
    )
    assert list(second.curve) == [0.1, 0.2]
    assert not second.HasField("expected_tokens")
    no_labels = EvaluationSummary((), (), (), None, False, 0, 0, 0)
    assert not wire(no_labels, pb.EvaluateResponse).HasField("label_index")


def test_the_end_of_a_request() -> None:
    finished = wire(FINISHED)
    assert finished == pb.Finished(
        reason=pb.FINISH_REASON_STOP_TEXT,
        stop="\n",
        usage=pb.Usage(prompt_tokens=5, completion_tokens=4, attributed_tokens=3, reused_prompt_tokens=2),
        timings=pb.Timings(queue_seconds=0.1, prefill_seconds=0.2, decode_seconds=0.3, attribution_seconds=0.4),
    )
    assert wire(replace(FINISHED, reason=FinishReason.END_OF_TEXT, stop=None)).stop == ""
