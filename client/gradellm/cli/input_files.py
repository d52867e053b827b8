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
    from collections.abc import Iterator, Sequence

__all__ = ["FLAGS", "add_flags", "read_documents", "read_tools"]

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


def read_documents(documents: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of documents, given as names and files. Raises InvalidRequestError for other files."""
    for name, path in documents:
        try:
            yield name, _read("document", path).decode()
        except UnicodeDecodeError as error:
            raise InvalidRequestError.of("document", f"{path} is not UTF-8 at byte {error.start}") from error


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
