"""The process behind `gradellm` and `python -m gradellm`: the command line, and what an interrupt does to it."""

import _thread
import os
import signal
import sys
import time
from typing import NoReturn

_INTERRUPTED = 130  # what a shell says of SIGINT
_SECONDS_TO_LEAVE = 2.0


def start() -> NoReturn:
    """Run the command of `sys.argv`."""
    signal.signal(signal.SIGINT, _on_interrupt)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else its own lines about lost connections go between ours
    try:
        from gradellm.cli import main  # takes a moment, in which somebody may change their mind

        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _on_interrupt(number: int, frame: object) -> NoReturn:
    """Cancel what runs, and end in order; a second interrupt ends at once.

    In order may fail: an exception that rises inside a library, between two lines that belong together, can leave it
    waiting for ever, or be lost in it.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    _thread.start_new_thread(_leave_late, ())  # takes no lock that the interrupted line may hold
    raise KeyboardInterrupt


def _leave_late() -> None:
    time.sleep(_SECONDS_TO_LEAVE)
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    start()
