"""The README's Python runs as it stands, against a real server and a real gateway."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.conftest import running
from gradellm_engine import Engine
from gradellm_engine.demo_model import CHECKPOINT
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Where the README says that they are, and where they are here."""
    server = RunningServer(Engine.load(str(CHECKPOINT)), ServerSettings(listen="127.0.0.1:0"))
    with running(server.address) as url:
        yield {"localhost:50051": server.address, "http://127.0.0.1:8080": url}
    server.close()


def test_python_blocks_run(addresses: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) >= 5
    names: dict[str, Any] = {"__name__": "readme"}
    for number, block in enumerate(BLOCKS, 1):
        for said, here in addresses.items():
            block = block.replace(said, here)
        try:
            exec(compile(block, f"README block {number}", "exec"), names)
        except Exception as error:
            raise AssertionError(f"block {number} of the README does not run:\n{block}") from error
    assert (tmp_path / "story.html").exists()
