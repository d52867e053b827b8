"""The numbers of one picture: how strongly each chip is coloured, shares, and what is folded. Pure functions.

On real models scores are spread: with the paper's preset the largest word of a prompt often has two per cent, and half
of all scores lie on the chat template. A picture of raw scores is nearly even then. By default a chip is coloured by
what its score exceeds the median of the chips by: even scores have no colour, however large they are.

1. A chip's value is the largest of its tokens' scores by magnitude, so that words of many tokens do not win by their
   number, and a full stop does not weaken the word before it. With scores by word or segment it is the mean.
2. Excess over the median of the chips' values, on the side of 0 that the value is on, where it is at least a fifth of
   the largest; or the value itself ("raw").
3. Strength: divided by the largest by magnitude, -1 to 1. Below 0: against the selection.
4. Share: the magnitude divided by the sum over all chips, so that shares add up to 1.
5. Folded: the share of all scores that lies on the chat template and the attention sink, which have no chip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal, get_args

from gradellm.errors import InvalidExplanationError
from gradellm.explanation.retention import retention_probs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gradellm.pictures.chips import Canvas, Chip

__all__ = ["LEVELS", "Picture", "Scale", "WordScore", "excess", "level", "paint"]

Scale = Literal["excess", "raw", "retention"]
"""What the colours stand for: the excess over the median, raw scores, or keep probabilities at a retention share."""
WordScore = Literal["mean", "max", "sum"]
"""How the scores of a word's tokens make the word's value."""
LEVELS = 24  # shades from 0 to the strongest
MIN_STRENGTH = 0.2  # of the strongest excess; weaker chips have no colour
_MIN_CHIPS = 3  # that a median needs
DEFAULT_PI = 0.3
_NUM_TOP = 3


@dataclass(frozen=True, slots=True)
class Picture:
    """What a picture of one selection of the completion shows. All tuples are aligned with `chips`."""

    chips: tuple[Chip, ...]
    """The words of the prompt, then those of the completion before the selection if they are scored."""
    values: tuple[float, ...]
    """Raw scores of the chips; 0 for those without."""
    strengths: tuple[float, ...]
    """-1 to 1; the strongest chip has 1 or -1. 0 for a chip without colour. With scale "retention" the keep
    probabilities, 0 to 1."""
    shares: tuple[float, ...]
    """0 to 1: of all colour. They add up to 1, or are all 0 where nothing stands out."""
    scale: Scale
    median: float
    """Of the values; 0 for fewer than three chips."""
    folded_share: float
    """0 to 1: the share of the scores' magnitudes that lies on the template and the sink."""
    pi: float | None = None
    """With scale "retention": the mean of the keep probabilities."""

    @property
    def levels(self) -> tuple[int, ...]:
        """The shade of each chip, -24 to 24; 0 for a chip without colour."""
        return tuple(level(strength) for strength in self.strengths)

    def top(self, n: int = _NUM_TOP) -> tuple[int, ...]:
        """Return the indexes of the n strongest chips that have a colour, strongest first, ties in text order."""
        coloured = [index for index, strength in enumerate(self.strengths) if strength]
        return tuple(sorted(coloured, key=lambda index: (-abs(self.strengths[index]), index))[:n])

    def segments(self) -> tuple[tuple[str, float], ...]:
        """Return each segment with its share of all colour, in text order; "" for the rest. They add up to 1."""
        shares: dict[str, float] = {}
        for chip, share in zip(self.chips, self.shares, strict=True):
            shares[chip.segment] = shares.get(chip.segment, 0.0) + share
        rest = shares.pop("", 0.0)
        return (*shares.items(), ("", rest))


def level(strength: float) -> int:
    """Return the shade of a strength, -24 to 24."""
    return round(strength * LEVELS)


def paint(
    canvas: Canvas,
    scores: Mapping[int, float],
    completion: Sequence[Chip] = (),
    *,
    scale: Scale = "excess",
    word_score: WordScore | None = None,
    pi: float = DEFAULT_PI,
) -> Picture:
    """Make a picture.

    Args:
        canvas: the prompt's chips.
        scores: of one selection, by column; columns that are missing have none.
        completion: chips of the completion before the selection.
        scale: what colours stand for.
        word_score: how the scores of a word's tokens make its value; None for "max" where tokens have scores, else
            "mean".
        pi: with scale "retention": the mean of the keep probabilities, between 0 and 1.

    Raises:
        InvalidExplanationError: for an unknown scale or word score; "max" of scores that are not by token; a retention
            that is undefined.
    """
    has_token_scores = not any(chip.num_tokens > len(chip.columns) > 0 for chip in canvas.chips)
    word_score = word_score or ("max" if has_token_scores else "mean")
    _check(scale, word_score, has_token_scores)
    chips = (*canvas.chips, *completion)
    values = [_value(chip, scores, word_score) for chip in chips]
    if canvas.sink is not None:
        values[canvas.sink] = 0.0
    shown = [index for index, chip in enumerate(chips) if chip.columns and index != canvas.sink]
    middle = median(values[index] for index in shown) if len(shown) >= _MIN_CHIPS else 0.0
    amounts = [0.0] * len(chips)
    if scale == "retention":
        user = [index for index in shown if chips[index].role == "user"] or shown
        for index, prob in zip(user, retention_probs([values[i] for i in user], pi), strict=True):
            amounts[index] = prob
        strengths = amounts
    else:
        for index in shown:
            amounts[index] = excess(values[index], middle) if scale == "excess" else values[index]
        if scale == "excess":
            amounts = _without_faint(amounts)
        peak = max(map(abs, amounts), default=0.0)
        strengths = [amount / peak if peak else 0.0 for amount in amounts]
    return Picture(
        chips,
        tuple(values),
        tuple(strengths),
        tuple(_shares(amounts)),
        scale,
        middle,
        _folded_share(canvas, scores),
        pi if scale == "retention" else None,
    )


def _check(scale: Scale, word_score: WordScore, has_token_scores: bool) -> None:
    if scale not in get_args(Scale):
        raise InvalidExplanationError(f"scale: must be one of {', '.join(get_args(Scale))}, not {scale!r}")
    if word_score not in get_args(WordScore):
        raise InvalidExplanationError(
            f"word_score: must be one of {', '.join(get_args(WordScore))}, not {word_score!r}"
        )
    if word_score == "max" and not has_token_scores:
        raise InvalidExplanationError("word_score: max needs a score per token: explain with resolution='token'")


def _value(chip: Chip, scores: Mapping[int, float], word_score: WordScore) -> float:
    """Return a chip's value; scores that are not finite count as 0."""
    found = [score for column in chip.columns if math.isfinite(score := scores.get(column, 0.0))]
    if not found:
        return 0.0
    if word_score == "max":
        return max(found, key=abs)
    total = math.fsum(found)
    return total / chip.num_tokens if word_score == "mean" else total


def excess(value: float, middle: float) -> float:
    """Return what of a value exceeds the median, on the side of 0 that the value is on; else 0."""
    if value >= 0:
        return max(0.0, value - max(0.0, middle))
    return min(0.0, value - min(0.0, middle))


def _without_faint(amounts: Sequence[float]) -> list[float]:
    """Return amounts with 0 for those below MIN_STRENGTH of the largest magnitude."""
    least = MIN_STRENGTH * max(map(abs, amounts), default=0.0)
    return [amount if abs(amount) >= least else 0.0 for amount in amounts]


def _shares(amounts: Sequence[float]) -> list[float]:
    total = math.fsum(map(abs, amounts))
    return [abs(amount) / total if total else 0.0 for amount in amounts]


def _folded_share(canvas: Canvas, scores: Mapping[int, float]) -> float:
    """Return the share of all scores' magnitudes on the template and the sink."""
    folded = canvas.template_columns
    if canvas.sink is not None:
        folded |= {*canvas.chips[canvas.sink].columns}
    finite = {column: abs(score) for column, score in scores.items() if math.isfinite(score)}
    total = math.fsum(finite.values())
    return math.fsum(score for column, score in finite.items() if column in folded) / total if total else 0.0
