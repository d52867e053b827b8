"""Completions and responses, called by OpenAI's JavaScript client."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = next(iter((Path(__file__).parents[3] / ".cache").glob("node-*/node_modules/openai")), None)


@pytest.mark.skipif(shutil.which("node") is None or PACKAGES is None, reason="needs Node.js and its packages")
def test_streams_have_the_texts_of_whole_answers(url: str) -> None:
    assert PACKAGES is not None
    command = ["node", str(Path(__file__).with_name("openai_client.mjs")), str(PACKAGES.parent), f"{url}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["text"] == said["wholeText"] != ""
    assert said["delta"] == said["wholeResponse"] != ""
    assert (said["types"][0], said["types"][-1]) == ("response.created", "response.incomplete")
