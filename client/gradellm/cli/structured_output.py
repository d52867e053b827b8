"""The flags of structured output: --schema, --json-object, --grammar, --regex and --choice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradellm.errors import InvalidRequestError

if TYPE_CHECKING:
    import argparse

__all__ = ["add_flags", "keywords"]

_MAX_BYTES = 1 << 20
_FLAGS = ("schema", "json_object", "grammar", "regex", "choice")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    group = parser.add_argument_group("structured output", "What the completion has to be; at most one of these flags.")
    group.add_argument("--schema", metavar="FILE", help="a JSON value that this JSON schema describes; - for stdin")
    group.add_argument("--json-object", action="store_true", default=None, help="any JSON object")
    group.add_argument("--grammar", metavar="FILE", help="a text of this grammar, in Lark's notation or GBNF")
    group.add_argument("--regex", metavar="REGEX", help="a text that this regular expression matches as a whole")
    group.add_argument("--choice", action="append", metavar="TEXT", help="one of these texts; repeatable")


def keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of the flags that are given; reads their files."""
    given = {name: value for name in _FLAGS if (value := getattr(args, name)) is not None}
    if "schema" in given:
        given["json_schema"] = _read("schema", given.pop("schema"))
    if "grammar" in given:
        given["grammar"] = _read("grammar", given["grammar"])
    return given


def _read(flag: str, path: str) -> str:
    """Return a file's text, at most _MAX_BYTES of it."""
    try:
        if path == "-":
            content = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        text = content.decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidRequestError.of(flag, f"{path} cannot be read: {reason}") from error
    if len(content) > _MAX_BYTES:
        raise InvalidRequestError.of(flag, f"{path} is larger than {_MAX_BYTES:,} bytes, the limit")
    return text
