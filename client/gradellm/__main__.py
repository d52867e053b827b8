"""Entry point of `gradellm` and `python -m gradellm`, with the handling of interrupts."""

import _thread
import os
import signal
import sys
import time
from typing import NoReturn

_INTERRUPTED = 130  # a shell's exit code for SIGINT
_SECONDS_TO_EXIT = 2.0


def start() -> NoReturn:
    """Run the command of `sys.argv`."""
    signal.signal(signal.SIGINT, _on_interrupt)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # without gRPC's log of lost connections
    try:
        from gradellm.cli import main  # slow enough to be interrupted

        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _on_interrupt(number: int, frame: object) -> NoReturn:
    """Raise KeyboardInterrupt; a second interrupt, or a timeout, ends the process at once.

    The timeout is needed because an exception raised in the middle of library code may leave a lock held, or be
    swallowed.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    _thread.start_new_thread(_exit_late, ())  # needs no lock that the interrupted code may hold
    raise KeyboardInterrupt


def _exit_late() -> None:
    time.sleep(_SECONDS_TO_EXIT)
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    start()
