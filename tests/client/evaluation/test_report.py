"""Evaluation reports: collected from events, as a table, and as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from client.conftest import started
from gradellm import EvaluationReport, InvalidReportError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire.responses import event

NS, NC, AUPRC = pb.METRIC_PI_SOFT_NS, pb.METRIC_PI_SOFT_NC, pb.METRIC_AUPRC
PIS = (0.25, 0.75)


def interval(mean: float, half: float | None = 0.1) -> pb.Interval:
    kind: Any = pb.INTERVAL_KIND_MONTE_CARLO
    if half is None:
        return pb.Interval(mean=mean, kind=kind, count=3)
    return pb.Interval(mean=mean, low=mean - half, high=mean + half, kind=kind, count=3)


def metric(name: str, metric_or_summary: Any, mean: float, less: float | None = None) -> pb.MetricSummary:
    return pb.MetricSummary(
        name=name,
        metric=metric_or_summary,
        interval=interval(mean, None if metric_or_summary == AUPRC else 0.1),
        median=mean,
        difference_from_random=None if less is None else interval(less, None if metric_or_summary == AUPRC else 0.1),
        curve=[] if metric_or_summary == AUPRC else [mean, 2 * mean],
        steps=1,
    )


def parts(**changes: Any) -> list[pb.EvaluateResponse]:
    evaluation = pb.EvaluationOptions(pis=PIS, metrics=[NS, NC], seed=3, perturb=pb.PERTURB_USER)
    first = started(provenance=pb.Provenance(model=pb.ModelInfo(name="fake"), evaluation=evaluation))
    summary = pb.EvaluationSummary(
        metrics=[
            metric("ours", NS, 0.5, 0.2), metric("ours", NC, 0.25, 0.125), metric("ours", AUPRC, 0.75, 0.5),
            metric("random", NS, 0.3), metric("random", NC, 0.125), metric("random", AUPRC, 0.25),
        ],
        steps=[0], sequences_run=3, sequences_asked=4, perturbable_tokens=4,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "started": first,
        "token": pb.Token(index=0, id=5, text=" there", end=6),
        "progress": pb.Progress(done=0.5),
        "item": pb.EvaluationItem(step=0, name="ours", metric=NS, value=0.5, points=[
            pb.EvaluationPoint(pi=0.25, achieved_pi=0.25, alpha=1.5, mean=0.5, samples=[0.25, 0.75])]),
        "summary": summary,
        "finished": pb.Finished(reason=pb.FINISH_REASON_END_OF_COMPLETION, usage=pb.Usage(), timings=pb.Timings()),
        **changes,
    }  # fmt: skip
    return [pb.EvaluateResponse(**{name: value}) for name, value in fields.items() if value is not None]


def report(**changes: Any) -> EvaluationReport:
    return EvaluationReport.from_events(filter(None, map(event, parts(**changes))))


def test_a_report_holds_the_received_messages() -> None:
    loaded = report()
    assert loaded.text == " there"
    assert (loaded.names, loaded.metrics, loaded.pis) == (
        ("ours", "random"),
        ("pi_soft_ns", "pi_soft_nc", "auprc"),
        PIS,
    )
    assert loaded.auc("ours") == loaded.auc("ours", "pi_soft_ns") == 0.5
    assert (loaded.interval("ours", "pi_soft_nc").low, loaded.interval("ours", "auprc").low) == (0.15, None)
    difference = loaded.difference("ours")
    assert difference is not None
    assert difference.mean == 0.2
    assert loaded.difference("random") is None
    assert loaded.curves == {
        "pi_soft_ns": {"ours": (0.5, 1.0), "random": (0.3, 0.6)},
        "pi_soft_nc": {"ours": (0.25, 0.5), "random": (0.125, 0.25)},
    }
    assert loaded.items[0].points[0].samples == (0.25, 0.75)
    assert (loaded.summary.label_index, loaded.summary.answer_outside_labels) == (None, False)
    evaluation = loaded.provenance.evaluation
    assert evaluation is not None
    assert (evaluation.seed, evaluation.metrics, evaluation.perturb) == (3, ("pi_soft_ns", "pi_soft_nc"), "user")


def test_prints_as_a_table() -> None:
    assert str(report()).splitlines() == [
        "| method | π-Soft-NS | less random's | π-Soft-NC | less random's | AUPRC | less random's |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| ours | 0.500 (0.400 to 0.600) | 0.200 (0.100 to 0.300) | 0.250 (0.150 to 0.350) | 0.125 (0.025 to 0.225) "
        "| 0.750 | 0.500 |",
        "| random | 0.300 (0.200 to 0.400) |  | 0.125 (0.025 to 0.225) |  | 0.250 |  |",
    ]


def test_the_printed_report_notes_labels_and_skipped_steps() -> None:
    metric_or_summary = parts()[4].summary
    metric_or_summary.answer_outside_labels, metric_or_summary.label_index = True, 1
    metric_or_summary.steps[:], metric_or_summary.skipped_steps[:] = [0, 5, 10], [5, 10]
    loaded = report(summary=metric_or_summary)
    table, outside, skipped = str(loaded).split("\n\n")
    assert table == loaded.table()
    assert outside == (
        "The answer is outside the labels: the model's most probable token begins none of them. The values are "
        "those of the most probable label, 'there'."
    )
    assert skipped.startswith("2 of 3 steps are skipped")
    assert str(report()) == report().table()
    nothing = report(summary=pb.EvaluationSummary(steps=[0], skipped_steps=[0]))
    assert str(nothing).splitlines()[-1] == "Nothing could be measured."


def test_missing_entries_are_named() -> None:
    with pytest.raises(InvalidReportError, match="theirs, pi_soft_ns is not in this report; it has ours, random"):
        report().auc("theirs")
    skipped = report(summary=pb.EvaluationSummary(steps=[0], skipped_steps=[0]))
    with pytest.raises(InvalidReportError, match="could not be measured"):
        skipped.auc("ours")
    with pytest.raises(InvalidReportError, match="no curves to draw"):
        skipped.plot()


@pytest.mark.parametrize("missing", ["started", "summary", "finished"])
def test_a_stream_that_broke_off_is_no_report(missing: str) -> None:
    with pytest.raises(InvalidReportError, match=f"{missing} is missing"):
        report(**{missing: None})


def test_json_gives_back_an_equal_report() -> None:
    assert EvaluationReport.from_json(report().to_json()) == report()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("{}", "not an evaluation report"),
        ('{"format": "gradellm.explanation", "version": 1}', "not an evaluation report"),
        ('{"format": "gradellm.evaluation", "version": 2}', "version 2"),
        ('{"format": "gradellm.evaluation", "version": 1}', "is missing"),
    ],
)
def test_other_json_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidReportError, match=words):
        EvaluationReport.from_json(text)


def test_json_of_earlier_versions_loads() -> None:
    plain = json.loads(report().to_json())
    del plain["started"]["provenance"]["evaluation"]
    assert EvaluationReport.from_json(json.dumps(plain)).pis == ()


def test_draws_a_panel_a_metric() -> None:
    pytest.importorskip("matplotlib")
    figure = report().plot()
    assert len(figure.axes) == 2
    for panel in figure.axes:
        assert [line.get_label() for line in panel.get_lines()] == ["ours", "random"]
        drawn: Any = panel.get_lines()[0].get_xdata()
        assert tuple(drawn) == PIS
