"""The Python of README and docs/how-to.md runs as it stands, against a real server and gateway; examples, too."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn

from client.explanation.test_queries import explanation
from gateway.conftest import running
from gradellm_engine import Engine
from gradellm_engine.demo_model import CHECKPOINT
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

PROJECT = Path(__file__).parents[1]
PAGES = sorted(
    str(page.relative_to(PROJECT)) for where in (".", "docs", "deploy") for page in (PROJECT / where).glob("*.md")
)


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Where the pages say that they are, and where they are here."""
    server = RunningServer(Engine.load(str(CHECKPOINT)), ServerSettings(listen="127.0.0.1:0"))
    with running(server.address) as url:
        yield {"localhost:50051": server.address, "http://127.0.0.1:8080": url}
    server.close()


@pytest.mark.parametrize(("page", "least"), [("README.md", 5), ("docs/how-to.md", 5)])
def test_python_blocks_run(
    addresses: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, least: int
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (PROJECT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= least
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks, 1):
        for said, here in addresses.items():
            block = block.replace(said, here)
        try:
            exec(compile(block, f"{page}, block {number}", "exec"), names)
        except Exception as error:
            raise AssertionError(f"block {number} of {page} does not run:\n{block}") from error


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = PROJECT / page
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{page} links to {target}"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PROJECT / "docs" / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fastapi_example_streams(addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setenv("GRADELLM_TARGET", addresses["localhost:50051"])
    server = uvicorn.Server(uvicorn.Config(example("fastapi_app").app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    body = json.dumps({"question": "Text: It was lovely."}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/ask", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [json.loads(line[6:]) for line in answer.read().decode().split("\n") if line]
    server.should_exit = True
    thread.join(10)
    assert [event["index"] for event in events if "token" in event] == [
        event["explains"] for event in events if "explains" in event
    ]
    assert all(event["scores"] for event in events if "explains" in event)


def test_the_gradio_example_shows_what_people_wrote() -> None:
    shown = example("gradio_app").highlighted(explanation())
    assert [text for text, _ in shown] == ["The", " cat", " s", "at", " on a mat"]
    assert max(share for _, share in shown) == 1.0


def test_the_reference_is_that_of_the_sources() -> None:
    spec = importlib.util.spec_from_file_location("write_reference", PROJECT / "docs" / "write_reference.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert (PROJECT / "docs" / "reference.md").read_text() == writer.main(), "run make reference"
