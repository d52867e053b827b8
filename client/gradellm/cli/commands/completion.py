"""`gradellm completion`: prints a shell's completion script for commands and flags, made by shtab."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from gradellm.cli import options
from gradellm.errors import GradellmError

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  gradellm completion bash > ~/.local/share/bash-completion/completions/gradellm
  gradellm completion zsh > ~/.zsh/completions/_gradellm
"""


def add_parser(commands: options.SubParsers, root: argparse.ArgumentParser) -> None:
    """Add the command; `root` is the parser of all commands."""
    summary = "print a completion script for a shell"
    parser = options.add_command(commands, "completion", summary, _EXAMPLES, "{bash,zsh,tcsh}")
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(run=run, root=root)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    if importlib.util.find_spec("shtab") is None:
        raise GradellmError("completion needs shtab: pip install 'gradellm[completion]'")
    import shtab

    print(shtab.complete(args.root, args.shell))
    return 0
