"""Precision, recall and "no document", their intervals, and the choice of thresholds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gradellm_bench.study.citation_report import (
    JudgedSentence,
    Share,
    best_threshold,
    chosen_thresholds,
    kinds_table,
    load,
    no_document,
    passages,
    precision,
    recall,
    table,
    unanswered,
    wilson,
)


def sentence(
    expected: int | None,
    *strengths: float,
    generator: str = "boxes",
    repeats: bool = False,
    asks: str = "one",
    missing: bool = False,
) -> JudgedSentence:
    return JudgedSentence(generator, asks, expected, repeats, strengths, missing)


SENTENCES = [
    sentence(0, 0.9, 0.2),
    sentence(1, 0.8, 0.9),
    sentence(0, 0.3, 0.0),
    sentence(None, 0.4, 0.1),
    sentence(None, 0.7, 0.7, repeats=True),
]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.5, [(2, 3), (2, 3), (1, 1), (0, 1)]), (0.25, [(3, 4), (3, 3), (0, 1), (0, 1)])],
)
def test_shares(threshold: float, expected: list[tuple[int, int]]) -> None:
    shares = [measure(SENTENCES, threshold) for measure in (precision, recall, no_document)]
    shares.append(no_document(SENTENCES, threshold, repeats=True))
    assert [(share.count, share.of) for share in shares] == expected


def test_a_sentence_about_missing_names_cites_none() -> None:
    kept, hidden = sentence(None, 0.9, 0.2), sentence(None, 0.9, 0.2, missing=True)
    assert (kept.cited(0.5), hidden.cited(0.5)) == ([0], [])
    shares = [unanswered([kept, hidden, sentence(1, 0.1, 0.9)], 0.5, by_strength=off) for off in (False, True)]
    assert [(share.count, share.of) for share in shares] == [(1, 2), (0, 2)]
    wrong = sentence(1, 0.1, 0.9, missing=True)
    assert [measure([wrong], 0.5).count for measure in (recall, precision)] == [0, 0]


def test_a_share_of_nothing_is_nan() -> None:
    assert math.isnan(Share(0, 0).value)
    assert str(Share(0, 0)) == ""


@pytest.mark.parametrize(("count", "of"), [(0, 10), (7, 10), (10, 10), (180, 200)])
def test_ends_of_wilsons_interval_are_a_quantile_away(count: int, of: int) -> None:
    for end in wilson(count, of):
        assert abs(count / of - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / of), abs=1e-6)


def test_the_threshold_separates() -> None:
    separable = [sentence(0, 0.9, 0.3), sentence(1, 0.2, 0.8), sentence(None, 0.4, 0.3)]
    assert 0.4 < best_threshold(separable) <= 0.8


def test_thresholds_come_from_one_generator_and_tables_from_the_other(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"{generator}-one-0",
            "generator": generator,
            "asks": "one",
            "documents": ["a", "b"],
            "sentences": [{"expected": "b", "repeats": True}, {"expected": "", "repeats": False}],
            "strengths": {"token": {"paper": [[0.1, strength], [0.0, 0.05]]}},
            "passages": {"paper": [True]},
        }
        for generator, strength in (("boxes", 0.5), ("notes", 0.04))
    ]
    lines = [{"settings": {"model": "m", "methods": ["paper"]}}, {"id": "boxes-one-1"}, *rows]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = load(tmp_path)
    assert table(data).startswith("| resolution | method | threshold | model | n | precision | recall | no document |")
    threshold = chosen_thresholds(data)["paper", "token"]
    assert 0.1 < threshold <= 0.5
    assert f"| token | paper | {threshold:.2f} | m | 1 |  | 0.00 (0.00 to 0.79) | 1.00 (0.21 to 1.00) |" in table(data)
    assert "| paper | m | one | 1 |  |" not in kinds_table(data)  # of resolution word alone
    assert str(passages(tmp_path)["m", "paper"]) == "1.00 (0.34 to 1.00)"


def test_kinds_of_questions_have_rows(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"{generator}-{asks}-0",
            "generator": generator,
            "asks": asks,
            "documents": ["a", "b"],
            "sentences": [{"expected": expected, "repeats": asks == "absent"}],
            "strengths": {"word": {"paper": [[0.0, 0.1 if asks == "knowledge" else 0.5]]}},
            "missing_names": {"word": {"paper": [asks == "absent"]}},
        }
        for generator in ("boxes", "notes")
        for asks, expected in (("one", "b"), ("absent", ""), ("mixed", "b"), ("knowledge", ""))
    ]
    lines = [{"settings": {"model": "m", "methods": ["paper"]}}, *rows]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = load(tmp_path)
    assert chosen_thresholds(data)["paper", "word"] <= 0.5
    all_of, none_of = "1.00 (0.21 to 1.00)", "0.00 (0.00 to 0.79)"
    drawn = kinds_table(data)
    assert f"| paper | m | one | 1 | {all_of} | {all_of} | 0 |  |  |" in drawn
    assert f"| paper | m | absent | 0 |  |  | 1 | {all_of} | {none_of} |" in drawn
    assert f"| paper | m | mixed | 1 | {all_of} |" in drawn
