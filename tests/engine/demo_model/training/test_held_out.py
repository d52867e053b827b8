"""Held-out prompts as data files: presets read the same prompts from them, with the evidence words as rationale."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gradellm.evaluation.datasets import load_rows
from gradellm.evaluation.presets import PRESETS
from gradellm_engine.demo_model.training import held_out
from gradellm_engine.demo_model.training.corpus import Task, examples

COUNT = 30


@pytest.mark.parametrize(("task", "preset"), [("sentiment", "sst2"), ("boolq", "boolq"), ("why", "tellmewhy")])
def test_presets_read_the_prompts_again(
    task: Task, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["held_out", task, "--count", str(COUNT)])
    held_out.main()
    file = tmp_path / "rows.jsonl"
    file.write_text(capsys.readouterr().out)
    rows = load_rows(str(file), PRESETS[preset])
    assert (len(rows.examples), rows.bad) == (COUNT, ())
    for row, example in zip(rows.examples, examples(task, "held_out", 0, COUNT), strict=True):
        assert row.messages == tuple((message.role, message.content) for message in example.messages)
        assert row.label == (None if task == "why" else example.answer)


def test_the_rationale_holds_the_evidence_words() -> None:
    for example in examples("sentiment", "held_out", 0, COUNT):
        row = held_out.fields(example)
        words = row["text"].split()
        chosen = " ".join(words[index] for index in row["rationale"])
        assert row["rationale"] == sorted(set(row["rationale"]))
        for span in example.evidence:
            assert example.user_content[span.start : span.end] in chosen
    assert json.dumps(held_out.fields(example)) == json.dumps(held_out.fields(example))
