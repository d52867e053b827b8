"""The progress of runs and calls on standard error."""

from __future__ import annotations

import io
import re
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc import code_pb2

from gradellm.cli import main
from gradellm.cli.progress import Progress, bar, clock
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from client.conftest import FakeServer

Out = pytest.CaptureFixture[str]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Run:
    """A runner that stands still."""

    def __init__(self, **changes: Any) -> None:
        self.servers: list[Any] = []
        self.total, self.done_before, self.done_now, self.failed_now = 10, 1, 3, 1
        self.began = time.monotonic() - 6
        self.__dict__.update(changes)


def test_the_bar_on_a_terminal() -> None:
    stream = Terminal()
    progress = Progress("SST2", stream)
    run: Any = Run()
    progress.show(run)
    progress.show(run)  # too early
    progress.message("a server\x1b[2J rests")
    progress.close(run)
    drawn, message, end = stream.getvalue().split("\r\033[K")[1:]
    assert drawn == "SST2 ▕██████      ▏ 50% 4/10 · 1 failed · 2.0 s each · 0:08 left"
    assert message == f"a server^[[2J rests\n{drawn}"
    assert end == f"{drawn}\n"


def test_the_last_progress_bar_counts_complete_examples() -> None:
    """Examples in progress count only while the run is active."""
    server: Any = SimpleNamespace(is_up=True, is_refused=False, busy_until=0.0, running={"a": 0.9, "b": 0.95})
    run: Any = Run(servers=[server], total=2, done_before=0, done_now=0, failed_now=0)
    stream = Terminal()
    progress = Progress("SST2", stream)
    progress.show(run)
    progress.close(run)
    drawn, end = stream.getvalue().split("\r\033[K")[1:]
    assert " 92% 0/2" in drawn
    assert "  0% 0/2" in end
    server.running = {"a": 1.0, "b": 1.0}
    stream = Terminal()
    Progress("SST2", stream).show(run)
    assert "99% 0/2" in stream.getvalue()


def test_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress = Progress("SST2", stream)
    run: Any = Run(done_now=9, failed_now=0)
    progress.show(run)
    assert stream.getvalue() == ""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 10.5)
    progress.show(run)
    assert re.fullmatch(r"SST2 ▕█+▏100% 10/10 · 1.8 s each · took 0:1[67]\n", stream.getvalue())


def test_parts_of_the_bar() -> None:
    assert [bar(share, 2) for share in (0, 0.25, 0.5, 0.9, 1, 7)] == [
        "▕  ▏  0%", "▕▌ ▏ 25%", "▕█ ▏ 50%", "▕█▊▏ 90%", "▕██▏100%", "▕██▏700%",
    ]  # fmt: skip
    assert [clock(seconds) for seconds in (0, 7.4, 754, 3723)] == ["0:00", "0:07", "12:34", "1:02:03"]


# --- one call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_on_a_terminal_and_erased(
    fake: FakeServer, capsys: Out, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    fake.parts = [*fake.parts[:1], pb.Progress(done=0.25), pb.Progress(done=0.5), *fake.parts[1:]]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert main(["attribute", "Once", "--completion", "x", "--target", fake.target]) == 0
    captured = capsys.readouterr()
    assert "wasn't" in captured.out
    assert ("\r 25% explained\r 50% explained\r\033[K" in captured.err) == is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_prefill_progress_is_shown_on_a_terminal(
    fake: FakeServer, capsys: Out, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    carried: list[dict[str, Any]] = [{type(event).__name__.lower(): event} for event in fake.parts]
    parts = [pb.GenerateResponse(**event) for event in carried]
    parts[1:1] = [pb.GenerateResponse(prompt_progress=pb.Progress(done=done)) for done in (0.25, 0.5)]
    monkeypatch.setattr(fake, "_stream", lambda *_: iter(parts))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert main(["explain", "Once", "--target", fake.target]) == 0
    captured = capsys.readouterr()
    assert "wasn't" in captured.out
    assert ("\r 25% of the prompt read\r 50% of the prompt read\r\033[K" in captured.err) == is_terminal
    assert ("read" in captured.err) == is_terminal


def test_an_error_replaces_the_progress_line(fake: FakeServer, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.parts = [*fake.parts[:1], pb.Progress(done=0.25), *fake.parts[1:]][:2]
    fake.fail(code_pb2.INTERNAL, "the model failed")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["attribute", "Once", "--completion", "x", "--target", fake.target]) == 70
    assert "\r 25% explained\r\033[Kerror: " in capsys.readouterr().err
