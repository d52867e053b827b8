"""Data files and presets for tests of data sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradellm.evaluation.datasets import load_rows
from gradellm.evaluation.examples import DataError, Example
from gradellm.evaluation.presets import PRESETS, Preset, custom_preset

DATA = Path(__file__).parents[4] / "shared" / "data"
SST2 = PRESETS["sst2"]
PLAIN = custom_preset("{text}")


def shared(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip("the data folder is missing")
    return DATA / name


def jsonl(folder: Path, *rows: object, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def text_of(example: Example) -> str:
    """What spans of the example count in."""
    text = example.prompt if example.messages is None else example.messages[-1][1]
    assert text is not None
    return text


def decisive(example: Example) -> list[str]:
    assert example.rationale is not None
    return [text_of(example)[start:end] for start, end in example.rationale]


def refusal(source: object, preset: Preset = SST2) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(str(source), preset)
    return str(caught.value)
