"""`gradellm attribute`: explains a given completion (teacher-forced)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from gradellm.cli import batch, options
from gradellm.cli.commands import explain
from gradellm.cli.progress import CallProgress
from gradellm.transport import calls

if TYPE_CHECKING:
    import argparse

    from gradellm.wire.keywords import AttributeKeywords

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  gradellm attribute "The capital of France is" --completion " Paris"
  gradellm attribute "The capital of France is" --completion " Paris" --format json
"""


def add_parser(commands: options.SubParsers) -> None:
    """Add the command."""
    summary = "show where each word of a given completion comes from"
    parser = options.add_command(commands, "attribute", summary, _EXAMPLES, "PROMPT --completion TEXT [flags]")
    options.add_input(parser)
    group = parser.add_argument_group("completion")
    group.add_argument("--completion", metavar="TEXT", help="the completion's text")
    group.add_argument(
        "--completion-ids", type=options.token_ids, metavar="1,2,3", help="its token ids, in place of the text"
    )
    group.add_argument(
        "--num-alternatives", type=int, metavar="N", help="most probable tokens to return with each token"
    )
    options.add_attribution(parser, can_be_off=False)
    options.add_server(parser)
    explain.add_output(parser)
    batch.add_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Attribute the completion and print the result."""
    keywords = options.attribution_keywords(args) | options.given_values(args, "num_alternatives", "timeout")
    if args.batch is not None:
        check = cast("batch.Check", calls.attribute)
        return batch.run(args, keywords, check, lambda client, row: client.attribute(**row))
    explain.check_output(args)
    keywords |= options.input_keywords(args) | options.given_values(args, "completion", "completion_ids")
    keywords |= explain.trace_keywords(args)
    prompt = keywords.pop("prompt", None)
    calls.attribute(
        prompt, cast("AttributeKeywords", keywords)
    )  # refuses an invalid request before a server is started
    with options.connect(args) as client, CallProgress("explained") as progress:
        explain.show(client.attribute_events(prompt, on_event=progress, **keywords), args)
    return 0
