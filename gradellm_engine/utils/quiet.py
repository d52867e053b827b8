"""Silences what imported libraries say of themselves; to be imported before them.

Transformers imports torchao wherever it is installed, and torchao warns of every kernel that it has for another
processor, and of its own use of torch; bitsandbytes of kernels that it could download. What this project says stays.
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
    """Keep Transformers' notices and progress bars off standard error.

    What matters of them is an error of ours: weights that are missing or left over, a tokenizer that is another one.
    Whoever sets TRANSFORMERS_VERBOSITY wants to see them.
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
    """Run a command and end the process with its status.

    Not by the interpreter's own end, at which compiled libraries (nanobind, in Triton) complain of each other over many
    lines.
    """
    try:
        status = main() or 0
    except SystemExit as end:  # argparse's, which has said why
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
