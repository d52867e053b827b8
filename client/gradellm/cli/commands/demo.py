"""`gradellm demo`: three prompts on the model that comes with the server, explained word by word."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gradellm.cli import options
from gradellm.cli.demo_prompts import SCENES
from gradellm.rendering.heatmap import draw

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  gradellm demo
  gradellm demo --color never > demo.txt
"""
_NEXT = """\
Now for your own prompts:
  gradellm explain --chat "Your question"   here; with --model PATH on your own model
  gradellm serve --model PATH               for others; in Python: from gradellm import Client
"""


def add_parser(commands: options.SubParsers) -> None:
    """Add the command."""
    parser = options.add_command(commands, "demo", "watch three prompts being answered and explained", _EXAMPLES)
    options.add_server(parser, model=False)
    options.add_drawing(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Play the scenes."""
    style = options.style(args)
    with options.connected(args) as client:
        for number, scene in enumerate(SCENES, 1):
            print(style.bold(f"{number}/{len(SCENES)}  {scene.title}") + "\n", flush=True)
            events = client.generate(
                messages=scene.messages, max_new_tokens=scene.max_new_tokens, **options.given(args, "timeout")
            )
            for piece in draw(events, style):
                sys.stdout.write(piece)
                sys.stdout.flush()
            print()
    print(_NEXT, end="")
    return 0
