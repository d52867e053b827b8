"""Draws a stream of events on a terminal: for each word of the completion, the prompt as a heat map.

A word's row is the sum of its tokens' rows. The chat template and special tokens are folded: each word's line has
their share of the scores. Special tokens of the completion are not drawn.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from gradellm.errors import InvalidExplanationError
from gradellm.pictures.chips import canvas
from gradellm.pictures.picture import paint
from gradellm.pictures.stream import WordStream
from gradellm.rendering.heatmap import Passage, Span, heat_map, legend
from gradellm.rendering.terminal import isolated, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gradellm.models import Event, Finished, Started, Token
    from gradellm.pictures.chips import Chip
    from gradellm.pictures.picture import Picture, Scale
    from gradellm.pictures.stream import ScoredWord
    from gradellm.rendering.terminal import Style

__all__ = ["draw", "draw_retention"]

_MEANINGS: Mapping[Scale, str] = {
    "excess": "excess over the median",
    "raw": "raw scores",
}
_MIN_FOLDED_SHARE = 0.005  # a smaller one is not worth a word


def draw(events: Iterable[Event], style: Style, scale: Scale = "excess") -> Iterator[str]:
    """Draw the events of a stream as they arrive. Yields text for the terminal."""
    drawing: _Drawing | None = None
    for event in events:
        if event.started is not None:
            drawing = _Drawing(event.started, style, scale)
        elif drawing is not None:
            yield from drawing.take(event)
    if drawing is not None:
        yield from drawing.end()


def draw_retention(started: Started, scores: Mapping[int, float], pi: float, style: Style) -> str:
    """Draw the prompt with the keep probability of each token, as in the paper's figures 3 to 6.

    Raises InvalidExplanationError if there is not one score per token, or pi is not between 0 and 1.
    """
    if started.sources:
        raise InvalidExplanationError("retention needs one score per token: explain with resolution='token'")
    drawn_on = canvas(started, "token")
    picture = paint(drawn_on, scores, scale="retention", pi=pi)
    strengths = dict(enumerate(picture.strengths))
    expected = sum(picture.strengths)
    title = f"keep probabilities; {expected:.1f} of {round(expected / pi)} tokens expected"
    drawing = heat_map(_prompt_passages(started, drawn_on.chips), strengths, style, _hatched(drawn_on.sink))
    return f"{style.bold(f'π = {pi:g}')}  {style.dim(title)}\n{drawing}"


class _Drawing:
    """The state of drawing one stream."""

    def __init__(self, started: Started, style: Style, scale: Scale) -> None:
        self.style = style
        self.scale: Scale = scale
        self.settings = started.provenance.attribution
        self.canvas = canvas(started)
        self.prompt = tuple(_prompt_passages(started, self.canvas.chips))
        self.words = WordStream(self.settings)
        self.not_selected: list[Token] = []  # of words without a selected token; they share a line
        self.drawn: list[Token] = []
        self.num_words = 0
        self.num_explained = 0
        self.signed = False
        self.finished: Finished | None = None

    def take(self, event: Event) -> Iterator[str]:
        if event.finished is not None:
            self.finished = event.finished
        if event.token is not None and self.settings is None:
            self.drawn.append(event.token)
            yield "\n".join(map(visible, event.token.text.split("\n")))  # without labels
        else:
            yield from map(self._draw_word, self.words.add(event))

    def end(self) -> Iterator[str]:
        yield from map(self._draw_word, self.words.end())
        yield self._draw_not_selected()
        if self.settings is None:
            yield "\n"
        elif self.num_words > 1:
            yield f"{self.style.dim('in full:')} {_answer(self.drawn)}\n\n"
        if self.num_explained:
            yield legend(self.style, _MEANINGS[self.scale], signed=self.signed)
            if self.canvas.sink is not None:
                label = isolated(visible(self.canvas.chips[self.canvas.sink].text))
                yield self.style.dim(f"╱ the first token, “{label}”, is not scored: it is an attention sink") + "\n"
        if self.finished is not None:
            yield self.style.dim(_summary(self.finished)) + "\n"

    def _draw_word(self, word: ScoredWord) -> str:
        drawn = tuple(self.drawn)
        self.drawn += word.tokens
        if word.is_special:
            return ""  # such as an end of turn, which the summary mentions
        self.num_words += 1
        if self.settings is not None and not any(self.settings.explains(token.index) for token in word.tokens):
            self.not_selected += word.tokens
            return ""
        before, name = self._draw_not_selected(), self._name(word.tokens)
        if not word.scores:
            return f"{before}{name}  {self.style.dim('not explained')}\n\n"
        self.num_explained += 1
        picture = paint(self.canvas, word.scores, word.earlier, scale=self.scale)
        self.signed = self.signed or any(strength < 0 for strength in picture.strengths)
        passages = (*self.prompt, *_completion_passages(word.earlier, drawn, len(self.canvas.chips)))
        strengths = dict(enumerate(picture.strengths))
        drawing = heat_map(passages, strengths, self.style, _hatched(self.canvas.sink))
        return f"{before}{name}  {self.style.dim(_top(picture))}\n{drawing}\n"

    def _draw_not_selected(self) -> str:
        """Return the words since the last drawn one that are not selected, in a line."""
        words, self.not_selected = self.not_selected, []
        return f"{self._name(words)}  {self.style.dim('not selected')}\n\n" if words else ""

    def _name(self, tokens: Sequence[Token]) -> str:
        text = "".join(token.text for token in tokens)
        return self.style.bold(isolated(visible(text.strip() or text or "(a token without text)")))


def _hatched(sink: int | None) -> frozenset[int]:
    return frozenset() if sink is None else frozenset({sink})


def _prompt_passages(started: Started, prompt: Sequence[Chip]) -> Iterator[Passage]:
    """Yield one passage per message, or one for a raw prompt."""
    for message, group in groupby(enumerate(prompt), key=lambda pair: pair[1].message):
        chips = [(index, chip) for index, chip in group if chip.end > chip.start]
        if not chips:
            continue
        start, end = chips[0][1].start, max(chip.end for _, chip in chips)
        spans = tuple(Span(chip.start - start, chip.end - start, index) for index, chip in chips)
        yield Passage("" if message is None else chips[0][1].role, started.prompt_text[start:end], spans)


def _completion_passages(earlier: Sequence[Chip], drawn: Sequence[Token], num_before: int) -> Iterator[Passage]:
    """Yield the completion so far, if it is scored; its chips come after `num_before` of the prompt."""
    if earlier:
        offset = drawn[0].start  # of a completion that begins with forced tokens
        spans = tuple(
            Span(chip.start - offset, chip.end - offset, num_before + index) for index, chip in enumerate(earlier)
        )
        yield Passage("so far", "".join(token.text for token in drawn), spans)


def _top(picture: Picture) -> str:
    """Say which words a picture's selection was drawn from, and what is folded."""
    named = []
    for index in picture.top():
        chip = picture.chips[index]
        text = isolated(visible(chip.text.strip() or chip.text))
        place = f" ({isolated(visible(chip.place))})" if chip.place else ""
        against = " against" if picture.strengths[index] < 0 else ""
        named.append(f"“{text}”{place} {picture.shares[index]:.0%}{against}")
    folded = f" · template {picture.folded_share:.0%}"
    sentence = f"drawn from {', '.join(named)}" if named else "nothing stands out"
    return sentence + (folded if picture.folded_share >= _MIN_FOLDED_SHARE else "")


def _answer(tokens: list[Token]) -> str:
    text = "".join(token.text for token in tokens).strip()
    return "\n".join(isolated(visible(line)) for line in text.split("\n"))


def _summary(finished: Finished) -> str:
    reason = {
        "end_of_text": "the model ended its turn",
        "stop_text": f"met the stop text {isolated(visible(finished.stop))}",
        "stop_token": "met a stop token",
        "max_new_tokens": "reached max_new_tokens",
        "end_of_completion": "the whole completion",
    }.get(finished.reason or "", "ended")
    timings = finished.timings
    seconds = timings.queue_seconds + timings.prefill_seconds + timings.decode_seconds + timings.attribution_seconds
    count = finished.usage.completion_tokens
    return f"{count} token{'' if count == 1 else 's'}, {reason}, {seconds:.2f} s"
