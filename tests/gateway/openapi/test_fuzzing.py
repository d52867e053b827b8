"""Requests made from the OpenAPI document: none fails with 5xx. `make fuzz-api` installs what makes them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from support.http.calls import send

PROGRAM = next(iter((Path(__file__).parents[3] / ".cache").glob("schemathesis-*/bin/schemathesis")), None)
CASES = 2000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(PROGRAM is None, reason="needs `make fuzz-api`")
def test_no_request_fails_through_the_gateways_fault(url: str, tmp_path: Path) -> None:
    operations = sum(len(methods) for methods in send(url, "GET", "/openapi.json")[2]["paths"].values())
    command = [str(PROGRAM), "run", f"{url}/openapi.json", "--checks", "not_a_server_error", "--phases", "fuzzing"]
    # Operations without a body have few different cases, so that those with one need more.
    command += ["--max-examples", str(2 * CASES // operations), "--seed", "1", "--request-timeout", "60"]
    command += ["--generation-database", "none", "--no-color", "--continue-on-failure"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=3500, check=False)
    generated = re.search(r"([\d,]+) generated", ended.stdout)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
    assert generated is not None, ended.stdout[-2000:]
    assert int(generated[1].replace(",", "")) >= CASES, ended.stdout[-2000:]
