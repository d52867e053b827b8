"""How far a run over a data set is, on standard error: a bar that moves on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Protocol

from gradellm.rendering.terminal import display_width, visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self, TextIO

    from gradellm.evaluation.runner import Server
    from gradellm.models import Event

__all__ = ["CallProgress", "Progress", "RunStatus", "bar", "clock"]

_DRAWN_SECONDS, _SAID_SECONDS = 0.2, 10.0
_WIDE, _NARROW, _ROOMY = 24, 12, 100  # columns of the bar; and of a terminal that has room for the wide one


class RunStatus(Protocol):
    """A run, and how far it is."""

    total: int
    done_before: int
    done_now: int
    failed_now: int
    began: float
    """By the monotonic clock."""

    @property
    def servers(self) -> Sequence[Server]:
        """Who works on it, as far as there is something to tell of them."""


class CallProgress:
    """How far one call is, on a terminal's standard error: a client's `on_event`. Its context leaves no line behind.

    with CallProgress("explained") as progress:
        client.explain("Hello", on_event=progress)
    """

    def __init__(self, done: str) -> None:
        self._done = done
        self._shown = ""

    def __call__(self, event: Event) -> None:
        """Show an event that says how far something is; wipe that away at any other."""
        said = ""
        if event.prompt_progress is not None:
            said = f"{event.prompt_progress.done:4.0%} of the prompt read"
        elif event.progress is not None:
            said = f"{event.progress.done:4.0%} {self._done}"
        if not sys.stderr.isatty() or said == self._shown:
            return
        if len(said) < len(self._shown):
            sys.stderr.write("\r\033[K")
        sys.stderr.write(f"\r{said}" if said else "")
        sys.stderr.flush()
        self._shown = said

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")  # an error's line is not to stand behind it
            sys.stderr.flush()


class Progress:
    """Draws or writes; `close` leaves the last state standing."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title = title
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._last = float("-inf") if self._is_terminal else time.monotonic()
        self._line = ""

    def show(self, runner: RunStatus) -> None:
        """Say where the run stands, if it is time to."""
        now = time.monotonic()
        if now - self._last < (_DRAWN_SECONDS if self._is_terminal else _SAID_SECONDS):
            return
        self._last = now
        self._write(runner)

    def tell(self, text: str) -> None:
        """Say something on a line of its own."""
        wipe = "\r\033[K" if self._is_terminal and self._line else ""
        self._stream.write(f"{wipe}{visible(text)}\n{self._line}")
        self._stream.flush()

    def close(self, runner: RunStatus) -> None:
        """Say where the run has come to: whole examples, for nothing else is kept."""
        self._write(runner, whole=True)
        if self._is_terminal:
            self._stream.write("\n")
        self._stream.flush()
        self._line = ""

    def _write(self, runner: RunStatus, *, whole: bool = False) -> None:
        columns = shutil.get_terminal_size().columns - 1
        line = _line(self._title, runner, _WIDE if columns >= _ROOMY else _NARROW, whole=whole)
        if self._is_terminal:
            self._line = line if display_width(line) <= columns else line[: columns - 1] + "…"
            self._stream.write(f"\r\033[K{self._line}")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()


def _line(title: str, runner: RunStatus, width: int, *, whole: bool) -> str:
    done = runner.done_before + runner.done_now
    over = done + runner.failed_now
    partly = 0.0 if whole else sum(sum(server.running.values()) for server in runner.servers)
    seconds = time.monotonic() - runner.began
    worked = runner.done_now + runner.failed_now + partly
    parts = [f"{title} {bar(_share(over, partly, runner.total), width)} {done}/{runner.total}"]
    if runner.failed_now:
        parts.append(f"{runner.failed_now} failed")
    if runner.done_now:
        rate = runner.done_now / max(seconds, 1e-9)
        parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
    if worked > 0.02 and over < runner.total:
        parts.append(f"{clock(seconds * (runner.total - over - partly) / worked)} left")
    elif over >= runner.total:
        parts.append(f"took {clock(seconds)}")
    parts.append(_servers(runner.servers))
    return " · ".join(part for part in parts if part)


def _share(over: int, partly: float, total: int) -> float:
    """How much of a run is done, never rounded up to all of it."""
    share = (over + partly) / max(1, total)
    return share if over >= total else min(share, 0.99)


def _servers(servers: Sequence[Server]) -> str:
    """Say which servers are alive; of a single one only if it is not."""
    now = time.monotonic()
    up = [server for server in servers if server.is_up]
    said = [f"{len(up)}/{len(servers)} servers up"] if len(servers) > 1 else []
    for server in servers:
        if server.is_refused:
            said.append(f"{visible(server.target)} has another model")
        elif not server.is_up:
            said.append(f"{visible(server.target)} down {clock(now - server.down_since)}")
        elif server.busy_until > now:
            said.append(f"{visible(server.target)} busy")
    return ", ".join(said)


def bar(share: float, width: int = _WIDE) -> str:
    """Draw how much of something is done, 0 to 1, in eighths of a column."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    drawn = "█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")
    return f"▕{drawn.ljust(width)}▏{share:4.0%}"


def clock(seconds: float) -> str:
    """Return a time as 0:07, 12:34 or 1:02:03."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
