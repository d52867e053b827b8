"""`gradellm verify`: replays stored explanations on a server, and reports differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from gradellm.cli import options
from gradellm.errors import InvalidExplanationError
from gradellm.explanation.io import load, read_jsonl
from gradellm.explanation.verification import Verdict, verified
from gradellm.explanation.verification.replay import check_replayable
from gradellm.explanation.verification.verdict import group_by_reason
from gradellm.rendering.terminal import visible

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from gradellm.explanation.explanation import Explanation

__all__ = ["add_parser", "run"]

DIFFERS = 1  # as `cmp` and `diff`
_EXAMPLES = """\
  gradellm explain "Once upon a time" --format json > story.json
  gradellm verify story.json
  gradellm verify audit.jsonl --target localhost:50051 --tolerance 1e-5 --json
  gradellm verify golden.jsonl --model PATH --strict --regenerate      for CI: also the same model, versions, settings
"""

_MAX_LISTED = 12  # problems of one explanation; --json has all


def add_parser(commands: options.SubParsers) -> None:
    """Add the command."""
    summary = "replay stored explanations, and report differences"
    parser = options.add_command(commands, "verify", summary, _EXAMPLES, "FILE [FILE ...] [flags]")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .json, .jsonl or .safetensors file")
    parser.add_argument(
        "--tolerance",
        type=_share,
        metavar="T",
        default=Verdict.__dataclass_fields__["tolerance"].default,
        help="largest difference of a score, relative to its row's largest, and of a log-probability, relative to its "
        "value if that is above 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 also if the model, a version or a setting differs"
    )
    parser.add_argument(
        "--regenerate",
        action="store_true",
        help="also generate the tokens again, with their seed and sampling settings; the result may differ on other "
        "hardware",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per explanation")
    options.add_server(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify all files. Return 0 if all explanations hold."""
    stored = list(_stored(args.files))
    if not stored:
        raise InvalidExplanationError(f"{', '.join(args.files)}: no explanations found")
    for name, explanation in stored:
        try:
            check_replayable(explanation)
        except InvalidExplanationError as error:
            raise InvalidExplanationError(f"{name}: {error}") from error
    holds = True
    with options.connect(args) as client:
        for name, explanation in stored:
            try:
                verdict = verified(
                    client,
                    explanation,
                    tolerance=args.tolerance,
                    regenerate=args.regenerate,
                    **options.given_values(args, "timeout"),
                )
            except InvalidExplanationError as error:
                raise InvalidExplanationError(f"{name}: {error}") from error
            holds &= verdict.holds_strictly if args.strict else verdict.holds
            plain = {"file": name, **verdict.to_plain()}
            print(json.dumps(plain) if args.json else _verdict_text(name, verdict, strict=args.strict), flush=True)
    return 0 if holds else DIFFERS


def _stored(paths: list[str]) -> Iterator[tuple[str, Explanation]]:
    for path in paths:
        if Path(path).suffix.lower() == ".jsonl":
            for number, explanation in enumerate(read_jsonl(path), 1):
                yield f"{path}:{number}", explanation
        else:
            yield path, load(path)


def _verdict_text(name: str, verdict: Verdict, *, strict: bool) -> str:
    """Return the verdict, its problems and mismatches, and the fields that were not checked."""
    if verdict.other_model:
        return visible(f"{name}: DIFFERS: {verdict.other_model}. Nothing was computed")
    result = "DIFFERS"
    if verdict.holds and verdict.mismatches:
        result = (
            "DIFFERS: the numbers hold, but the provenance differs (--strict)"
            if strict
            else "holds, but the provenance differs"
        )
    elif verdict.holds:
        result = "holds"
    lines = [f"{name}: {result}{_numbers(verdict)}"]
    lines += [f"  {problem}" for problem in verdict.problems[:_MAX_LISTED]]
    if (more := len(verdict.problems) - _MAX_LISTED) > 0:
        lines.append(f"  and {more} more; --json lists all")
    lines += [f"  {each.what} was {each.then or 'none'}, is {each.now or 'none'}" for each in verdict.mismatches]
    if verdict.rows and not verdict.mismatches:
        lines.append("  model, versions and settings match")
    lines += [f"  not checked: {line}" for line in group_by_reason(verdict.not_checked)]
    return "\n".join(map(visible, lines))


def _numbers(verdict: Verdict) -> str:
    if not verdict.rows:
        return ""
    return (
        f"; largest difference of {verdict.rows} rows {verdict.largest_difference:.2g} of the row's largest score "
        f"(token {verdict.worst_token}), of log-probabilities {verdict.largest_logprob_difference:.2g}"
    )


def _share(text: str) -> float:
    import argparse

    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to below 1, not {text!r}")
    return value
