"""Many prompts from a file: `gradellm explain --batch FILE` and `gradellm attribute --batch FILE`.

A line of the file is a JSON object of the SDK's keywords, such as {"prompt": "Once"} or {"messages": [...], "seed": 1},
which override the command's flags. Explanations are written as JSON Lines in the file's order. An error is reported
with its line, and does not stop the other lines.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradellm.cli import options
from gradellm.errors import GradellmError, InvalidRequestError
from gradellm.evaluation.examples import DataError
from gradellm.rendering.terminal import visible
from gradellm.serialization import MalformedError, from_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from gradellm.client import Client
    from gradellm.explanation.explanation import Explanation

    Check = Callable[[Any, dict[str, Any]], object]

__all__ = ["add_flags", "print_error", "rows", "run"]

_SINGLE_PROMPT_FLAGS = (
    "prompt",
    "system",
    "prompt_ids",
    "segment",
    "tools",
    "document",
    "retention",
    "citations",
    "trace",
    "trace_by",
    "format",
    "completion",
    "completion_ids",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a batch of prompts."""
    group = parser.add_argument_group("many prompts")
    group.add_argument("--batch", metavar="FILE", help="one JSON object of keywords per line; - is standard input")
    group.add_argument(
        "--concurrency", type=int, default=4, metavar="N", help="requests in flight (default: %(default)s)"
    )


def run(
    args: argparse.Namespace,
    keywords: dict[str, Any],
    check: Check,
    send: Callable[[Client, dict[str, Any]], Explanation],
) -> int:
    """Explain all lines. Return 0, or 1 if some failed.

    Args:
        args: the parsed command line.
        keywords: defaults for all lines.
        check: raises InvalidRequestError for an invalid prompt or keywords.
        send: sends a request.
    """
    options.refuse_flags(args, [name for name in _SINGLE_PROMPT_FLAGS if hasattr(args, name)], "--batch")
    if args.concurrency < 1:
        raise InvalidRequestError.of("concurrency", f"must be 1 or more, not {args.concurrency}")
    if args.output is not None and Path(args.output).suffix != ".jsonl":
        raise InvalidRequestError.of("output", f"{args.output} must end in .jsonl with --batch")
    lines = list(rows(args.batch))
    for line, row in lines:
        try:
            request = {**keywords, **row}
            check(request.pop("prompt", None), request)
        except (InvalidRequestError, TypeError) as error:  # TypeError for an unknown keyword
            raise DataError(f"{args.batch}:{line}: {error}") from error
    failed = 0
    with options.connect(args) as client, ThreadPoolExecutor(args.concurrency) as pool:

        def explain(row: dict[str, Any]) -> Explanation | GradellmError:
            try:
                return send(client, {**keywords, **row})
            except GradellmError as error:
                return error

        with _writer(args.output) as write:
            for number, ((line, _), result) in enumerate(
                zip(lines, pool.map(explain, [row for _, row in lines]), strict=True), 1
            ):
                if isinstance(result, GradellmError):
                    failed += 1
                    print_error(f"{args.batch}:{line}: {result}")
                else:
                    write(result.to_json() + "\n")
                if sys.stderr.isatty():
                    sys.stderr.write(f"\r{number} of {len(lines)}, {failed} failed\033[K")
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    if args.output is not None:
        print(f"{args.output} written: {len(lines) - failed} explanations, {failed} failed", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def _writer(path: str | None) -> Iterator[Callable[[str], object]]:
    """Return the write function of a file that is replaced atomically, or of standard output."""
    if path is None:
        yield sys.stdout.write
        return
    part = Path(path).with_name(f".{Path(path).name}.part")
    try:
        file = part.open("w", encoding="utf-8")
    except OSError as error:
        raise InvalidRequestError.of("output", f"{path} cannot be written: {error.strerror}") from error
    try:
        with file:
            yield file.write
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def rows(path: str, example: str = '{"prompt": "Once"}') -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON Lines file with their line numbers, from 1.

    `example` is one, for the DataError that is raised for another line.
    """
    try:
        text = sys.stdin.buffer.read().decode() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"{path} cannot be read: {why}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = from_json(line)
        except MalformedError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: must be an object, such as {example}")
        yield number, row


def print_error(text: str) -> None:
    """Print a line on standard error, in place of a progress line."""
    lead = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{lead}{visible(text)}", file=sys.stderr, flush=True)
