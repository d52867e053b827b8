"""`gradellm token`: replaces this process with the server's command that makes tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from gradellm.local.processes import exec_module

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradellm.cli.options import SubParsers

__all__ = ["add_parser", "run"]


def add_parser(commands: SubParsers) -> None:
    """Add the command to the help; `run` gets its arguments unparsed."""
    commands.add_parser("token", help="make a token for a client of `gradellm serve --tokens FILE`")


def run(arguments: Sequence[str]) -> NoReturn:
    """Replace this process with the command."""
    exec_module("gradellm_server.auth.tokens", arguments)
