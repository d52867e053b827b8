"""What native libraries write to standard error, without the words of their panics.

A panic of Rust code (a tokenizer's) is written to file descriptor 2 by Rust itself, before Python hears of it, and may
quote the text that it failed on: a prompt. So descriptor 2 becomes a pipe, of which all but panics is passed on.
Python's own `sys.stderr`, and with it the log, goes on to where it went.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading

LINE_SECONDS = 0.1  # that a line may take to come
QUIET_SECONDS = 1.0  # after which what a panic writes is taken to be over
REPLACEMENT = b"native code panicked while it served a request; its words, which may quote a prompt, are left out\n"

_PANIC = re.compile(rb"^thread '.*' (?:\(\d+\) )?panicked at ", re.MULTILINE)


def leave_out_panics() -> None:
    """From now on, for the whole process."""
    sys.stderr.flush()
    original = os.dup(2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    threading.Thread(target=pass_on, args=(reading, original), name="gradellm-native-stderr", daemon=True).start()


def pass_on(reading: int, writing: int) -> None:
    """Copy one descriptor to another, up to its end, without panics and what follows them closely.

    Line by line, for a panic's first line may come in pieces; the beginning of a line that is none waits a moment.
    """
    content = b""
    while True:
        if content and not select.select([reading], [], [], LINE_SECONDS)[0] and not content.startswith(b"thread "):
            os.write(writing, content)
            content = b""
        more = os.read(reading, 1 << 16)
        content += more
        if panic := _PANIC.search(content):
            before = content[: panic.start()].rstrip(b"\n")
            os.write(writing, (before and before + b"\n") + REPLACEMENT)
            content = b""
            while select.select([reading], [], [], QUIET_SECONDS)[0]:
                if not os.read(reading, 1 << 16):
                    return
            continue
        lines, end, content = content.rpartition(b"\n") if more else (content, b"", b"")
        os.write(writing, lines + end)
        if not more:
            return
