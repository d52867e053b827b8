"""`import gradellm` is cheap, and the names that it promises are there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import gradellm

_MEASURE = """
import sys, time
began = time.perf_counter()
import gradellm
seconds = time.perf_counter() - began
{then}
import json
print(json.dumps([seconds, [name for name in ("torch", "numpy", "transformers", "asyncio") if name in sys.modules]]))
"""


def measure(then: str = "") -> tuple[float, list[str]]:
    run = subprocess.run([sys.executable, "-c", _MEASURE.format(then=then)], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(run.stdout)
    return seconds, modules


def test_import_is_cheap() -> None:
    runs = [measure() for _ in range(5)]
    assert all(modules == [] for _, modules in runs)
    assert min(seconds for seconds, _ in runs) < 0.3


def test_the_client_needs_neither_torch_nor_numpy() -> None:
    _, modules = measure("gradellm.Client('localhost:1').close(); gradellm.Explanation; from gradellm.cli import main")
    assert "torch" not in modules
    assert "numpy" not in modules


def test_every_public_name_is_there() -> None:
    assert dir(gradellm) == sorted(gradellm.__all__)
    for name in gradellm.__all__:
        assert getattr(gradellm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        _ = gradellm.Clint  # type: ignore[attr-defined]
