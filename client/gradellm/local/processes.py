"""Starts the project's other programs: server, gateway and bench."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from gradellm.errors import LocalServerError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["command", "environment", "exec_module", "require_server_extra"]

_PACKAGES = ("torch", "transformers", "grpc_health")

# Idle threads of GNU OpenMP, which torch uses, spin for milliseconds before they sleep. If another process needs the
# core, each of the hundred parallel regions of a decode step then costs a time slice. Measured on 2 cores, in
# milliseconds per token with another process running and without: 371 and 37 by default; 117 and 42 with this value,
# some tenths of a millisecond; about 60 and 42 to 60 with a third of it. Single values vary by 10 % and more.
_SPIN_COUNT = "10000"


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line of `python -m module`. With -P, files in the working directory do not shadow modules."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Return this process's environment, with a short OpenMP spin count unless it sets a wait policy."""
    variables = dict(os.environ)
    if "OMP_WAIT_POLICY" not in variables:
        variables.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    return variables


def require_server_extra() -> None:
    """Raise LocalServerError if the packages that host a model are not installed."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise LocalServerError(
            f"hosting a model needs {', '.join(missing)}, which is not installed: pip install 'gradellm[server]'; "
            "or give the target of a running server"
        )


def exec_module(module: str, arguments: Sequence[str], *, hosts_model: bool = True) -> NoReturn:
    """Replace this process with `python -m module`, so that signals reach it directly."""
    if hosts_model:
        require_server_extra()
    sys.stdout.flush()
    os.execve(sys.executable, command(module, arguments), environment())  # noqa: S606  (without a shell)
