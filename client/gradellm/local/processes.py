"""How this package starts its own processes: the server and the bench."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from gradellm.errors import LocalServerError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["become", "command", "environment", "require_server_extra"]

_PACKAGES = ("torch", "transformers", "grpc_health")

# GNU's OpenMP, which torch computes with, has idle threads spin for milliseconds before they sleep. Where another
# process wants the core, each of the hundred parallel regions of a decode step then costs a time slice. Measured on 2
# cores, milliseconds a token with one other process and without: 371 and 37; with this, some tenths of a millisecond,
# 117 and 42; with a third of this, about 60 and 42 to 60. Single figures vary by a tenth and more.
_SPINS = "10000"


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """What runs one of the package's modules. Files of the working directory must not stand in for modules: -P."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """The environment of this process, with short spinning unless it says itself how threads wait."""
    own = dict(os.environ)
    if "OMP_WAIT_POLICY" not in own:
        own.setdefault("GOMP_SPINCOUNT", _SPINS)
    return own


def require_server_extra() -> None:
    """Raise LocalServerError where the packages that host a model are not installed."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise LocalServerError(
            f"hosting a model needs {', '.join(missing)}, which this Python lacks: pip install 'gradellm[server]'; "
            "or give the target of a server that runs elsewhere"
        )


def become(module: str, arguments: Sequence[str], *, hosts_model: bool = True) -> NoReturn:
    """Replace this process by `python -m module`, so that signals reach it directly."""
    if hosts_model:
        require_server_extra()
    sys.stdout.flush()
    os.execve(sys.executable, command(module, arguments), environment())  # noqa: S606  (no shell is meant)
