"""A server as an operator starts it: JSON logs from first to last, metrics before the model is loaded."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from gradellm import Client


def test_all_output_is_json_and_a_call_is_counted_and_logged(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    arguments = ["--listen", address, "--metrics-listen", "127.0.0.1:0", "--log-format", "json"]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-m", "gradellm_server", *arguments], stderr=output)
    try:
        limit = time.monotonic() + 120
        while '"serving ' not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < limit
            time.sleep(0.05)
        with Client(address, retry=None) as client:
            client.explain("Once", max_new_tokens=3)
        match = re.search(r"metrics on (\S+?:\d+)", log.read_text())
        assert match is not None
        with urllib.request.urlopen(f"http://{match[1]}/metrics", timeout=10) as response:
            metrics = response.read().decode()
        assert 'gradellm_generation_tokens_total{rpc="Generate"} 3.0' in metrics
        assert 'gradellm_attribution_tokens_total{method="grad_ellm"} 3.0' in metrics
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(record["message"].startswith("serving ") for record in records)
    (line,) = [record for record in records if record.get("rpc") == "Generate"]
    assert (line["code"], line["completion_tokens"], line["attributed_tokens"]) == ("OK", 3, 3)
