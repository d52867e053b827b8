"""The notes below a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gradellm.evaluation.results_file import ResultsFile
from gradellm.evaluation.run_results import Run, read_run
from gradellm.evaluation.tables.table_notes import answer_counts, small_sample_warning
from support.client.evaluation_runs import NS, Numbers, evaluation_run, only, run_settings


def notes_of(*runs: Run) -> str:
    return "\n".join(only(runs).notes)


def test_the_notes_of_one_run() -> None:
    text = notes_of(evaluation_run({"pi_soft_ns": NS}))
    assert "n = 2 of 4 examples, 0 failed, 0 bad rows, 0 of 2 steps skipped" in text
    assert "1 answers outside the labels, accuracy 0.500 (1 of 2); 2 are missing" in text
    assert "Attn = Attention; Rnd = Random; Ours = Grad-ELLM; lime." in text
    assert "seed 0; 3 masks for each π of 0.5, 0.75; perturbed: user" in text
    assert "token level, labels good, bad; prompts by the chat template; data dddddddddddd" in text
    assert "float32, quantization none, attention kernel k, on cpu; torch 2 (2 examples)" in text
    assert "E[R]" not in text
    assert "removal" not in text


def test_the_legend_has_the_switches_of_each_method() -> None:
    methods = {
        "attention": {"method": "attention", "layers": 2},
        "knockout": {"attribution": "knockout"},
        "mine": {"method": "grad_ellm", "similarity": "dot", "layers": "all"},
    }
    values: Numbers = {"random": [0.1], **{name: [0.2] for name in methods}}
    run = evaluation_run({"pi_soft_ns": values})
    text = notes_of(replace(run, settings={**run.settings, "methods": {**run.settings["methods"], **methods}}))
    assert (
        "Methods: Attn = Attention (layers 2); Rnd = Random; knockout = Grad-ELLM's preset knockout, beyond the paper; "
        "mine = similarity dot, layers all." in text
    )


def test_settings_that_change_the_numbers_are_listed() -> None:
    text = notes_of(
        evaluation_run(
            {"deletion": NS}, labels=[], offset=2, stride=3, max_new_tokens=32, pis=[0.1, 0.2, 0.3, 0.4, 0.5],
            removal="zero", prompt={"form": "raw"},
            data={"sha256": "d" * 64, "examples": 1000, "sample": 1000, "balance": True},
        )
    )  # fmt: skip
    assert (
        "SST2: seed 0; 3 masks for each π of 0.1, 0.2 .. 0.5; perturbed: user; removal: zero; sequence level, tokens "
        "2, 5 .. of up to 32; raw prompts; a sample of 1,000, balanced by label; data dddddddddddd." in text
    )
    assert "answers outside the labels" not in text
    assert "n = 2 of 1,000 examples" in text
    assert "998 are missing" in text


def test_scores_of_soft_metrics_are_described_by_their_normalisation() -> None:
    clipped = evaluation_run({"soft_ns": NS}, raw_scores=True)
    normalised = evaluation_run({"soft_ns": NS}, title="IMDb", preset="imdb")
    assert "Scores are clipped to 0..1; E[R]" in notes_of(clipped)
    assert "Scores are min-max normalised to 0..1 or clipped to 0..1; E[R]" in notes_of(clipped, normalised)


def test_answers_are_counted_where_label_and_prediction_exist() -> None:
    pairs = [("good", "good"), ("good", "bad"), (None, "good"), ("good", None)]
    records = [
        {"label": label, "predicted": predicted, "steps": 3, "skipped_steps": i, "outside_labels": i > 1}
        for i, (label, predicted) in enumerate(pairs)
    ]
    assert answer_counts(Run("p", "SST2", {}, tuple(records))) == {
        "steps": 12, "skipped": 6, "outside": 2, "labelled": 2, "right": 1,
    }  # fmt: skip


def test_fewer_than_20_examples_are_warned_about() -> None:
    few, enough = (
        evaluation_run({"pi_soft_ns": {"random": [0.1] * 19}}),
        evaluation_run({"pi_soft_ns": {"random": [0.1] * 20}}, title="IMDb", preset="imdb"),
    )
    assert "Fewer than 20 examples (SST2): the intervals are too narrow." in notes_of(few, enough)
    assert small_sample_warning(only([enough]).panels) == ""


def test_bad_rows_are_listed(tmp_path: Path) -> None:
    with ResultsFile(tmp_path / "results.jsonl", run_settings(list(NS))) as results:
        results.append("a", evaluation_run({"pi_soft_ns": NS}).records[0])
    (tmp_path / "bad_rows.txt").write_text("d.jsonl, line 3: has an empty text\n" * 7)
    text = only([read_run(str(tmp_path))]).to_markdown()
    assert "7 bad rows" in text
    assert "bad rows: d.jsonl, line 3: has an empty text; d.jsonl" in text
    assert "; and 2 more" in text
