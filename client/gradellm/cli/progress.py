"""Messages and progress on standard error: a progress bar on a terminal, plain lines elsewhere."""

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

__all__ = ["CallProgress", "Progress", "RunStatus", "bar", "clock", "print_status"]

_REDRAW_SECONDS, _LINE_SECONDS = 0.2, 10.0  # between updates of the bar, and between plain lines
_WIDE, _NARROW, _WIDE_TERMINAL = 24, 12, 100  # columns of the bar, and of a terminal for the wide one


def print_status(text: str) -> None:
    """Print a message on standard error."""
    print("\n".join(map(visible, text.split("\n"))), file=sys.stderr, flush=True)


class RunStatus(Protocol):
    """The progress of a run."""

    total: int
    done_before: int
    done_now: int
    failed_now: int
    began: float
    """By the monotonic clock."""

    @property
    def servers(self) -> Sequence[Server]:
        """The servers that evaluate, if their state is to be shown."""


class CallProgress:
    """Shows the progress of one call on a terminal, as a client's `on_event`. The line is erased at the end.

    with CallProgress("explained") as progress:
        client.explain("Hello", on_event=progress)
    """

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._shown = ""

    def __call__(self, event: Event) -> None:
        """Show a progress event; erase the line for any other event."""
        line = ""
        if event.prompt_progress is not None:
            line = f"{event.prompt_progress.done:4.0%} of the prompt read"
        elif event.progress is not None:
            line = f"{event.progress.done:4.0%} {self._verb}"
        if not sys.stderr.isatty() or line == self._shown:
            return
        if len(line) < len(self._shown):
            sys.stderr.write("\r\033[K")
        sys.stderr.write(f"\r{line}" if line else "")
        sys.stderr.flush()
        self._shown = line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")  # so that an error begins on an empty line
            sys.stderr.flush()


class Progress:
    """Shows the progress of a run; `close` leaves the final state on the terminal."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title = title
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._last = float("-inf") if self._is_terminal else time.monotonic()
        self._line = ""

    def show(self, runner: RunStatus) -> None:
        """Show the run's progress, if an update is due."""
        now = time.monotonic()
        if now - self._last < (_REDRAW_SECONDS if self._is_terminal else _LINE_SECONDS):
            return
        self._last = now
        self._write(runner)

    def message(self, text: str) -> None:
        """Print a message on a line of its own."""
        erase = "\r\033[K" if self._is_terminal and self._line else ""
        self._stream.write(f"{erase}{visible(text)}\n{self._line}")
        self._stream.flush()

    def close(self, runner: RunStatus) -> None:
        """Show the final state, with complete examples only."""
        self._write(runner, complete_only=True)
        if self._is_terminal:
            self._stream.write("\n")
        self._stream.flush()
        self._line = ""

    def _write(self, runner: RunStatus, *, complete_only: bool = False) -> None:
        columns = shutil.get_terminal_size().columns - 1
        line = _line(self._title, runner, _WIDE if columns >= _WIDE_TERMINAL else _NARROW, complete_only=complete_only)
        if self._is_terminal:
            self._line = line if display_width(line) <= columns else line[: columns - 1] + "…"
            self._stream.write(f"\r\033[K{self._line}")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()


def _line(title: str, runner: RunStatus, width: int, *, complete_only: bool) -> str:
    done = runner.done_before + runner.done_now
    over = done + runner.failed_now
    partial = 0.0 if complete_only else sum(sum(server.running.values()) for server in runner.servers)
    seconds = time.monotonic() - runner.began
    worked = runner.done_now + runner.failed_now + partial
    parts = [f"{title} {bar(_share(over, partial, runner.total), width)} {done}/{runner.total}"]
    if runner.failed_now:
        parts.append(f"{runner.failed_now} failed")
    if runner.done_now:
        rate = runner.done_now / max(seconds, 1e-9)
        parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
    if worked > 0.02 and over < runner.total:
        parts.append(f"{clock(seconds * (runner.total - over - partial) / worked)} left")
    elif over >= runner.total:
        parts.append(f"took {clock(seconds)}")
    parts.append(_servers(runner.servers))
    return " · ".join(part for part in parts if part)


def _share(over: int, partial: float, total: int) -> float:
    """Return the share of a run that is done, below 1 until it is complete."""
    share = (over + partial) / max(1, total)
    return share if over >= total else min(share, 0.99)


def _servers(servers: Sequence[Server]) -> str:
    """Return how many servers are up, and which are not; a single server is mentioned only if it is down."""
    now = time.monotonic()
    up = [server for server in servers if server.is_up]
    parts = [f"{len(up)}/{len(servers)} servers up"] if len(servers) > 1 else []
    for server in servers:
        if server.is_refused:
            parts.append(f"{visible(server.target)} has another model")
        elif not server.is_up:
            parts.append(f"{visible(server.target)} down {clock(now - server.down_since)}")
        elif server.busy_until > now:
            parts.append(f"{visible(server.target)} busy")
    return ", ".join(parts)


def bar(share: float, width: int = _WIDE) -> str:
    """Return a progress bar of a share in 0..1, in eighths of a column."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    drawn = "█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")
    return f"▕{drawn.ljust(width)}▏{share:4.0%}"


def clock(seconds: float) -> str:
    """Format a duration as 0:07, 12:34 or 1:02:03."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
