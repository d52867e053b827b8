"""`gradellm demo`: three prompts on the demo model, explained word by word."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gradellm.cli import options
from gradellm.cli.demo_prompts import SCENES
from gradellm.explanation.terminal_view import draw

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  gradellm demo
  gradellm demo --color never > demo.txt
"""
_NEXT = """\
Next, your own prompts:
  gradellm explain --chat "Your question"     on the demo model
  gradellm explain --model PATH "Your text"   on your own
  gradellm serve --model PATH                 a server for several clients
"""


def add_parser(commands: options.SubParsers) -> None:
    """Add the command."""
    parser = options.add_command(commands, "demo", "answer and explain three prompts on the demo model", _EXAMPLES)
    options.add_server(parser, model=False)
    options.add_drawing(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate and draw the prompts."""
    style = options.style(args)
    with options.connect(args) as client:
        for number, scene in enumerate(SCENES, 1):
            print(style.bold(f"{number}/{len(SCENES)}  {scene.title}") + "\n", flush=True)
            events = client.generate(
                messages=scene.messages, max_new_tokens=scene.max_new_tokens, **options.given_values(args, "timeout")
            )
            for piece in draw(events, style):
                sys.stdout.write(piece)
                sys.stdout.flush()
            print()
    print(_NEXT, end="")
    return 0
