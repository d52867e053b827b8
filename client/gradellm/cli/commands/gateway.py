"""`gradellm gateway`: become the gateway. Its flags are its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from gradellm.local.processes import become

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradellm.cli.options import SubParsers

__all__ = ["add_parser", "run"]


def add_parser(commands: SubParsers) -> None:
    """Add the command to the list in the help; `run` takes its arguments before they are parsed."""
    commands.add_parser(
        "gateway", help="HTTP for chat front ends, and a chat page; `gradellm gateway --help` has its flags"
    )


def run(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the gateway."""
    become("gradellm_gateway", arguments, hosts_model=False)
