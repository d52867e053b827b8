"""`gradellm follow`: explains logged answers of another engine, and tells whether it runs the same model."""

from __future__ import annotations

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from gradellm import models
from gradellm.cli import batch, options
from gradellm.errors import GradellmError, InvalidRequestError
from gradellm.evaluation.examples import DataError
from gradellm.following.logged import LoggedAnswer, logged_answers
from gradellm.serialization import MalformedError, from_json, to_plain
from gradellm.wire.requests import follow_request

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from gradellm.client import Client
    from gradellm.wire.keywords import FollowKeywords

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  gradellm follow --from vllm.jsonl --output explained.jsonl --target localhost:50051
  gradellm follow --from vllm.jsonl --output explained.jsonl --model PATH --upstream-dtype float32
"""
_ABOUT = """\
A line of FILE is {"request": {...}, "response": {...}}: a request of OpenAI's API, and its answer, or the list of its
chunks. Ask vLLM for "return_token_ids": true, "logprobs": true and "top_logprobs": 8, which tells another model in
fewer tokens; without token ids the text is tokenized again, and the verdict is unknown. A line of the output is
{"line", "choice", "verdict", "agreement", "ids", "explanation"}. Lines that the output has already are not explained
again: a run that was interrupted is continued by the same command.
"""
_ANOTHER_MODEL = (
    "choice {choice} was written by another model, after another prompt, or with coarser numbers than --upstream-dtype "
    "says: the noise in its log-probabilities is {agreement[noise]:.3g} nats"
)


def add_parser(commands: options.SubParsers) -> None:
    """Add the command."""
    summary = "explain logged answers of another engine, such as vLLM"
    parser = options.add_command(commands, "follow", summary, _EXAMPLES, "--from FILE --output FILE [flags]")
    parser.description = f"{parser.description}\n\n{_ABOUT}"
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--from", dest="log", required=True, metavar="FILE", help="the log, JSON Lines; - is standard input"
    )
    group.add_argument(
        "--output", required=True, metavar="FILE", help="the explanations, .jsonl; continued if it exists"
    )
    group.add_argument(
        "--upstream-dtype",
        choices=get_args(models.UpstreamDtype),
        help="what the engine computes with, or stores its weights in, the coarser of both (default: bfloat16)",
    )
    group.add_argument(
        "--concurrency", type=int, default=4, metavar="N", help="answers at a time (default: %(default)s)"
    )
    options.add_attribution(parser, can_be_off=False)
    options.add_server(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explain the answers. Return 0, or 1 if one failed or was written by another model."""
    if args.concurrency < 1:
        raise InvalidRequestError.of("concurrency", f"must be 1 or more, not {args.concurrency}")
    if Path(args.output).suffix != ".jsonl":
        raise InvalidRequestError.of("output", f"{args.output} must end in .jsonl")
    keywords = options.attribution_keywords(args) | options.given_values(args, "upstream_dtype", "timeout")
    follow_request(None, cast("FollowKeywords", {**keywords, "prompt_ids": [0]}))  # before a server is started
    done = _done(Path(args.output))
    answers = list(_answers(args.log, cast("FollowKeywords", keywords), done))
    verdicts: Counter[str] = Counter()
    with (
        options.connect(args) as client,
        ThreadPoolExecutor(args.concurrency) as pool,
        Path(args.output).open("a", encoding="utf-8") as file,
    ):
        explained = pool.map(lambda each: _explained(client, *each), answers)
        for (line, _), row in zip(answers, explained, strict=True):
            if isinstance(row, GradellmError):
                verdicts["failed"] += 1
                batch.print_error(f"{args.log}:{line}: {row}")
                continue
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
            file.flush()
            verdicts[str(row["verdict"])] += 1
            if row["verdict"] == "different":
                batch.print_error(f"{args.log}:{line}: {_ANOTHER_MODEL.format(**row)}")
    counted = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())) or "nothing new"
    print(f"{args.output}: {counted}; {len(done)} were there already", file=sys.stderr)
    return 1 if verdicts["failed"] or verdicts["different"] else 0


def _explained(client: Client, line: int, answer: LoggedAnswer | GradellmError) -> dict[str, Any] | GradellmError:
    """The output's line of an answer, or its error."""
    if isinstance(answer, GradellmError):
        return answer
    try:
        explanation = answer.explain(client)
    except GradellmError as error:
        return error
    agreement = explanation.finished.agreement if explanation.finished is not None else None
    return {
        "line": line,
        "choice": answer.choice,
        "verdict": agreement.verdict if agreement is not None else "unknown",
        "agreement": to_plain(agreement),
        "ids": "given" if answer.tells_ids else "tokenised again",
        "explanation": json.loads(explanation.to_json()),
    }


def _answers(
    path: str, keywords: FollowKeywords, done: set[tuple[int, int]]
) -> Iterator[tuple[int, LoggedAnswer | GradellmError]]:
    """The answers of a log that are not done, or the error of a record, with their lines.

    Raises DataError for a line that is not JSON.
    """
    for line, record in batch.rows(path, '{"request": {...}, "response": {...}}'):
        try:
            for answer in logged_answers(record, keywords):
                if (line, answer.choice) not in done:
                    yield line, answer
        except InvalidRequestError as error:
            yield line, error


def _done(path: Path) -> set[tuple[int, int]]:
    """Lines and choices that the output has; a last line that was cut off is taken away.

    Raises DataError for a file of something else.
    """
    if not path.exists():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    found = set()
    for number, text in enumerate(whole.decode(errors="replace").splitlines(), 1):
        try:
            row: Any = from_json(text)
            found.add((int(row["line"]), int(row["choice"])))
        except (MalformedError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}:{number}: is no line of `gradellm follow`: choose another --output") from error
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return found
