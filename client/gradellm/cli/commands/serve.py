"""`gradellm serve`: become the server. Its flags are the server's own; the client knows nothing of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from gradellm.local.processes import become

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradellm.cli.options import SubParsers

__all__ = ["add_parser", "run"]


def add_parser(commands: SubParsers) -> None:
    """Add the command to the list in the help; `run` takes its arguments before they are parsed."""
    commands.add_parser("serve", help="host a model for other programs; `gradellm serve --help` has the server's flags")


def run(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the server."""
    become("gradellm_server", arguments)
