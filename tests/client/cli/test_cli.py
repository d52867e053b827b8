"""The command line: errors become one line and an exit code, and a process ends as a shell expects."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from google.rpc import code_pb2

from gradellm.cli import main
from support.client.processes import start, with_path

if TYPE_CHECKING:
    from client.conftest import FakeServer

Out = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (code_pb2.INVALID_ARGUMENT, 2),
        (code_pb2.UNAVAILABLE, 69),
        (code_pb2.DEADLINE_EXCEEDED, 69),
        (code_pb2.INTERNAL, 70),
        (code_pb2.UNIMPLEMENTED, 70),
        (code_pb2.RESOURCE_EXHAUSTED, 75),
    ],
)
def test_exit_codes(fake: FakeServer, capsys: Out, code: int, exit_code: int) -> None:
    fake.fail(code, "the words of the server")
    for command in (["explain", "Once"], ["info"]):
        assert main([*command, "--no-retry", "--target", fake.target]) == exit_code
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain"], "exactly one of prompt, messages and prompt_ids"),
        (["explain", "a", "--prompt-ids", "1"], "given: prompt, prompt_ids"),
        (["explain", "a", "--attribution", "none", "--layers", "3"], "layers: has no meaning"),
        (["attribute", "a"], "exactly one of completion and completion_ids"),
        (
            ["explain", "a", "--target", "x:1", "--model", "m"],
            "model: is for a local server, not for x:1",
        ),
        (["explain", "a", "--max-new-tokens", "9999999999"], "--max-new-tokens: must be a signed 32-bit integer"),
        (["explain", "\udce4"], "prompt: has a lone surrogate"),
        (["explain", "a", "--retention", "2"], "--retention: must be between 0 and 1, not 2"),
        (
            ["attribute", "a", "--completion", "b", "--retention", "0.5", "--output", "x.html"],
            "combined with --retention",
        ),
    ],
)
def test_wrong_requests_start_no_server(arguments: list[str], message: str, capsys: Out) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "starting" not in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["explain", "a", "--layers", "some"],
        ["explain", "a", "--segment", "a"],
        ["explain", "a", "--width", "3"],
        ["explain", "a", "--loosening", "much"],
        ["explain", "a", "--max-new", "3"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: Out) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: gradellm" in capsys.readouterr().err


def test_help_has_examples(capsys: Out) -> None:
    for command in ([], ["explain"], ["attribute"], ["info"], ["demo"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        assert "examples:\n  gradellm " in capsys.readouterr().out


def test_errors_cannot_steer_the_terminal(fake: FakeServer, capsys: Out) -> None:
    fake.fail(code_pb2.INTERNAL, "a\x1b[2Jb")
    assert main(["info", "--no-retry", "--target", fake.target]) == 70
    assert "a^[[2Jb\n" in capsys.readouterr().err


# --- as a process ---------------------------------------------------------------------------------------------------


def test_interrupting_cancels(fake: FakeServer) -> None:
    fake.hold.set()
    process = start("explain", "Once", "--target", fake.target)
    assert fake.received.wait(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"")
    assert fake.cancelled.wait(10)


_SWALLOWING = """
import time, gradellm.cli
from gradellm.__main__ import start
def main():
    said = "running"
    while True:
        try:
            print(said, flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            said = "swallowed"
gradellm.cli.main = main
start()
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_an_interrupt_that_a_library_swallows_still_ends_it(signals: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", _SWALLOWING], stdout=subprocess.PIPE, env=with_path())
    assert process.stdout is not None
    for printed in [b"running\n", b"swallowed\n"][:signals]:
        assert process.stdout.readline() == printed
        process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130


def test_a_closed_pipe(fake: FakeServer) -> None:
    process = start("explain", "Once", "--target", fake.target)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == b""


def test_a_terminal_that_cannot_show_blocks(fake: FakeServer) -> None:
    out, err = start("explain", "Once", "--target", fake.target, PYTHONIOENCODING="ascii").communicate(timeout=20)
    assert b"\\u2588" in out
    assert err == b""
