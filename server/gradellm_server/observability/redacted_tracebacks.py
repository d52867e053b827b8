"""Tracebacks for the log, without what was worked on: an exception's own words may quote a prompt.

Where it happened is told for every exception. Its words are told only for kinds that speak of machines: of memory, of
files, of tensors' shapes.
"""

from __future__ import annotations

import logging
import traceback
from types import TracebackType

SPEAK_OF_MACHINES = (OSError, MemoryError, RuntimeError)
MAX_WORDS = 500

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def without_words(error: BaseException) -> str:
    """A traceback, with those of its causes before it."""
    parts: list[str] = []
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        kind = type(each)
        words = f": {str(each)[:MAX_WORDS]}" if isinstance(each, SPEAK_OF_MACHINES) else ""
        parts.append("".join(traceback.format_tb(each.__traceback__)) + f"{kind.__module__}.{kind.__qualname__}{words}")
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return "\nwhich led to:\n".join(reversed(parts))


class WithoutWords(logging.Formatter):
    """Beneath a formatter: tracebacks as above."""

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802  (logging's name)
        """The traceback of a record."""
        return without_words(ei[1]) if ei[1] is not None else ""
