"""The numbers of a picture, against what the definition says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.explanation.conftest import explanation
from gradellm import InvalidExplanationError
from gradellm.pictures.chips import Canvas, Chip, canvas
from gradellm.pictures.picture import LEVELS, MIN_STRENGTH, excess, level, paint

FINITE = st.floats(-100, 100)


def chips(count: int, num_tokens: int = 1) -> Canvas:
    return Canvas(
        tuple(
            Chip(
                f"w{i}", 3 * i, 3 * i + 2, tuple(range(i * num_tokens, (i + 1) * num_tokens)), num_tokens, 0, "user", ""
            )
            for i in range(count)
        ),
        frozenset(),
        0,
        None,
    )


@given(st.lists(FINITE, min_size=3, max_size=12))
def test_strengths_and_shares(values: list[float]) -> None:
    picture = paint(chips(len(values)), dict(enumerate(values)))
    middle = sorted(values)[len(values) // 2] if len(values) % 2 else picture.median
    assert picture.median == pytest.approx(middle)
    for value, strength in zip(values, picture.strengths, strict=True):
        assert abs(strength) <= 1
        assert strength == 0 or (strength > 0) == (value > 0)
        assert strength == 0 or abs(strength) >= MIN_STRENGTH
        if 0 <= value <= picture.median or picture.median <= value < 0:
            assert strength == 0
    total = math.fsum(picture.shares)
    assert total == pytest.approx(1) or total == 0
    assert math.fsum(share for _, share in picture.segments()) == pytest.approx(total)


@given(st.lists(st.floats(0.5, 100), min_size=3, max_size=12), st.floats(0.01, 100))
def test_the_scale_of_scores_changes_nothing(values: list[float], factor: float) -> None:
    scaled = paint(chips(len(values)), {i: factor * value for i, value in enumerate(values)}, scale="raw")
    assert scaled.strengths == pytest.approx(paint(chips(len(values)), dict(enumerate(values)), scale="raw").strengths)


def test_even_scores_have_no_colour() -> None:
    picture = paint(chips(4), dict.fromkeys(range(4), 7.0))
    assert picture.strengths == (0, 0, 0, 0)
    assert picture.top() == ()


def test_a_word_of_many_tokens_does_not_win_by_their_number() -> None:
    three = chips(3, 2)
    scores = {0: 1.0, 1: 1.0, 2: 3.0, 3: 0.0, 4: 0.0, 5: 0.0}
    assert paint(three, scores).values == (1.0, 3.0, 0.0)
    assert paint(three, scores, word_score="mean").values == (1.0, 1.5, 0.0)
    assert paint(three, scores, word_score="sum").values == (2.0, 3.0, 0.0)


def test_levels_and_excess() -> None:
    assert [level(strength) for strength in (0, 0.5, 1, -1, 0.01)] == [0, LEVELS // 2, LEVELS, -LEVELS, 0]
    assert [excess(value, 2.0) for value in (1.0, 3.0, -1.0)] == [0, 1.0, -1.0]
    assert [excess(value, -2.0) for value in (1.0, -1.0, -3.0)] == [1.0, 0, -1.0]


def test_scores_that_are_not_finite_count_as_none() -> None:
    picture = paint(chips(3), {0: math.nan, 1: math.inf, 2: 1.0})
    assert picture.values == (0.0, 0.0, 1.0)
    assert picture.strengths == (0, 0, 1)


def test_the_template_is_folded_with_its_share() -> None:
    loaded = explanation()
    picture = loaded.picture("purrs")
    assert picture.folded_share == pytest.approx(4 / 6)
    assert [chip.text for chip in picture.chips] == ["The", "cat", "sat", "on a mat"]
    assert picture.strengths == (0, -1, 1, 0)


def test_retention_has_the_asked_mean_over_the_users_words() -> None:
    picture = explanation().picture(scale="retention", pi=0.4)
    assert picture.pi == 0.4
    assert picture.strengths[:2] == (0, 0)  # the system's
    assert math.fsum(picture.strengths) / 2 == pytest.approx(0.4)


def test_a_first_token_without_a_score_is_a_sink() -> None:
    loaded = explanation()
    started = replace(loaded.started, prompt_tokens=loaded.prompt_tokens[1:])
    assert canvas(started).sink == 0
    picture = paint(canvas(started), {0: 5.0, 1: 1.0})
    assert picture.values[0] == 0
    assert picture.folded_share == pytest.approx(5 / 6)
    settings = started.provenance.attribution
    assert settings is not None
    other = replace(started, provenance=replace(started.provenance, attribution=replace(settings, method="saliency")))
    assert canvas(other).sink is None


@pytest.mark.parametrize(
    ("keywords", "message"),
    [({"scale": "log"}, "scale: must be one of"), ({"word_score": "min"}, "word_score: must be one of")],
)
def test_what_is_not_defined_is_refused(keywords: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidExplanationError, match=message):
        paint(chips(3), {}, **keywords)  # type: ignore[arg-type]


def test_the_largest_token_needs_a_score_for_each() -> None:
    words = Canvas((replace(chips(1).chips[0], num_tokens=2),), frozenset(), 0, None)
    with pytest.raises(InvalidExplanationError, match="resolution='token'"):
        paint(words, {0: 1.0}, word_score="max")
    assert paint(words, {0: 1.0}).values == (0.5,)  # the mean
