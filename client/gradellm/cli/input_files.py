"""Files of the prompt: --tools and --document."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradellm.errors import InvalidRequestError
from gradellm.serialization import MalformedError, from_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["FLAGS", "add_flags", "read_tools", "with_documents"]

MAX_BYTES = 8 << 20
FLAGS = ("tools", "document")


def add_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags to a parser's group."""
    group.add_argument(
        "--tools",
        metavar="FILE",
        help="tools that the model may call: a JSON list in OpenAI's form, shown by the chat template; implies --chat",
    )
    group.add_argument(
        "--document",
        type=_document,
        action="append",
        metavar="NAME=FILE",
        help="put this text file before PROMPT, under its name, as a segment that --citations cites; repeatable",
    )


def read_tools(path: str) -> list[Any]:
    """Return the tools in a file. Raises InvalidRequestError for other content."""
    try:
        tools = from_json(_read("tools", path))
    except MalformedError as error:
        raise InvalidRequestError.of("tools", f"{path}: {error}") from error
    if not isinstance(tools, list) or not tools:
        raise InvalidRequestError.of("tools", f"{path} must have a JSON list of at least one tool")
    return tools


def with_documents(prompt: str, documents: Sequence[tuple[str, str]]) -> tuple[str, dict[str, tuple[int, int]]]:
    """Return a prompt after its documents, given as names and files; and the documents' places.

    Raises InvalidRequestError for a file that is empty or no text, and for two documents of one name.
    """
    text, places = "", {}
    for name, path in documents:
        if name in places:
            raise InvalidRequestError.of("document", f"{name} names two documents: choose another name")
        try:
            content = _read("document", path).decode().strip()
        except UnicodeDecodeError as error:
            raise InvalidRequestError.of("document", f"{path} is not UTF-8 at byte {error.start}") from error
        if not content:
            raise InvalidRequestError.of("document", f"{path} is empty")
        text += f"{name}:\n"
        places[name] = (len(text), len(text) + len(content))
        text += f"{content}\n\n"
    return text + prompt, places


def _read(flag: str, path: str) -> bytes:
    """Return a file's bytes, at most `MAX_BYTES`."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidRequestError.of(flag, f"{path} cannot be read: {why}") from error
    if len(content) > MAX_BYTES:
        raise InvalidRequestError.of(flag, f"{path} is larger than {MAX_BYTES:,} bytes, the limit")
    return content


def _document(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"([^=]+)=(.+)", text, re.DOTALL)
    if match is None:
        raise ArgumentTypeError(f"must be NAME=FILE, not {text!r}")
    return match[1], match[2]
