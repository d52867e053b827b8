"""`gradellm verify`: compute stored explanations again, and tell what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gradellm.cli import options
from gradellm.errors import InvalidExplanationError
from gradellm.files import load, read_jsonl
from gradellm.terminal import visible
from gradellm.verifying import Verdict, compared, replay_keywords

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from gradellm.explanation import Explanation

__all__ = ["add_parser", "run"]

DIFFERS = 1  # as `cmp` and `diff` have it
_EXAMPLES = """\
  gradellm explain "Once upon a time" --format json > story.json
  gradellm verify story.json
  gradellm verify audit.jsonl --target localhost:50051 --tolerance 1e-5 --json
"""


def add_parser(commands: options.SubParsers) -> None:
    """Add the command."""
    summary = "compute stored explanations again, and tell what differs"
    parser = options.add_command(commands, "verify", summary, _EXAMPLES, "FILE [FILE ...] [flags]")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .json, .jsonl or .safetensors file")
    parser.add_argument(
        "--tolerance",
        type=_share,
        metavar="T",
        default=Verdict.__dataclass_fields__["tolerance"].default,
        help="largest difference of a score, relative to its row's largest (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON an explanation")
    options.add_server(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify, and return 0 where all hold."""
    stored = list(_stored(args.files))
    if not stored:
        raise InvalidExplanationError(f"{', '.join(args.files)}: there are no explanations")
    asked = []
    for name, explanation in stored:
        try:
            asked.append((name, explanation, replay_keywords(explanation)))
        except InvalidExplanationError as error:
            raise InvalidExplanationError(f"{name}: {error}") from error
    holds = True
    with options.connected(args) as client:
        for name, explanation, keywords in asked:
            again = client.attribute(**keywords, **options.given(args, "timeout"))
            verdict = compared(explanation, again, args.tolerance)
            holds &= verdict.holds
            print(json.dumps({"file": name, **verdict.to_plain()}) if args.json else _told(name, verdict), flush=True)
    return 0 if holds else DIFFERS


def _stored(paths: list[str]) -> Iterator[tuple[str, Explanation]]:
    for path in paths:
        if Path(path).suffix.lower() == ".jsonl":
            for number, explanation in enumerate(read_jsonl(path), 1):
                yield f"{path}:{number}", explanation
        else:
            yield path, load(path)


def _told(name: str, verdict: Verdict) -> str:
    what = "holds" if verdict.holds else "DIFFERS"
    lines = [
        f"{name}: {what}; the largest difference of {verdict.rows} rows is {verdict.largest_difference:.2g} "
        f"(of the row's largest score; token {verdict.worst_token}), of log-probabilities "
        f"{verdict.largest_logprob_difference:.2g}"
    ]
    lines += [f"  {problem}" for problem in verdict.problems]
    lines += [f"  {one.what} was {one.then or 'none'}, is {one.now or 'none'}" for one in verdict.mismatches]
    if not verdict.mismatches:
        lines.append("  model, versions and settings are those of then")
    return "\n".join(map(visible, lines))


def _share(text: str) -> float:
    import argparse

    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to below 1, not {text!r}")
    return value
