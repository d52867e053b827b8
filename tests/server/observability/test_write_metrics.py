"""docs/metrics.md matches the registry."""

from __future__ import annotations

from gradellm_server.observability.metrics import Metrics
from write_metrics import PAGE, text


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == text(), "run `make reference`"


def test_the_page_has_every_metric_once() -> None:
    rows = [line.split("`")[1] for line in text().splitlines() if line.startswith("| `")]
    families = [family for family in Metrics().registry.collect() if family.name.startswith("gradellm_")]
    assert sorted(rows) == sorted(f"{f.name}_total" if f.type == "counter" else f.name for f in families)
