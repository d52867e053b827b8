"""Tracebacks for the log without exception messages, which may quote a prompt.

The stack is logged for every exception. The message is logged only for types whose messages are about the machine
(memory, files, shapes of tensors), and not about a request.
"""

from __future__ import annotations

import logging
import traceback
from types import TracebackType

SAFE_MESSAGE_TYPES = (OSError, MemoryError, RuntimeError)
MAX_MESSAGE_CHARACTERS = 500

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def redact(error: BaseException) -> str:
    """An exception's traceback without messages, after those of its causes."""
    parts: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        kind = f"{type(cause).__module__}.{type(cause).__qualname__}"
        message = f": {str(cause)[:MAX_MESSAGE_CHARACTERS]}" if isinstance(cause, SAFE_MESSAGE_TYPES) else ""
        parts.append("".join(traceback.format_tb(cause.__traceback__)) + f"{kind}{message}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\nwhich led to:\n".join(reversed(parts))


class RedactingFormatter(logging.Formatter):
    """A formatter whose tracebacks are redacted; the base class of all formatters here."""

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802  (logging's name)
        """See `logging.Formatter`."""
        return redact(ei[1]) if ei[1] is not None else ""
