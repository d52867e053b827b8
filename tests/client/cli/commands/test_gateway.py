"""`gradellm gateway`: replaces this process with the gateway."""

from __future__ import annotations

import os

import pytest

from gradellm.cli import main


def test_the_gateway_needs_no_package_that_hosts_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[list[str]] = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        became.append(arguments)
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr("gradellm.local.processes._PACKAGES", ("no_such_package",))
    with pytest.raises(SystemExit):
        main(["gateway", "--help", "--target", "a:1"])
    assert became[0][2:] == ["-m", "gradellm_gateway", "--help", "--target", "a:1"]
