"""deploy/monitoring: dashboard and rules use exported metrics, and Prometheus itself accepts them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm_server.observability import metrics
from gradellm_server.observability.metrics import Metrics
from server.conftest import Serving

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
OWN = {"up", "ALERTS"}  # Prometheus's
NAME = re.compile(r"\b(?:gradellm_[a-z0-9_]+|process_[a-z_]+|up(?=\{))")
ROWS = [
    "Traffic",
    "Latency",
    "Attribution",
    "Following other engines",
    "Evaluation",
    "Memory of keys and values",
    "Errors",
]


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed (Debian's package prometheus)")
    return found


def sample_names() -> set[str]:
    """Every name of a sample that a scrape can have."""
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
    families = Metrics().registry.collect()
    return OWN | {f"{family.name}{suffix}" for family in families for suffix in suffixes[family.type]}


def labels_of(name: str) -> set[str]:
    gauges = {
        **metrics.GAUGES,
        **metrics.ENGINE_GAUGES,
        **metrics.DEVICE_GAUGES,
        **metrics.INFOS,
    }
    families = {**metrics.COUNTERS, **metrics.ENGINE_COUNTERS, **metrics.HISTOGRAMS, **gauges}
    short = re.sub(r"_(total|bucket|sum|count)$", "", name.removeprefix("gradellm_"))
    return set(families[short].labels) if short in families else set()


def board() -> Any:
    return json.loads((MONITORING / "dashboard.json").read_text())


def queries() -> list[str]:
    expressions = [target["expr"] for panel in board()["panels"] for target in panel.get("targets", ())]
    return expressions + [v["definition"] for v in board()["templating"]["list"] if v["type"] == "query"]


def rules() -> list[str]:
    """Each rule's expression: the text between `expr:` and the next key."""
    text = (MONITORING / "alerts.yml").read_text()
    return re.findall(r"expr:(.*?)\n\s+(?:for|labels):", text, re.DOTALL)


def test_every_query_and_rule_uses_an_exported_metric() -> None:
    assert len(queries()) > 30
    assert len(rules()) == 11
    names = sample_names()
    for query in queries() + rules():
        used = set(NAME.findall(query))
        assert used, query
        assert used <= names, query


def test_every_query_uses_existing_labels() -> None:
    for query in queries() + rules():
        allowed = {"instance", "job", "le"}.union(*(labels_of(name) for name in NAME.findall(query)))
        grouped = [label for group in re.findall(r"by \(([^)]*)\)", query) for label in re.split(r",\s*", group)]
        selected = re.findall(r"(\w+)(?:=~|!=|=)\"", query)
        assert set(grouped + selected) <= allowed, query


def test_the_dashboard_has_its_rows_and_no_data_source() -> None:
    panels = board()["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == ROWS
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
    positions = [tuple(panel["gridPos"][key] for key in "xywh") for panel in panels]
    cells = [(column, row) for x, y, w, h in positions for column in range(x, x + w) for row in range(y, y + h)]
    assert len(set(cells)) == len(cells)  # none covers another
    assert max(column for column, _ in cells) < 24


def test_every_alert_says_what_to_do() -> None:
    text = (MONITORING / "alerts.yml").read_text()
    assert text.count("- alert:") == text.count("summary:") == text.count("description:") == text.count("severity:")


@pytest.mark.parametrize(
    "arguments",
    [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"], ["check", "config", "prometheus.yml"]],
)
def test_promtool_accepts_the_rules(arguments: list[str]) -> None:
    ended = subprocess.run(
        [needs("promtool"), *arguments], cwd=MONITORING, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_alert_is_tested_and_documented() -> None:
    alerts = re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yml").read_text())
    tests = (MONITORING / "alerts.test.yml").read_text()
    assert all(alert in tests for alert in alerts)
    page = (MONITORING.parents[1] / "docs" / "operations" / "observability.md").read_text()
    assert re.findall(r"^\| `(Gradellm\w+)`", page, re.MULTILINE) == alerts


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Callable[[str], Any]]:
    """A real Prometheus that scrapes a target with our example configuration; yields a function for queries."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = (MONITORING / "prometheus.yml").read_text().replace("127.0.0.1:9090", target).replace("15s", "1s")
    (folder / "prometheus.yml").write_text(config)
    (folder / "alerts.yml").write_text((MONITORING / "alerts.yml").read_text())
    command = [
        needs("prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]

    def ask(query: str) -> Any:
        url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from error
        except OSError:
            return []  # while it starts

    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield ask
    finally:
        process.terminate()
        process.wait(20)


def test_prometheus_scrapes_a_server_and_answers_the_dashboards_queries(serving: Serving, tmp_path: Path) -> None:
    needs("prometheus")
    with serving(metrics_listen="127.0.0.1:0") as server:
        assert server.server.metrics_address is not None
        for number in (2, 3, 4):
            list(
                server.stub.Generate(
                    pb.GenerateRequest(
                        input=pb.Input(prompt="abc"), max_new_tokens=number, attribution=pb.AttributionOptions()
                    )
                )
            )
        with prometheus(tmp_path, server.server.metrics_address) as ask:
            limit = time.monotonic() + 60
            while not (found := ask('sum(gradellm_generation_tokens_total{job="gradellm"})')):
                assert time.monotonic() < limit, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.2)
            assert found[0]["value"][1] == "9"
            assert ask("up")[0]["value"][1] == "1"
            (count,) = ask("gradellm_time_to_first_token_seconds_count")
            assert count["value"][1] == "3"
            (model,) = ask("gradellm_model_info")
            assert model["metric"]["family"] == server.engine.info.family
            for query in queries():
                if not query.startswith("label_values"):
                    plain = query.replace("$instance", ".*").replace("$__rate_interval", "1m")
                    assert isinstance(ask(plain), list)
