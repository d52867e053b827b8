"""Pushing shares back: against an enumeration of all paths, and numbers worked out by hand."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm.explanation.tracing.push_back import Flow, Reason, TokenRow, push_back

Column = int | Reason  # a column of the prompt, or why a path ends before it


@dataclass
class Paths:
    """What the naive enumeration finds."""

    shares: dict[Column, float] = field(default_factory=lambda: defaultdict(float))
    direct: dict[Column, float] = field(default_factory=lambda: defaultdict(float))
    marked: dict[Column, float] = field(default_factory=lambda: defaultdict(float))
    entered: dict[int, float] = field(default_factory=lambda: defaultdict(float))


def probabilities(row: TokenRow) -> dict[Column, float]:
    """A row's distribution over where a path goes next; generated tokens are negative, -1 for token 0."""
    scores: dict[Column, float] = {column: max(0.0, score) for column, score in enumerate(row.prompt)}
    scores |= {-1 - token: max(0.0, score) for token, score in row.generated.items()}
    for reason, score in row.missing.items():
        scores[reason] = score
    total = math.fsum(scores.values())
    return {column: score / total for column, score in scores.items() if score} if total else {row.reason: 1.0}


def paths(rows: list[TokenRow], token: int) -> Iterator[tuple[float, list[int], Column]]:
    """Every path from a token: its probability, the tokens that it visits, and where it ends."""
    for column, share in probabilities(rows[token]).items():
        if isinstance(column, int) and column < 0:
            for probability, visited, end in paths(rows, -1 - column):
                yield share * probability, [token, *visited], end
        else:
            yield share, [token], column


def enumerated(rows: list[TokenRow], start: dict[int, float], groups: dict[int, int], members: set[int]) -> Paths:
    found = Paths()
    for first, mass in start.items():
        for probability, visited, end in paths(rows, first):
            share = mass * probability
            found.shares[end] += share
            found.direct[end] += share * (len(visited) == 1)
            found.marked[end] += share * bool(members & set(visited[1:]))
            for group in {groups[token] for token in visited[1:]} - {groups[first]}:
                found.entered[group] += share
    return found


def scores(size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.one_of(st.just(0.0), st.floats(-2, 5), st.floats(0, 1e-30)), min_size=size, max_size=size)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[TokenRow], dict[int, float], dict[int, int], set[int], int]:
    num_columns, num_tokens = draw(st.integers(0, 3)), draw(st.integers(1, 7))
    rows = []
    for token in range(num_tokens):
        if draw(st.integers(0, 5)) == 0:
            rows.append(TokenRow(reason=draw(st.sampled_from(["forced", "not_explained"]))))
            continue
        generated = dict(enumerate(draw(scores(token))))
        missing: dict[Reason, float] = {"top_k_sources": draw(st.floats(0, 2))} if draw(st.booleans()) else {}
        rows.append(TokenRow(tuple(draw(scores(num_columns))), generated, missing))
    selected = draw(st.sets(st.integers(0, num_tokens - 1), min_size=1))
    ends = draw(st.lists(st.booleans(), min_size=num_tokens, max_size=num_tokens))
    groups = {token: sum(ends[:token]) for token in range(num_tokens)}
    members = draw(st.sets(st.integers(0, num_tokens - 1)))
    return rows, dict.fromkeys(selected, 1 / len(selected)), groups, members, num_columns


@given(cases())
def test_it_is_the_sum_over_all_paths(
    case: tuple[list[TokenRow], dict[int, float], dict[int, int], set[int], int],
) -> None:
    rows, start, groups, members, num_columns = case
    flow = push_back(start, rows.__getitem__, num_columns=num_columns, groups=groups, members=members)
    naive = enumerated(rows, start, groups, members)
    for column in range(num_columns):
        assert flow.shares[column] == close(naive.shares[column])
        assert flow.direct[column] == close(naive.direct[column])
        assert flow.through_members[column] == close(naive.marked[column])
        assert flow.direct[column] <= flow.shares[column] + 1e-12
    for group in set(groups.values()):
        assert flow.entered.get(group, 0.0) == close(naive.entered[group])
    by_reason: dict[Column, float] = defaultdict(float)
    for (reason, _), share in flow.unexplained.items():
        by_reason[reason] += share
    for end, share in naive.shares.items():
        if not isinstance(end, int):
            assert by_reason[end] == close(share)
    assert flow.passed_members == close(math.fsum(naive.marked.values()))
    assert math.fsum((*flow.shares, *flow.unexplained.values())) == close(1)


def close(expected: float) -> object:
    return pytest.approx(expected, abs=1e-12, rel=1e-12)


def all_shares(flow: Flow) -> list[float]:
    return [*flow.shares, *flow.direct, *flow.through_members, flow.passed_members]


def test_it_solves_the_triangular_system() -> None:
    """Shares of the prompt are start (I - G)^-1 P, in numpy, for 40 tokens."""
    rng = np.random.default_rng(0)
    prompt, generated = rng.random((40, 6)), np.tril(rng.random((40, 40)), -1)
    sums = prompt.sum(1) + generated.sum(1)
    start = np.zeros(40)
    start[[20, 39]] = 0.5
    expected = start @ np.linalg.inv(np.eye(40) - generated / sums[:, None]) @ (prompt / sums[:, None])
    flow = push_back(
        {20: 0.5, 39: 0.5},
        lambda token: TokenRow(prompt[token].tolist(), dict(enumerate(generated[token, :token].tolist()))),
        num_columns=6,
        groups={token: token for token in range(40)},
    )
    np.testing.assert_allclose(flow.shares, expected, rtol=1e-12)


def test_two_hops_by_hand() -> None:
    """Token 1 draws 1/4 on column 1 and 3/4 on token 0, which draws on column 0 alone; a negative score counts as 0."""
    rows = [TokenRow((2.0, -1.0)), TokenRow((0.0, 1.0), {0: 3.0})]
    flow = push_back({1: 1.0}, rows.__getitem__, num_columns=2, groups={0: 0, 1: 1}, members={0})
    assert flow.shares == (0.75, 0.25)
    assert flow.direct == (0.0, 0.25)
    assert flow.through_members == (0.75, 0.0)
    assert (flow.entered, flow.passed_members, flow.unexplained) == ({0: 0.75}, 0.75, {})


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 3e38])
def test_scales_of_rows_do_not_matter(scale: float) -> None:
    rows = [TokenRow((scale, scale)), TokenRow((scale, 0.0), {0: scale})]
    flow = push_back({1: 1.0}, rows.__getitem__, num_columns=2, groups={0: 0, 1: 1})
    assert flow.shares == (0.75, 0.25)
    assert all(map(math.isfinite, all_shares(flow)))
