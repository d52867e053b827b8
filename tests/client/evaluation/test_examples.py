"""Samples and digests of examples."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm.evaluation.datasets import load_rows
from gradellm.evaluation.examples import DataError, Example, digest, sample
from support.client.data_files import SST2, jsonl


def test_a_digest_covers_the_prompt(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": 1, "text": "one", "label": 1}, {"id": 2, "text": "two", "label": 0}]
    examples = load_rows(jsonl(tmp_path, *rows), SST2).examples
    assert digest(examples) == digest(reversed(examples))
    for change in ({"text": "other"}, {"label": 0}, {"id": 3}, {"rationale": [0]}):
        other = load_rows(jsonl(tmp_path, rows[0] | change, rows[1], name="other.jsonl"), SST2).examples
        assert digest(other) != digest(examples)
    assert digest(load_rows(tmp_path / "data.jsonl", SST2, chat=False).examples) != digest(examples)


def example(name: str, label: str | None = None) -> Example:
    return Example(name, f"row {name}", None, name, label, None, {"text": name})


LABELLED = [example(f"p{index}", "Positive") for index in range(30)] + [
    example(f"n{index}", "Negative") for index in range(20)
]


@given(st.integers(1, 50), st.integers(), st.randoms())
def test_a_sample_depends_on_nothing_but_the_seed(n: int, seed: int, shuffler: random.Random) -> None:
    rows = list(LABELLED)
    shuffler.shuffle(rows)
    sampled = sample(rows, n, seed)
    assert sampled == sample(LABELLED, n, seed)
    assert len({row.id for row in sampled}) == n
    assert sampled == sample(LABELLED, 50, seed)[:n]


@given(st.integers(1, 40), st.integers(0, 5))
def test_every_prefix_of_a_balanced_sample_is_balanced(n: int, seed: int) -> None:
    sampled = sample(LABELLED, n, seed, balance_by_label=True)
    counts = Counter(row.label for row in sampled)
    assert len({row.id for row in sampled}) == n == counts.total()
    assert counts["Negative"] - counts["Positive"] in (0, 1)
    assert sampled == sample(LABELLED, 40, seed, balance_by_label=True)[:n]


def test_samples_of_a_seed_are_the_same_for_ever() -> None:
    assert [row.id for row in sample(LABELLED, 5, 0)] == ["n5", "p2", "p23", "p14", "n1"]
    assert sample(LABELLED, 5, 1) != sample(LABELLED, 5, 0)


def test_samples_are_uniform() -> None:
    rows = [example(str(index)) for index in range(4)]
    firsts = Counter(sample(rows, 1, seed)[0].id for seed in range(2000))
    assert all(400 < firsts[row.id] < 600 for row in rows)


def test_more_than_there_is_is_refused() -> None:
    for n, balanced, says in [
        (0, False, "must have at least 1 example"),
        (51, False, "the data has 50"),
        (41, True, "needs 21 with the label Negative, but the data has 20; request at most 40"),
        (51, True, "the data has 50"),
    ]:
        with pytest.raises(DataError, match=says):
            sample(LABELLED, n, 0, balance_by_label=balanced)
    with pytest.raises(DataError, match="row x has no label"):
        sample([*LABELLED, example("x")], 10, 0, balance_by_label=True)
    with pytest.raises(DataError, match="all 30 examples have the label Positive"):
        sample(LABELLED[:30], 10, 0, balance_by_label=True)
