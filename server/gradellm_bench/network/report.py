"""The results of servers under load, as Markdown tables and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradellm_bench.capacity.report import markdown

Row = dict[str, Any]


def burst_table(rows: Sequence[Row]) -> str:
    """Requests that arrive at once; ratios to vLLM where it was measured; empty without rows."""
    peers = {(row["prompt"], row["streams"]): row for row in rows if row["server"] == "vllm"}
    lines = []
    for row in rows:
        peer = peers.get((row["prompt"], row["streams"]))
        ratios = [
            "" if peer is None else f"{row[name] / peer[name]:.2f}"
            for name in ("tokens_per_second", "last_first_token_ms")
        ]
        lines.append(
            [
                f"{row['prompt']}",
                f"{row['streams']}",
                row["server"],
                f"{row['tokens_per_second']:.1f}",
                ratios[0],
                f"{row['last_first_token_ms']:.0f}",
                ratios[1],
                f"{row['token_ms']:.1f}",
                f"{row['max_gap_ms']:.0f}",
            ]
        )
    header = [
        "prompt",
        "streams",
        "server",
        "tokens/s",
        "of vLLM's",
        "first token, last stream, ms",
        "of vLLM's",
        "ms a token",
        "largest gap, ms",
    ]
    return markdown(header, lines) if lines else ""


def load_table(rows: Sequence[Row]) -> str:
    """Poisson arrivals, by load; empty without rows."""
    lines = [
        [
            f"{row['prompt']}",
            f"{row['load']} %",
            row["server"],
            f"{row['rate']:.2f}",
            f"{row['tokens_per_second']:.1f}",
            *(f"{row['first_token'][name]:,.0f}" for name in ("p50", "p95", "p99")),
            *(f"{row['gap'][name]:,.0f}" for name in ("p50", "p95", "p99", "max")),
            f"{row['num_served']} / {row['num_refused']}",
        ]
        for row in rows
    ]
    header = [
        "prompt",
        "load",
        "server",
        "requests/s",
        "tokens/s",
        "first token, ms: p50",
        "p95",
        "p99",
        "gap, ms: p50",
        "p95",
        "p99",
        "largest",
        "served / refused",
    ]
    return markdown(header, lines) if lines else ""


def plot_loads(rows: Sequence[Row], path: Path) -> None:
    """Plot the 95th percentiles of first tokens and gaps by load, for each server and prompt length."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for prompt, server in dict.fromkeys((row["prompt"], row["server"]) for row in rows):
        points = [row for row in rows if (row["prompt"], row["server"]) == (prompt, server)]
        for axis, name in zip(axes, ("first_token", "gap"), strict=True):
            axis.plot(
                [row["load"] for row in points],
                [row[name]["p95"] for row in points],
                "o-",
                markersize=3,
                label=f"{server}, prompts of {prompt}",
            )
    axes[0].set(title="First token, 95th percentile", ylabel="milliseconds", yscale="log")
    axes[1].set(title="Between tokens, 95th percentile", ylabel="milliseconds", ylim=(0, None))
    for axis in axes:
        axis.set(xlabel="arrivals, % of the server's capacity")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
