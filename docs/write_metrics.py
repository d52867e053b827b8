"""Writes docs/metrics.md from the metrics that a server registers: `make reference`."""

from __future__ import annotations

from pathlib import Path

from gradellm_server.observability.metrics import (
    COUNTERS,
    DEVICE_GAUGES,
    ENGINE_COUNTERS,
    ENGINE_GAUGES,
    GAUGES,
    HISTOGRAMS,
    INFOS,
    PREFIX,
    Family,
)

KINDS = (
    ("histogram", HISTOGRAMS),
    ("counter", {**COUNTERS, **ENGINE_COUNTERS}),
    ("gauge", {**GAUGES, **ENGINE_GAUGES, **DEVICE_GAUGES, **INFOS}),
)
PAGE = Path(__file__).with_name("metrics.md")
HEAD = """\
# Metrics

What a server tells Prometheus at `http://127.0.0.1:9090/metrics` (`gradellm serve --metrics-listen`). Made by
`make reference`. Names and buckets of what vLLM measures, too, are vLLM's,
after the prefix `gradellm_`. A histogram NAME is read as NAME_bucket, NAME_sum and NAME_count. Beside these the server
tells `process_` metrics (memory, processor time, open files) and `python_info`.

Labels are `rpc` (a call's name), `method` (an attribution method), `metric` (of an evaluation), `code` (a gRPC status),
`reason` (of an error), `finished_reason`, `client` (the name of a token) and `device` (a GPU). None comes from a
request's content.

| name | type | labels | what it is |
| --- | --- | --- | --- |
"""


def text() -> str:
    """The page."""
    rows = []
    for kind, families in KINDS:
        rows += [_row(f"{PREFIX}_{name}", kind, family) for name, family in families.items()]
    return HEAD + "".join(sorted(rows))


def _row(name: str, kind: str, family: Family) -> str:
    if kind == "counter":
        name += "_total"
    ends = f" Buckets end at {', '.join(f'{end:g}' for end in family.buckets)}." if family.buckets else ""
    return f"| `{name}` | {kind} | {', '.join(family.labels)} | {family.text}{ends} |\n"


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
