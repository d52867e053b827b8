"""`gradellm token`: make a token for a client of a server. The server's own command; the client knows nothing of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from gradellm.local.processes import become

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradellm.cli.options import SubParsers

__all__ = ["add_parser", "run"]


def add_parser(commands: SubParsers) -> None:
    """Add the command to the list in the help; `run` takes its arguments before they are parsed."""
    commands.add_parser("token", help="make a token for a client of `gradellm serve --tokens FILE`")


def run(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the command."""
    become("gradellm_server.auth.tokens", arguments)
