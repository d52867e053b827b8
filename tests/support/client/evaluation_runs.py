"""Runs of an evaluation, made of the numbers that their tables are to show."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from gradellm.evaluation.run_results import Run
from gradellm.evaluation.tables.table import Table
from gradellm.evaluation.tables.tables import tables

Numbers = Mapping[str, Sequence[Mapping[str, float] | float | None]]
"""By method a number an example; None where the step was skipped."""


def run_settings(methods: Sequence[str], preset: str = "sst2", **changes: Any) -> dict[str, Any]:
    return {
        "preset": preset, "prompt": {"system": None, "user": "{text}", "form": "chat"}, "labels": ["good", "bad"],
        "data": {"sha256": "d" * 64, "examples": 4, "sample": None, "balance": False},
        "methods": {name: {"method": name} for name in methods}, "metrics": ["pi_soft_ns"], "pis": [0.5, 0.75],
        "samples": 3, "stride": 5, "offset": 0, "seed": 0, "perturb": "user", "removal": "remove", "raw_scores": False,
        "max_new_tokens": None,
        "model": {"weights_sha256": "w" * 64, "tokenizer_sha256": "t", "chat_template_sha256": "c", "dtype": "float32",
                  "quantization": "none"},
        **changes,
    }  # fmt: skip


def evaluation_run(metrics: Mapping[str, Numbers], title: str = "SST2", name: str = "m", **changes: Any) -> Run:
    """A run with an example for each number."""
    methods = list(next(iter(metrics.values())))
    count = len(next(iter(next(iter(metrics.values())).values())))
    records = [
        {
            "label": "good", "predicted": "good" if i else "bad", "outside_labels": i == 1, "steps": 1,
            "skipped_steps": 0, "by": {"name": name, "revision": "", "attention_kernel": "k", "device": "cpu",
                                       "versions": {"torch": "2"}},
            "metrics": {
                metric: {
                    method: {"value": values[i], "curve": [values[i], values[i]], "expected_tokens": 10.0 * i}
                    for method, values in numbers.items() if values[i] is not None
                }
                for metric, numbers in metrics.items()
            },
        }
        for i in range(count)
    ]  # fmt: skip
    all_settings = run_settings(methods, **{"metrics": list(metrics), **changes})
    return Run(f"{name}/{all_settings['model']['dtype']}/{title}/results.jsonl", title, all_settings, tuple(records))


NS: Numbers = {"lime": [0.2, 0.4], "grad_ellm": [0.5, 0.5], "random": [0.1, 0.1], "attention": [0.4, 0.2]}


def only(runs: Sequence[Run]) -> Table:
    (table,) = tables(runs, "gradellm evaluate ...")
    return table


def lines_of(table: Table) -> dict[tuple[str, str], dict[str, str]]:
    return {(line["data"], line["method"]): line for line in csv.DictReader(io.StringIO(table.to_csv()))}
