"""A question after its documents, which become named segments of the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradellm.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["with_documents"]


def with_documents(
    question: str, documents: Iterable[tuple[str, str]], field: str
) -> tuple[str, dict[str, tuple[int, int]]]:
    """Return a question after its documents, each below its name; and their places, in code points.

    `documents` are names and texts. Raises InvalidRequestError, naming `field`, for one without a name or text, and for
    two of one name.
    """
    text, places = "", {}
    for name, content in documents:
        content = content.strip()
        if not name:
            raise InvalidRequestError.of(field, "one has no name: name each document")
        if name in places:
            raise InvalidRequestError.of(field, f"{name} names two documents: choose another name")
        if not content:
            raise InvalidRequestError.of(field, f"{name} is empty")
        text += f"{name}:\n"
        places[name] = (len(text), len(text) + len(content))
        text += f"{content}\n\n"
    return text + question, places
