"""`gradellm gateway`: replaces this process with the gateway, which parses its own flags."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from gradellm.local.processes import exec_module

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradellm.cli.options import SubParsers

__all__ = ["add_parser", "run"]


def add_parser(commands: SubParsers) -> None:
    """Add the command to the help; `run` gets its arguments unparsed."""
    commands.add_parser(
        "gateway", help="HTTP API for chat front ends, and a chat page; `gradellm gateway --help` has its flags"
    )


def run(arguments: Sequence[str]) -> NoReturn:
    """Replace this process with the gateway."""
    exec_module("gradellm_gateway", arguments, hosts_model=False)
