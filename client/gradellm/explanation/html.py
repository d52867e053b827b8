"""A self-contained web page of an explanation, which works offline.

Its HTML, CSS and JavaScript are in assets/. The data is embedded as JSON: texts by token, and each row of scores as
16-bit integers relative to its largest, in base64, so that a million scores take less than three megabytes.
"""

from __future__ import annotations

import array
import base64
import html
import json
import math
import sys
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gradellm.explanation.queries import is_written, label_of
from gradellm.explanation.terminal_view import columns_by_token
from gradellm.explanation.words import characters
from gradellm.rendering.colormap import ramp, readable_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gradellm.explanation.explanation import Explanation
    from gradellm.models import Attribution
    from gradellm.rendering.colormap import Theme

__all__ = ["page", "repr_html", "shades"]

LEVELS = 24  # shades from 0 to the largest score
_MAX_INT16 = 32767


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
    firsts = [columns[0] for _, columns in explanation.drawn]
    words = [label_of(explanation, column, "word") for column in firsts]
    word_indexes = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return {
        "model": explanation.provenance.model.name,
        "method": settings.method if settings else "",
        "preset": (settings.preset if settings else None) or "",
        "reason": (explanation.finished.reason if explanation.finished else None) or "",
        "prompt": list(_prompt_pieces(explanation)),
        "segments": list(dict.fromkeys(t.segment for t in explanation.prompt_tokens if t.segment)),
        "tokens": [
            {
                "text": token.text,
                "index": token.index,
                "column": None if token.source_index is None else explanation.drawn_places[token.source_index],
            }
            for token in explanation.tokens
        ],
        "words": [word.token_indexes for word in explanation.words],
        "columns": [
            {"label": label, "written": is_written(explanation, first), "word": word_indexes[word]}
            for (label, _), first, word in zip(explanation.drawn, firsts, words, strict=True)
        ],
        "promptWords": [word if isinstance(word, str) else word[0] for word in word_indexes],
        "rows": [_packed(explanation, row) for row in explanation.attributions],
    }


def _prompt_pieces(explanation: Explanation) -> Iterator[dict[str, Any]]:
    """Yield the prompt's text in spans, usually one per token, with every character once."""
    columns = columns_by_token(explanation.started)
    end = 0
    for part in characters(explanation.prompt_text, explanation.prompt_tokens):
        token = explanation.prompt_tokens[part.token_indexes[-1]]
        if part.start > end:  # text that no token covers
            yield {"text": explanation.prompt_text[end : part.start], "columns": [], "role": "template"}
        end = max(end, part.end)
        indexes = [column for index in part.token_indexes for column in columns.get(index, ())]
        drawn = dict.fromkeys(explanation.drawn_places[column] for column in indexes)
        piece: dict[str, Any] = {"text": part.text, "columns": [*drawn], "role": token.role}
        if token.special:
            piece["role"] = "template"
        if token.message is not None:
            piece["message"] = token.message
        if token.segment:
            piece["segment"] = token.segment
        yield piece


def _packed(explanation: Explanation, row: Attribution) -> dict[str, Any]:
    """Return a row as 16-bit integers relative to its largest score; NaN and infinities become 0."""
    scores = [score if math.isfinite(score) else 0.0 for score in row.scores]
    columns = row.source_indexes
    if len(explanation.drawn) < len(explanation.sources):  # some columns are drawn together
        sums: dict[int, float] = {}
        for column, score in zip(columns or range(len(scores)), scores, strict=True):
            index = explanation.drawn_places[column]
            sums[index] = sums.get(index, 0.0) + score
        columns, scores = tuple(sums) if columns else (), [*sums.values()]
    peak = max(map(abs, scores), default=0.0)
    packed: dict[str, Any] = {
        "token": row.token_index,
        "peak": peak,
        "scores": _base64("h", [round(_MAX_INT16 * score / peak) if peak else 0 for score in scores]),
    }
    if columns:
        packed["columns"] = _base64("i", columns)
    return packed


def _base64(kind: str, numbers: list[int] | tuple[int, ...]) -> str:
    packed = array.array(kind, numbers)
    if sys.byteorder == "big":
        packed.byteswap()  # typed arrays of browsers are little-endian
    return base64.b64encode(packed.tobytes()).decode()


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
