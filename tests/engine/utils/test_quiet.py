"""Imported libraries stay silent; commands end with their status."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest
from transformers.utils import logging as transformers_logging

from gradellm_engine.utils.quiet import quiet_transformers, run_and_exit


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Transformers with warnings and progress bars, as at first; restored afterwards."""
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    before, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_warning()
    transformers_logging.enable_progress_bar()
    yield
    transformers_logging.set_verbosity(before)
    if not had_bars:
        transformers_logging.disable_progress_bar()


def state() -> tuple[int, bool]:
    return transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()


@pytest.mark.usefixtures("loud")
def test_transformers_is_quiet_for_a_while() -> None:
    """Also where what runs meanwhile fails."""
    within: list[tuple[int, bool]] = []

    def load() -> None:
        with quiet_transformers():
            within.append(state())
            raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        load()
    assert within == [(logging.ERROR, False)]
    assert state() == (logging.WARNING, True)


@pytest.mark.usefixtures("loud")
def test_progress_bars_that_were_off_stay_off() -> None:
    transformers_logging.disable_progress_bar()
    with quiet_transformers():
        pass
    assert state() == (logging.WARNING, False)


@pytest.mark.usefixtures("loud")
def test_a_verbosity_of_the_environment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    with quiet_transformers():
        assert state() == (logging.WARNING, True)


def test_warnings_of_torchao_are_dropped() -> None:
    assert not logging.getLogger("torchao.kernel").isEnabledFor(logging.WARNING)
    assert logging.getLogger("torchao.kernel").isEnabledFor(logging.ERROR)


class Exited(BaseException):
    """Stands for the end of the process."""


def returning(status: int | None) -> Callable[[], int | None]:
    return lambda: status


def raising(error: BaseException) -> Callable[[], int | None]:
    def main() -> NoReturn:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "status", "printed"),
    [
        (returning(None), 0, ""),
        (returning(3), 3, ""),
        (raising(SystemExit(None)), 0, ""),
        (raising(SystemExit(2)), 2, ""),
        (raising(SystemExit("no such file")), 1, "no such file\n"),
        (raising(KeyboardInterrupt()), 130, "\ninterrupted\n"),
    ],
)
def test_a_command_exits_with_its_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Callable[[], int | None],
    status: int,
    printed: str,
) -> None:
    def exits(number: int) -> NoReturn:
        raise Exited(number)

    monkeypatch.setattr(os, "_exit", exits)
    monkeypatch.setattr(logging, "shutdown", lambda: None)  # other tests log
    with pytest.raises(Exited) as ended:
        run_and_exit(main)
    assert ended.value.args == (status,)
    assert capsys.readouterr().err == printed


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(ValueError, match="a bug"):
        run_and_exit(raising(ValueError("a bug")))
