"""A self-contained web page of an explanation, which works offline.

Its HTML, CSS and JavaScript are in assets/. The data is embedded as JSON: the prompt and the answer as texts and chips,
and the pictures of all words (gradellm.pictures), so that the page draws numbers and computes none.
"""

from __future__ import annotations

import html
import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gradellm.explanation.queries import attribution_of
from gradellm.pictures.chips import canvas, completion_chip
from gradellm.pictures.document import PackedPictures, canvas_document, chip_document
from gradellm.pictures.picture import LEVELS, paint
from gradellm.pictures.stream import scored_words
from gradellm.rendering.colormap import ramp, readable_on

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gradellm.explanation.explanation import Explanation
    from gradellm.models import Token
    from gradellm.pictures.chips import Canvas, Chip
    from gradellm.pictures.picture import Scale
    from gradellm.rendering.colormap import Theme

__all__ = ["page", "repr_html", "shades"]

_PIS = (0.1, 0.3, 0.5)  # of the retention view
_MAX_RETENTION_CHIPS = 100_000  # of all words; more take seconds, and only the whole answer has the view then


def page(explanation: Explanation) -> str:
    """Return the page's HTML."""
    parts = {
        "title": html.escape(_title(explanation)),
        "style": f"{_asset('explanation.css')}\n{shades()}",
        "script": _asset("explanation.js"),
        "data": _embedded(page_data(explanation)),
    }
    text = _asset("explanation.html")
    for name, value in parts.items():
        text = text.replace(f"<!--{name}-->", value)
    return text


def repr_html(explanation: Explanation) -> str:
    """Return the page in a sandboxed iframe for notebooks, isolated from the notebook's styles and scripts."""
    return (
        f'<iframe srcdoc="{html.escape(page(explanation))}" title="{html.escape(_title(explanation))}" '
        'sandbox="allow-scripts" style="width:100%;height:32em;border:0" loading="lazy"></iframe>'
    )


def page_data(explanation: Explanation) -> dict[str, Any]:
    """Return the page's data as JSON-compatible values."""
    settings = explanation.provenance.attribution
    drawn_on = canvas(explanation.started)
    words = [word for word in scored_words(explanation.events()) if not word.is_special and word.text.strip()]
    own_chips = [completion_chip(word.tokens) for word in words]
    earlier = tuple(chip for chip in own_chips if chip is not None)
    numbers = iter(range(len(drawn_on.chips), len(drawn_on.chips) + len(earlier)))
    data: dict[str, Any] = {
        "model": explanation.provenance.model.name,
        "method": settings.method if settings else "",
        "preset": (settings.preset if settings else None) or "",
        "reason": (explanation.finished.reason if explanation.finished else None) or "",
        "words": [
            {"text": word.text.strip(), "chip": None if chip is None else next(numbers), "explained": bool(word.scores)}
            for word, chip in zip(words, own_chips, strict=True)
        ],
        "answer": list(_answer(explanation.tokens, [word.tokens for word in words])),
        "views": {},
    }
    data |= canvas_document(explanation.started, drawn_on)
    data["chips"] += [chip_document(chip) for chip in earlier]
    if any(word.scores for word in words):
        rows = [(word.scores, word.earlier) for word in words]
        whole = dict(enumerate(attribution_of(explanation)))
        data["views"] = _views(drawn_on, [(whole, earlier), *rows])
    return data


def _answer(tokens: Sequence[Token], words: Sequence[Sequence[Token]]) -> Iterator[str | int]:
    """Yield the answer as texts between words, and the indexes of words."""
    first_tokens = {word[0].index: index for index, word in enumerate(words)}
    inside: set[int] = set()
    for token in tokens:
        if token.index in first_tokens:
            index = first_tokens[token.index]
            text = "".join(part.text for part in words[index])
            inside = {part.index for part in words[index]}
            bare = text.strip()
            lead = text.index(bare)
            yield from (part for part in (text[:lead], index, text[lead + len(bare) :]) if part != "")
        elif token.text and token.index not in inside:
            yield token.text


def _views(drawn_on: Canvas, rows: Sequence[tuple[Mapping[int, float], tuple[Chip, ...]]]) -> dict[str, Any]:
    """Return the pictures of the whole answer and of each word, for each scale that the page offers."""
    num_chips = len(drawn_on.chips) + len(rows[0][1])
    scales: dict[str, tuple[Scale, float]] = {"excess": ("excess", 0.5), "raw": ("raw", 0.5)}
    if any(chip.columns for index, chip in enumerate(drawn_on.chips) if index != drawn_on.sink):
        scales |= {f"retention {pi:g}": ("retention", pi) for pi in _PIS}
    views = {}
    for name, (scale, pi) in scales.items():
        packed = PackedPictures(num_chips)
        some = rows if scale != "retention" or len(rows) * num_chips <= _MAX_RETENTION_CHIPS else rows[:1]
        for scores, earlier in some:
            packed.add(paint(drawn_on, scores, earlier, scale=scale, pi=pi))
        views[name] = packed.document()
    return views


def _embedded(data: object) -> str:
    """Return JSON that cannot end the script element around it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _title(explanation: Explanation) -> str:
    text = " ".join(explanation.text.split())
    return f"{text[:60]}{'…' if len(text) > 60 else ''}" or "An explanation"


@cache
def shades() -> str:
    """Return the colour scale as CSS classes for light and dark: f1.. for positive scores, a1.. for negative ones."""
    light, dark = ("\n".join(_shades_of(theme)) for theme in ("light", "dark"))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


def _shades_of(theme: Theme) -> Iterator[str]:
    for name, sign in (("f", 1), ("a", -1)):
        for level in range(1, LEVELS + 1):
            background = ramp(sign * level / LEVELS, theme)
            yield f".{name}{level}{{background:{_hex(background)};color:{_hex(readable_on(background))}}}"


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
