"""`gradellm mcp`: tools on standard input, with a server that runs or one of its own."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

pytest.importorskip("mcp", reason="the extra [mcp] is not installed")

from mcp import Client, StdioServerParameters

from gradellm.cli import main


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    assert main(["mcp", "--target", "localhost:1"]) == 2
    assert "pip install 'gradellm[mcp]'" in capsys.readouterr().err


def test_a_model_and_a_target_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mcp", "--target", "localhost:1", "--model", "x"]) == 2
    assert "--model: is for a local server" in capsys.readouterr().err


def test_the_official_client_calls_a_tool() -> None:
    """By standard input and output, with a server of its own, which ends with it."""

    async def run() -> Any:
        command = StdioServerParameters(command=sys.executable, args=["-m", "gradellm", "mcp"])
        async with Client(command) as client:
            return await client.call_tool("explain", {"prompt": "Once upon a time", "max_new_tokens": 4})

    result = asyncio.run(asyncio.wait_for(run(), 120))
    assert not result.is_error
    assert result.structured_content["answer"]
