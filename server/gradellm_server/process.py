"""The server's process: signals, the end of its parent, and its exit.

Every exit goes through `exit_now`. It skips the interpreter's shutdown, which would wait for a pass of the model that
goes on, and at which native libraries print errors about each other.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import NoReturn

EXIT_FAILED = 1  # the engine or a rank failed: a supervisor should restart the process
EXIT_USAGE = 2  # wrong options, addresses, files or model: a restart does not help
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def exit_now(status: int) -> NoReturn:
    """End the process without the interpreter's shutdown."""
    os._exit(status)


def exit_on_signal_until_ready() -> None:
    """End the process on a stop signal at once, as long as there is nothing to drain.

    Raising an exception instead would have to wait for imports and reads of files.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _exit_before_ready)


def _exit_before_ready(number: int, frame: object) -> NoReturn:
    os.write(sys.stderr.fileno(), b"gradellm: stopped before it was ready\n")  # a signal may interrupt print itself
    exit_now(128 + number)


def stop_event_on_signal() -> asyncio.Event:
    """An event that the first stop signal sets; a second signal ends the process. On the running event loop."""
    stopping = asyncio.Event()

    def on_signal(number: int) -> None:
        if stopping.is_set():
            exit_now(128 + number)
        stopping.set()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stopping


def ignore_stop_signals() -> None:
    """Ignore stop signals on a rank other than 0: the launcher signals all ranks, and rank 0 ends the followers."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_at_end_of_stdin() -> None:
    """End the process when standard input ends, and so with its parent, even after SIGKILL of the parent."""

    def wait() -> NoReturn:
        while os.read(0, 4096):
            pass
        exit_now(0)

    threading.Thread(target=wait, name="stdin-watch", daemon=True).start()
