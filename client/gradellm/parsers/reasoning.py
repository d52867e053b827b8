"""Parsers of reasoning: the text of a model before its answer, up to </think>."""

from __future__ import annotations

from gradellm.parsers.base import MarkerMatch

__all__ = ["ReasoningParser"]

OPENING, CLOSING = "<think>", "</think>"


class ReasoningParser:
    """Splits the beginning of an answer into reasoning and the rest.

    Args:
        is_open: whether the answer begins inside of reasoning, as the prompt opens it, or as the model never does. An
            opening tag may come all the same.
        ends: texts that end reasoning as they begin the rest, such as the marker of a call.
    """

    def __init__(self, *, is_open: bool, ends: tuple[str, ...] = ()) -> None:
        self._is_open = is_open
        self._opening: MarkerMatch | None = MarkerMatch(OPENING)  # None once the beginning is read
        self._space: list[str] = []  # before the opening tag
        self._inside = MarkerMatch(CLOSING, *ends)
        self._position = 0
        self.is_over = False
        """Whether all that follows is the rest."""
        self.span = (0, 0)
        """Of the reasoning with its tags, in the completion's text."""

    def push(self, text: str) -> tuple[str, str]:
        """Read the next piece of the text; return the reasoning in it, and the rest."""
        reasoning: list[str] = []
        for index, character in enumerate(text):
            self._position += 1
            if self._opening is not None:
                rest = self._begin(character, self._opening)
                if self.is_over:
                    return "".join(reasoning), rest + text[index + 1 :]
                if rest:
                    reasoning += [each for part in rest if (each := self._read(part))]
            else:
                reasoning.append(self._read(character))
            if self.is_over:
                return "".join(reasoning), self._rest + text[index + 1 :]
        return "".join(reasoning), ""

    def finish(self) -> tuple[str, str]:
        """End the text: reasoning that is not closed ends with it."""
        if self.is_over:
            return "", ""
        self.is_over = True
        if self._opening is not None:
            held = f"{''.join(self._space)}{self._opening.flush()}"
            self.span = (0, self._position if self._is_open else 0)
            return (held, "") if self._is_open else ("", held)
        self.span = (self.span[0], self._position)
        return self._inside.flush(), ""

    def _begin(self, character: str, opening: MarkerMatch) -> str:
        """Read a character before or in the opening tag; return text that is none, and belongs to what follows."""
        if character.isspace() and not opening.held:
            self._space.append(character)
            return ""
        free, marker = opening.push(character)
        if marker:
            self._opening = None
            return ""
        if not free:
            return ""
        self._opening = None
        self.is_over = not self._is_open
        return f"{''.join(self._space)}{free}{opening.flush()}"

    _rest = ""

    def _read(self, character: str) -> str:
        """Read a character of the reasoning."""
        free, marker = self._inside.push(character)
        if marker:
            self.is_over = True
            self._rest = "" if marker == CLOSING else marker
            self.span = (0, self._position - len(self._rest))
        return free
