"""Heat maps: text is complete, fits the width and cannot control the terminal; colours follow the scores."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm.rendering.heatmap import Passage, Span, heat_map, legend
from gradellm.rendering.terminal import Style, display_width, visible

COLOR = Style(width=40, color=True, theme="dark")
PLAIN = Style(width=40, color=False, theme="dark")
SGR = re.compile(r"\x1b\[[0-9;]*m")
TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("ab \n\t\x1b猫é\u0301👩\u200d\u202e\u200b"), max_size=60)


def words(text: str) -> Passage:
    """A passage with a span a word."""
    spans = [Span(match.start(), match.end(), chip) for chip, match in enumerate(re.finditer(r"\S+", text))]
    return Passage("", text, tuple(spans))


@st.composite
def passages(draw: st.DrawFn) -> Passage:
    text = draw(TEXTS)
    ends = st.integers(0, len(text))
    pairs = [sorted((draw(ends), draw(ends))) for _ in range(draw(st.integers(0, 4)))]
    spans = [Span(start, end, column) for column, (start, end) in enumerate(pairs)]
    return Passage(draw(st.sampled_from(["", "user"])), text, tuple(spans))


STRENGTHS = st.dictionaries(st.integers(0, 5), st.floats(-1, 1))


@given(passages(), STRENGTHS, st.integers(20, 60), st.booleans())
def test_lines_fit_and_carry_no_escapes_but_colours(
    passage: Passage, scores: dict[int, float], width: int, color: bool
) -> None:
    drawn = heat_map([passage], scores, Style(width, color, "dark"))
    bare = SGR.sub("", drawn)
    assert color or bare == drawn
    for line in bare.split("\n"):
        text = re.sub("[\u2068\u2069]", "", line)  # our own, around what runs from right to left
        assert visible(text) == text
        assert line.count("\u2068") == line.count("\u2069") <= 1
        assert display_width(line) <= width
    for line in drawn.split("\n"):
        codes = SGR.findall(line)
        assert not codes or codes[-1] == "\x1b[0m"  # no colour runs over the line's end


@given(TEXTS, st.integers(20, 60))
def test_no_text_is_lost(text: str, width: int) -> None:
    drawn = heat_map([Passage("", text, ())], {}, Style(width, color=False, theme="dark", fold=False))
    shown = "".join(visible(char) for char in text if char != "\n")
    assert re.sub(r"[\s\u2068\u2069]", "", drawn) == re.sub(r"\s", "", shown)


def test_wrapping_prefers_spaces() -> None:
    drawn = heat_map([words("one two three four five six seven eight nine")], {}, Style(20, color=False, theme="dark"))
    assert drawn == "  one two three four\n  five six seven\n  eight nine\n"


def test_wide_characters_wrap_without_spaces() -> None:
    drawn = heat_map([words("猫" * 25)], {}, Style(22, color=False, theme="dark"))
    assert drawn == f"  {'猫' * 10}\n  {'猫' * 10}\n  {'猫' * 5}\n"


def test_a_long_word_is_broken() -> None:
    assert heat_map([words("x" * 30)], {}, Style(22, color=False, theme="dark")) == f"  {'x' * 20}\n  {'x' * 10}\n"


def test_labels_make_a_margin() -> None:
    two = [Passage("system", "be brief", ()), Passage("user", "hello\nthere", ())]
    assert heat_map(two, {}, PLAIN) == "  system  be brief\n  user    hello\n          there\n"


def test_blocks_stand_under_their_words() -> None:
    drawn = heat_map([words("one 猫 three")], {0: 0.5, 1: 1.0}, PLAIN)
    assert drawn == "  one 猫 three\n  ▅▅▅ ██\n"


def test_blocks_below_zero_are_shades() -> None:
    assert heat_map([words("one two")], {0: 1.0, 1: -0.5}, PLAIN) == "  one two\n  ███ ▒▒▒\n"


def test_a_newlines_score_is_drawn() -> None:
    passage = Passage("", "a\nb", (Span(0, 1, 0), Span(1, 2, 1)))
    assert heat_map([passage], {0: 0.0, 1: 1.0}, PLAIN) == "  a↵\n   █\n  b\n"
    assert heat_map([passage], {0: 1.0, 1: 0.0}, PLAIN) == "  a\n  █\n  b\n"


def test_long_passages_are_folded() -> None:
    passage = words("\n".join(f"line{n}" for n in range(20)))
    scores = {4: 0.3, 5: 1.0, 7: 0.2}
    drawn = heat_map([passage], scores, PLAIN)
    folded = "lines below 25% of the strongest"
    assert drawn == f"  ⋯ 4 {folded}\n  line4\n  ▃▃▃▃▃\n  line5\n  █████\n  ⋯ 14 {folded}\n"
    assert "line19" in heat_map([passage], scores, Style(40, color=False, theme="dark", fold=False))


def test_text_without_a_score_is_hatched() -> None:
    hatched = frozenset({0})
    assert heat_map([words("one two")], {1: 1.0}, PLAIN, hatched) == "  one two\n  ╱╱╱ ███\n"
    assert "\x1b[2mone\x1b[0m" in heat_map([words("one two")], {1: 1.0}, COLOR, hatched)


@pytest.mark.parametrize("scores", [{}, {0: 0.0}, {7: 1.0}])
def test_nothing_to_colour(scores: Mapping[int, float]) -> None:
    assert heat_map([words("one two")], scores, COLOR) == "  one two\n".replace("  one", "\x1b[2m  \x1b[0mone")


def test_colours_by_sign_and_strength() -> None:
    drawn = heat_map([words("one two three")], {0: 1.0, 1: -1.0, 2: 0.5}, COLOR)
    backgrounds = re.findall(r"48;2;(\d+);(\d+);(\d+)m(\w+)", drawn)
    assert [text for *_, text in backgrounds] == ["one", "two", "three"]
    (r1, _, b1), (r2, _, b2), _ = [tuple(map(int, rgb)) for *rgb, _ in backgrounds]
    assert r1 > b1  # orange for
    assert b2 > r2  # blue against


def test_legends() -> None:
    assert "░" not in legend(PLAIN, "scores", signed=False)
    assert "░▒▓ below 0" in legend(PLAIN, "scores", signed=True)
    assert "against" in legend(COLOR, "scores", signed=True)
    assert "against" not in legend(COLOR, "scores", signed=False)
