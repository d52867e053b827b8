"""`gradellm demo`: three explained prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gradellm.cli import main
from gradellm.cli.demo_prompts import SCENES

if TYPE_CHECKING:
    from client.conftest import FakeServer

Out = pytest.CaptureFixture[str]


def test_demo(fake: FakeServer, capsys: Out) -> None:
    assert main(["demo", "--target", fake.target]) == 0
    out = capsys.readouterr().out
    sent = [[(message.role, message.content) for message in each.input.messages] for each in fake.requests]  # type: ignore[attr-defined]
    assert sent == [list(scene.messages) for scene in SCENES]
    assert all(scene.title in out for scene in SCENES)
