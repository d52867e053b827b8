"""Rows of files as prompts; the files of the study itself are not part of the project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradellm_bench.study.examples import DATASETS

ROWS = {
    "sst2.jsonl": {"id": "s", "text": "a charming journey .", "label": "positive", "rationale": [1]},
    "eraser_boolq.jsonl": {"id": "b", "passage": "It was so", "question": "why", "answer": True, "rationale": [[0, 2]]},
    "lambada_rationales.jsonl": {"id": "l", "text": "He got a few", "target": "scratches", "rationale": [[3, 6]]},
    "wikibio.jsonl": {"id": "w", "text": "Sir John was a physician."},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, row in ROWS.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    return tmp_path


@pytest.mark.parametrize("chat", [True, False])
def test_rows_of_files(folder: Path, *, chat: bool) -> None:
    found = {name: DATASETS[name](folder, chat)[0] for name in ("sst2", "eraser_boolq", "lambada", "wikibio")}
    assert found["sst2"].labels == ("Positive", "Negative")
    assert found["eraser_boolq"].labels == ("true", "false")
    assert found["lambada"].target == " scratches"
    assert found["lambada"].prompt.prompt == "He got a few"  # in a chat the next word would be another one
    for name, marked in (("sst2", "charming"), ("eraser_boolq", "It was"), ("lambada", "got")):
        prompt = found[name].prompt
        assert bool(prompt.messages) == (chat and name != "lambada")
        text = prompt.messages[-1].content if prompt.messages else prompt.prompt or ""
        ((start, end),) = found[name].evidence
        assert text[start:end] == marked
    assert found["wikibio"].evidence == ()


def test_sentiment_without_a_chat_template(folder: Path) -> None:
    """For base models: the text goes on with the label."""
    (row,) = DATASETS["sst2_raw"](folder, True)
    assert row.prompt.prompt == "a charming journey .\nSentiment:"
    assert row.labels == ("positive", "negative")
    ((start, end),) = row.evidence
    assert row.prompt.prompt[start:end] == "charming"


@pytest.mark.parametrize("chat", [True, False])
def test_retrieval_chats(tmp_path: Path, *, chat: bool) -> None:
    rows = DATASETS["retrieval4"](tmp_path, chat)
    assert len({row.id for row in rows}) == len(rows) >= 100
    for row in rows[:20]:
        text = row.prompt.messages[0].content if chat else row.prompt.prompt or ""
        ((start, end),) = row.evidence
        assert text[start:end] == row.answer
        assert row.answer.lower() in row.candidates
        assert len(row.sentences) == 4
