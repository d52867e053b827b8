"""Output of native code to standard error is copied, but for panics, which may quote a prompt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gradellm import Client, InvalidRequestError
from gradellm_engine.demo_model import CHECKPOINT
from gradellm_server import native_stderr
from server.process.test_process import serving

PANIC = (
    b"\nthread '<unnamed>' (8698) panicked at /x/onig-6.5.3/src/lib.rs:647:23:\n"
    b"called `Result::unwrap()` on an `Err` value: MARKER\nof a prompt\nnote: run with `RUST_BACKTRACE=1`\n"
)


@contextmanager
def passing() -> Iterator[tuple[int, int]]:
    """A descriptor to write to, and one to read the copy from."""
    reading, writing = os.pipe()
    passed, passing_on = os.pipe()
    thread = threading.Thread(target=native_stderr.copy_without_panics, args=(reading, passing_on))
    thread.start()
    try:
        yield writing, passed
    finally:
        os.close(writing)
        thread.join(10)
        for descriptor in (reading, passed, passing_on):
            os.close(descriptor)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    "pieces",
    [[PANIC], [PANIC[:90], PANIC[90:]], [PANIC[:5], PANIC[5:20], PANIC[20:]], [b"E0000 a line of gRPC\n" + PANIC]],
)
def test_the_message_of_a_panic_is_omitted(monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]) -> None:
    monkeypatch.setattr(native_stderr, "QUIET_SECONDS", 0.05)
    with passing() as (writing, passed):
        for chunk in pieces:
            os.write(writing, chunk)
            threading.Event().wait(0.02)
        content = os.read(passed, 1 << 16)
        while native_stderr.REPLACEMENT not in content:
            content += os.read(passed, 1 << 16)
        threading.Event().wait(0.3)  # longer than the silence that ends a panic
        os.write(writing, b"another line\n")
        content += os.read(passed, 1 << 16)
    assert (
        content.replace(b"E0000 a line of gRPC\n", b"").lstrip(b"\n") == native_stderr.REPLACEMENT + b"another line\n"
    )


def test_a_process_copies_everything_but_panics() -> None:
    """Python's own standard error does not go through the pipe, so that its last lines are not lost."""
    code = (
        "import os, sys, time\n"
        "from gradellm_server.native_stderr import redact_panics\n"
        "redact_panics()\n"
        f"os.write(2, {PANIC!r})\n"
        "time.sleep(0.3)\n"
        "print('of Python', file=sys.stderr)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stderr == native_stderr.REPLACEMENT + b"of Python\n"


def test_a_tokenizer_panic_ends_its_own_call_alone(tmp_path: Path) -> None:
    """A pre-tokenizer whose regular expression panics on some texts."""
    for file in CHECKPOINT.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with serving("--model", str(tmp_path), "--metrics-listen", "none") as (process, address):
        with Client(address) as client:
            with pytest.raises(InvalidRequestError, match="the model's tokenizer fails on this text"):
                client.explain("a" * 40 + "b", max_new_tokens=2)
            assert client.explain("a film", max_new_tokens=2).tokens
        process.terminate()
        process.wait(20)
        assert process.stderr is not None
        output = process.stderr.read()
    assert "panicked at" not in output
    assert "native code panicked while it served a request" in output
