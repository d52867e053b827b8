"""`gradellm bench`: become the bench. Its flags are its own; the client knows nothing of them."""

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
        "bench", help="measure what an explained token costs here; `gradellm bench --help` has its flags"
    )


def run(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the bench."""
    become("gradellm_bench", arguments)
