"""The image of the scores: what its cells and labels are."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from client.explanation.conftest import explanation
from gradellm import Attribution, Explanation, InvalidExplanationError, PromptToken
from gradellm.explanation.plot import plot


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[Sequence[float]], float]]:
    """The cells of each image that is drawn and the lower end of its colours; the image is not rendered."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    drawn: list[tuple[Sequence[Sequence[float]], float]] = []
    imshow = Axes.imshow

    def note(axes: Axes, cells: Any, **settings: Any) -> Any:
        drawn.append((cells, settings["vmin"]))
        return imshow(axes, cells, **settings)

    monkeypatch.setattr(Axes, "imshow", note)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    return drawn


def test_rows_are_words_over_their_strongest_source(shares: list[Any]) -> None:
    """The template's token is no column; "purrs" has a row, because one of its two tokens has scores."""
    plot(explanation(), "png")
    ((cells, low),) = shares
    assert cells == [
        [1 / 3, 0.0, 1.0, 0.0],
        [0.0, -1.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
    assert low == -1


def test_colours_begin_at_zero_without_negative_scores(shares: list[Any]) -> None:
    loaded = explanation()
    plot(replace(loaded, attributions=loaded.attributions[:1]), "png")
    ((cells, low),) = shares
    assert (len(cells), low) == (1, 0)


def test_scores_that_are_not_finite_are_left_out(shares: list[Any]) -> None:
    loaded = explanation()
    row = replace(loaded.attributions[0], scores=(0.0, math.nan, 2.0, math.inf, 4.0, -math.inf))
    plot(replace(loaded, attributions=(row,)), "png")
    assert shares[0][0] == [[0.0, 1 / 3, 1.0, 0.0]]


def test_a_prompt_of_the_template_alone_is_refused() -> None:
    loaded = explanation()
    template = tuple(replace(token, role="template") for token in loaded.prompt_tokens)
    with pytest.raises(InvalidExplanationError, match="nothing to plot"):
        plot(replace(loaded, started=replace(loaded.started, prompt_tokens=template)), "png")


def labels(loaded: Explanation) -> list[str]:
    """The texts of an SVG, which matplotlib writes as comments beside their glyphs."""
    svg = plot(loaded, "svg").decode()
    ET.fromstring(svg)
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", svg)]


def test_labels_are_short_and_visible() -> None:
    """Control characters are visible, and long labels are cut."""
    text = "$x$\x1b " + "y" * 30
    loaded = explanation()
    tokens = (PromptToken(1, text[:5], 0, 5, "user", None, "", False),
              PromptToken(2, text[5:], 5, len(text), "user", None, "", False))  # fmt: skip
    started = replace(loaded.started, prompt_text=text, prompt_tokens=tokens)
    found = labels(Explanation(started, loaded.tokens, (Attribution(0, (1.0, 2.0), (), 50, None),), None))
    assert "$x$^[" in found
    assert "y" * 17 + "…" in found
    assert "fake, grad_ellm (paper)" in found


def test_many_sources_are_counted_instead_of_labelled() -> None:
    count = 81
    loaded = explanation()
    tokens = tuple(PromptToken(i, " ab", 3 * i, 3 * i + 3, "user", None, "", False) for i in range(count))
    started = replace(loaded.started, prompt_text=" ab" * count, prompt_tokens=tokens)
    found = labels(Explanation(started, loaded.tokens, (Attribution(0, (1.0,) * count, (), 50, None),), None))
    assert "81 words of the prompt" in found
    assert "ab" not in found


def test_words_without_scores_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    labels: list[str] = []
    monkeypatch.setattr(Axes, "set_ylabel", lambda self, text, **_: labels.append(text))
    loaded = explanation()
    plot(replace(loaded, attributions=loaded.attributions[:1]), "svg")
    plot(loaded, "svg")
    assert [label for label in labels if "words" in label] == ["1 of 3 words; the others are not explained"]
