"""Silences warnings of imported libraries; import it before them.

Transformers imports torchao wherever it is installed. torchao warns of every kernel that it lacks for this processor
and of its own use of torch, bitsandbytes of kernels that it could download. This project's own logs are not affected.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

for _name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
    logging.getLogger(_name).setLevel(logging.ERROR)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep Transformers' log lines and progress bars off standard error, unless TRANSFORMERS_VERBOSITY is set.

    This project raises errors for the problems that they report: missing or unexpected weights, another tokenizer.
    """
    from transformers.utils import logging as transformers_logging

    if "TRANSFORMERS_VERBOSITY" in os.environ:
        yield
        return
    level, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if has_bars:
            transformers_logging.enable_progress_bar()


def run_and_exit(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit the process with its status, by `os._exit`.

    At the interpreter's own exit, compiled libraries (nanobind, in Triton) print many lines of leak reports.
    """
    try:
        status = main() or 0
    except SystemExit as end:  # of argparse, which has printed the reason
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
