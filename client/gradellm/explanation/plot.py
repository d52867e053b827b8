"""The pictures of all words as an image: a row per word of the completion, a column per source. Needs matplotlib."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from gradellm.errors import InvalidExplanationError
from gradellm.pictures.chips import canvas
from gradellm.pictures.picture import paint
from gradellm.pictures.stream import scored_words
from gradellm.rendering.colormap import ramp
from gradellm.rendering.terminal import visible

if TYPE_CHECKING:
    from gradellm.explanation.explanation import Explanation

__all__ = ["plot"]

_MAX_LABELS = 80  # rows or columns that are labelled individually
_CELL_INCHES = 0.19
_MAX_LABEL_LENGTH = 18  # characters
_SHADES = 128


def plot(explanation: Explanation, form: str) -> bytes:
    """Plot a matrix as "png" or "svg": for each word of the completion how strongly its picture colours each source.

    Raises InvalidExplanationError if no word was explained.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    drawn_on = canvas(explanation.started)
    words = [word for word in scored_words(explanation.events()) if word.scores and word.text.strip()]
    columns = [*drawn_on.chips, *max((word.earlier for word in words), key=len, default=())]
    if not columns or not words:
        raise InvalidExplanationError("there is nothing to plot: no word was explained")
    rows = [list(paint(drawn_on, word.scores, word.earlier).strengths) for word in words]
    rows = [row + [0.0] * (len(columns) - len(row)) for row in rows]
    is_signed = any(strength < 0 for row in rows for strength in row)
    low = -1 if is_signed else 0
    shades = [ramp(low + (1 - low) * i / (_SHADES - 1), "light") for i in range(_SHADES)]
    size = [
        3 + _CELL_INCHES * min(len(columns), 3 * _MAX_LABELS),
        1.9 + _CELL_INCHES * min(len(words), 2 * _MAX_LABELS),
    ]
    figure = Figure(figsize=(size[0], size[1]), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        rows,
        cmap=ListedColormap([tuple(part / 255 for part in shade) for shade in shades]),
        vmin=low,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
    )
    if len(columns) <= _MAX_LABELS:
        labels = [_label(chip.text) for chip in columns]
        axes.set_xticks(range(len(columns)), labels, rotation=90, fontsize=8, parse_math=False)
    else:
        axes.set_xlabel(f"{len(columns):,} words of the prompt")
    if len(words) <= _MAX_LABELS:
        axes.set_yticks(range(len(words)), [_label(word.text) for word in words], fontsize=8, parse_math=False)
    num_words = len(explanation.words)
    if len(words) < num_words:
        axes.set_ylabel(f"{len(words):,} of {num_words:,} words; the others are not explained")
    elif len(words) > _MAX_LABELS:
        axes.set_ylabel(f"{len(words):,} words")
    settings = explanation.provenance.attribution
    method = "" if settings is None else f", {settings.method}{f' ({settings.preset})' if settings.preset else ''}"
    axes.set_title(_label(f"{explanation.provenance.model.name}{method}", 80), fontsize=9, parse_math=False)
    figure.colorbar(image, ax=axes, label="what exceeds the row’s median, over its strongest", shrink=0.8)
    image_file = BytesIO()
    figure.savefig(image_file, format=form, dpi=150)
    return image_file.getvalue()


def _label(text: str, max_length: int = _MAX_LABEL_LENGTH) -> str:
    bare = visible(text.strip()) or "␣"
    return bare if len(bare) <= max_length else f"{bare[: max_length - 1]}…"
