"""Commands of this machine, and progress on standard error."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence


class CleanRootError(Exception):
    """A step failed; the message says which and why."""


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    """Run a command.

    Raises:
        CleanRootError: if it fails, with the end of its output.
    """
    ended = subprocess.run(  # noqa: S603  (made of the Dockerfile)
        command, env=None if environment is None else {"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise CleanRootError(f"{shlex.join(command[-3:])[:300]} ended with {ended.returncode}:\n{ended.stdout[-3000:]}")


def output_of(command: Sequence[str]) -> str:
    """A command's standard output."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603


def report(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)
