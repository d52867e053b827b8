"""`gradellm explain`: generates a completion, and draws the attribution of each word as it is generated."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, cast, get_args

from gradellm.cli import batch, options, structured_output
from gradellm.cli.progress import CallProgress
from gradellm.cli.sampling_options import add_sampling
from gradellm.errors import InvalidRequestError
from gradellm.explanation import io
from gradellm.explanation.explanation import Explanation
from gradellm.explanation.queries import By
from gradellm.explanation.terminal_view import draw, draw_retention
from gradellm.explanation.tracing.trace_view import draw_trace
from gradellm.rendering.terminal import isolated, visible
from gradellm.transport import calls
from gradellm.wire.keywords import SamplingKeywords

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from gradellm.explanation.citations import Citation
    from gradellm.models import Event
    from gradellm.wire.keywords import GenerateKeywords

__all__ = ["add_output", "add_parser", "check_output", "run", "show", "trace_keywords"]

_EXAMPLES = """\
  gradellm explain "Once upon a time" --max-new-tokens 20
  gradellm explain --system "Answer with one word." "Is the sky green?" --attribution paper
  gradellm explain "The capital of France is" --contrast " London" --target localhost:50051
  gradellm explain - < prompt.txt --output explanation.json
  gradellm explain "Once upon a time" --output story.html
  gradellm explain "Soup is five coins. What is the soup?" --segment menu=0:20 --citations
  gradellm explain "Mia trusts Ben. Ben likes red. Mia" --trace red
  gradellm explain "Name a colour and a number, as JSON." --schema answer.json
  gradellm explain "What is the soup?" --chat --document menu=menu.txt --citations
  gradellm explain "How is the weather in Bonn?" --tools tools.json --format json
  gradellm explain --batch prompts.jsonl --max-new-tokens 32 --output explanations.jsonl
"""
_SAMPLING = (*SamplingKeywords.__annotations__, "num_alternatives")
_RESUMING = ("forced_ids", "first_attribution")


def add_parser(commands: options.SubParsers) -> None:
    """Add the command."""
    summary = "generate a completion and show where each word came from"
    parser = options.add_command(commands, "explain", summary, _EXAMPLES, "PROMPT [flags]")
    options.add_input(parser)
    group = parser.add_argument_group("generation")
    add_sampling(group)
    group.add_argument(
        "--num-alternatives", type=int, metavar="N", help="most probable tokens to return with each token"
    )
    group.add_argument("--forced-ids", type=options.token_ids, metavar="1,2,3", help="resume after these tokens")
    group.add_argument("--first-attribution", type=int, metavar="N", help="with --forced-ids: the first to explain")
    structured_output.add_flags(parser)
    options.add_attribution(parser, can_be_off=True)
    options.add_server(parser)
    add_output(parser)
    batch.add_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate a completion and print the result."""
    keywords = options.attribution_keywords(args) | options.given_values(args, *_SAMPLING, *_RESUMING, "timeout")
    keywords |= structured_output.keywords(args)
    if args.batch is not None:
        check = cast("batch.Check", calls.generate)
        return batch.run(args, keywords, check, lambda client, row: client.explain(**row))
    check_output(args)
    keywords |= options.input_keywords(args) | trace_keywords(args)
    prompt = keywords.pop("prompt", None)
    calls.generate(prompt, cast("GenerateKeywords", keywords))  # refuses an invalid request before a server is started
    with options.connect(args) as client, CallProgress("explained") as progress:
        show(client.generate(prompt, on_event=progress, **keywords), args)
    return 0


FORMS = ("ansi", "json", "html", "png", "svg")
_OUTPUTS: dict[str, tuple[tuple[str, ...], str]] = {
    "retention": (("format", "output", "trace", "citations", "raw"), "--retention, which prints a drawing"),
    "citations": (("output", "trace", "raw"), "--citations, which prints sentences"),
    "trace": (("output", "raw"), "--trace, which prints a table, or JSON with --format json"),
    "output": (("format", "raw"), "--output, whose suffix selects the format"),
}
"""Flags that choose what is printed, each with those that it cannot be combined with."""


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the output."""
    group = options.add_drawing(parser)
    group.add_argument("--format", choices=FORMS, help="a drawing (ansi, the default), JSON, HTML, or an image")
    group.add_argument(
        "--output",
        metavar="FILE",
        help="write to a file: .json, .safetensors, .html, .png, .svg, or .txt for a drawing",
    )
    group.add_argument(
        "--raw", action="store_true", help="colour by raw scores, not by what exceeds the median of the prompt's words"
    )
    group.add_argument(
        "--retention",
        type=float,
        metavar="PI",
        help="draw the keep probabilities of prompt tokens at this retention share",
    )
    group.add_argument(
        "--citations",
        action="store_true",
        help="print each sentence of the answer with the documents (--document, --segment) that it was drawn from; "
        "with --format json as JSON",
    )
    group.add_argument(
        "--trace",
        metavar="TEXT",
        help="trace this text of the completion through the model's earlier words; implies --sources prefix",
    )
    group.add_argument(
        "--trace-by", choices=get_args(By), help="parts of the prompt that a trace names; word by default"
    )


def check_output(args: argparse.Namespace) -> None:
    """Raise InvalidRequestError for output that cannot be written, before anything is computed."""
    for flag, (refused, what) in _OUTPUTS.items():
        if getattr(args, flag) not in (None, False):
            options.refuse_flags(args, refused, what)
    if args.retention is not None and not 0 < args.retention < 1:
        raise InvalidRequestError.of("retention", f"must be between 0 and 1, not {args.retention:g}")
    if args.raw and args.format not in (None, "ansi"):
        raise InvalidRequestError.of("raw", f"is for the drawing; --format {args.format} has its own colours")
    if args.citations:
        _check_citations(args)
    if args.trace is not None:
        _check_trace(args)
    elif args.trace_by is not None:
        raise InvalidRequestError.of("trace_by", "is for --trace TEXT")
    if args.output is not None:
        io.check(args.output)
    elif args.format == "png" and sys.stdout.isatty():
        raise InvalidRequestError.of("format", "a PNG cannot be printed on a terminal: give --output FILE.png")
    elif args.format in ("png", "svg"):
        io.check(f"x.{args.format}")


def _check_citations(args: argparse.Namespace) -> None:
    if args.format not in (None, "json"):
        raise InvalidRequestError.of("format", f"{args.format} cannot be combined with --citations; json can")
    if not (args.segment or args.document):
        raise InvalidRequestError.of(
            "citations", "needs documents: give each with --document, or name its range with --segment"
        )
    if args.attribution == "none":
        raise InvalidRequestError.of("attribution", "none cannot be combined with --citations")


def _check_trace(args: argparse.Namespace) -> None:
    if args.format not in (None, "ansi", "json"):
        raise InvalidRequestError.of("format", f"must be ansi or json with --trace, not {args.format}")
    if args.sources == "prompt" or args.resolution == "segment" or args.attribution == "none":
        raise InvalidRequestError.of(
            "trace",
            "needs scores of the whole prefix: --sources prefix, --resolution token or word, and an attribution",
        )


def trace_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords that --trace implies."""
    return {} if args.trace is None else {"sources": "prefix"}


def show(events: Iterable[Event], args: argparse.Namespace) -> None:
    """Draw a stream's events as they arrive, or write the collected explanation."""
    if args.citations:
        sys.stdout.write(_citations(Explanation.from_events(events), as_json=args.format == "json"))
        return
    is_drawing = args.retention is None and args.trace is None
    if is_drawing and args.output is None and args.format in (None, "ansi"):
        for piece in draw(events, options.style(args), "raw" if args.raw else "excess"):
            sys.stdout.write(piece)
            sys.stdout.flush()
        return
    explanation = Explanation.from_events(events)
    if args.trace is not None:
        trace = explanation.trace(args.trace, by=args.trace_by or "word")
        sys.stdout.write(f"{trace.to_json()}\n" if args.format == "json" else draw_trace(trace, options.style(args)))
        return
    if args.retention is not None:
        scores = dict(enumerate(explanation.attribution_of()))
        sys.stdout.write(draw_retention(explanation.started, scores, args.retention, options.style(args)))
        return
    if args.output is not None:
        explanation.save(args.output)
        print(f"{args.output} written", file=sys.stderr)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(io.as_bytes(explanation, f".{args.format}"))


def _citations(explanation: Explanation, *, as_json: bool) -> str:
    """Return each sentence, and below it a line for each document with its share and its passage."""
    sentences = explanation.citations()
    if as_json:
        return json.dumps([sentence.to_dict() for sentence in sentences], ensure_ascii=False) + "\n"
    lines = []
    for sentence in sentences:
        lines.append(isolated(visible(sentence.text)))
        for document in sentence.documents:
            passage = "" if document.passage is None else f": {isolated(visible(document.passage.text))}"
            lines.append(f"  {visible(document.name)} ({document.share:.0%}){passage}")
        if not sentence.documents:
            lines.append(f"  {_no_document(sentence)}" if sentence.explained_tokens else "  not explained")
    return "".join(f"{line}\n" for line in lines)


def _no_document(sentence: Citation) -> str:
    """Return why a sentence has no citation."""
    if not sentence.missing_names:
        return "no document"
    names = ", ".join(map(visible, sentence.missing_names))
    drawn_from = ", ".join(visible(document.name) for document in sentence.uncited)
    return f"no document has {names}" + (f"; drawn from {drawn_from}" if drawn_from else "")
