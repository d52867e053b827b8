"""Redaction of panics that native libraries write to standard error.

A Rust panic (in a tokenizer) writes to file descriptor 2 before Python sees it, and may quote the text that it
failed on: a prompt. Descriptor 2 therefore becomes a pipe, and a thread copies everything but panics from it. Python's
own `sys.stderr`, and the log with it, still writes to the original descriptor.
"""

from __future__ import annotations

import os
import re
import select
import sys
import threading

LINE_SECONDS = 0.1  # to wait for the rest of a line
QUIET_SECONDS = 1.0  # silence after which a panic's output is over
REPLACEMENT = b"native code panicked while it served a request; its message is omitted, as it may quote a prompt\n"

_PANIC = re.compile(rb"^thread '.*' (?:\(\d+\) )?panicked at ", re.MULTILINE)


def redact_panics() -> None:
    """Redact panics from now on, in the whole process."""
    sys.stderr.flush()
    original = os.dup(2)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    threading.Thread(
        target=copy_without_panics, args=(reading, original), name="gradellm-native-stderr", daemon=True
    ).start()


def copy_without_panics(reading: int, writing: int) -> None:
    """Copy one descriptor to another until its end, without panics and the lines that follow them closely.

    Works line by line, since the first line of a panic may take several reads. The start of a line is held back for
    `LINE_SECONDS`.
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
