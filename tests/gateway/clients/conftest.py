"""Programs that people use, and gateways in front of real models for them.

`make clients` installs the programs; GRADELLM_REAL_MODELS is the folder with the models.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from gateway.conftest import running
from gradellm_engine import Engine
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer
from support.tools.templates import HERMES

PROGRAMS = Path(__file__).with_name("programs")
CACHE = Path(__file__).parents[3] / ".cache"
SECONDS = 1500  # of one program


def real_model(name: str) -> Path:
    """The folder of a real model; skips where GRADELLM_REAL_MODELS does not have it."""
    folder = Path(os.environ.get("GRADELLM_REAL_MODELS", "")) / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"GRADELLM_REAL_MODELS names no folder with {name}/ in it")
    return folder


@contextmanager
def gateway_of(model: Path, dtype: str = "float32", **settings: Any) -> Iterator[str]:
    """The API's base of a gateway in front of a model. `settings` are keywords of the gateway's app."""
    engine = Engine.load(str(model), dtype=dtype, kv_bytes=512 << 20)
    server = RunningServer(engine, ServerSettings(listen="127.0.0.1:0"))
    try:
        with running(server.address, settings=settings) as url:
            yield f"{url}/v1"
    finally:
        server.close()


def with_template(name: str, template: str, folder: Path) -> Path:
    """Fill a folder with a real model, but with another chat template; the folder."""
    for path in real_model(name).iterdir():
        if path.name != "chat_template.jinja":
            (folder / path.name).symlink_to(path.resolve())
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tools_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API's base of a gateway in front of SmolLM2 with a chat template that has tools; its own has none."""
    with gateway_of(with_template("smollm2", HERMES, tmp_path_factory.mktemp("smollm2-tools"))) as url:
        yield url


def program(name: str) -> Path:
    """The path of a program below .cache, by a pattern; skips without it."""
    found = next(iter(sorted(CACHE.glob(name))), None)
    if found is None:
        pytest.skip("needs `make clients`")
    return found


def run(*command: str | Path, **variables: str) -> str:
    """Run a program without this process's Python path; what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=SECONDS, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def said(*command: str | Path) -> Any:
    """The JSON of the last line that a program prints."""
    return json.loads(run(*command).splitlines()[-1])


def python_program(name: str, *arguments: str) -> Any:
    """What a program of `programs` says, run with the packages of `make clients`."""
    return said(program("clients-*/bin/python"), PROGRAMS / name, *arguments)


def javascript_program(name: str, *arguments: str) -> Any:
    """The same, by Node.js."""
    return said("node", PROGRAMS / name, program("node-*/node_modules/ai").parent, *arguments)


class Program(Protocol):
    """Calls a program with its arguments; what it says."""

    def __call__(self, *arguments: str) -> Any: ...


OPENAI = [
    pytest.param(partial(python_program, "openai_calls.py"), id="python"),
    pytest.param(partial(javascript_program, "openai_calls.mjs"), id="javascript"),
]
"""OpenAI's packages, by programs that say the same."""
