"""Plans, limits and validation runs as Markdown tables, and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradellm_bench.capacity.limits import Limit
from gradellm_bench.capacity.planning import Plan


def plan_table(plans: Sequence[Plan], currency: str = "") -> str:
    """A row for each load."""
    rows = [
        [
            f"{plan.load:,.0f}",
            f"{plan.replicas * plan.run.running:,.0f}",
            f"{plan.replicas:,}",
            f"{plan.gpus:,}",
            f"{plan.each:.2f}",
            f"{plan.run.first_token[0]:.2f} / {plan.run.first_token[1]:.2f}",
            f"{1e3 * plan.run.gap[0]:.0f} / {1e3 * plan.run.gap[1]:.0f}",
            f"{plan.run.lag[0]:.2f} / {plan.run.lag[1]:.2f}",
            f"{plan.run.busy:.0%}",
            "" if plan.a_month is None else f"{plan.a_month / 1e3:,.0f}",
        ]
        for plan in plans
    ]
    header = [
        "requests/s",
        "concurrent streams",
        "servers",
        "GPUs",
        "highest rate per server, requests/s",
        "time to first token, s: p50 / p95",
        "between tokens, ms: p50 / p95",
        "attribution lag, s: p50 / p95",
        "GPU busy",
        f"cost per month, thousands {currency}".rstrip(),
    ]
    return markdown(header, rows)


def limit_table(limits: Sequence[Limit]) -> str:
    """A row for each resource; exhausted ones in bold."""
    rows = [
        [limit.what, f"**{limit.used:.0%}**" if limit.used > 1 else f"{limit.used:.0%}", limit.arithmetic, limit.remedy]
        for limit in limits
    ]
    return markdown(["resource", "used", "calculation", "remedy"], rows)


def validation_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Measured and simulated figures, and their relative difference."""
    rows = []
    for run in runs:
        real, simulated = run["real"], run["simulated"]
        figures = [
            ("tokens/s", real["tokens_per_second"], simulated["tokens_per_second"]),
            ("time to first token, s, p50", real["first_token"][0], simulated["first_token"][0]),
            ("time to first token, s, p95", real["first_token"][1], simulated["first_token"][1]),
            ("between tokens, ms, p50", 1e3 * real["gap"][0], 1e3 * simulated["gap"][0]),
            ("between tokens, ms, p95", 1e3 * real["gap"][1], 1e3 * simulated["gap"][1]),
            ("attribution lag, ms, p50", 1e3 * real["lag"][0], 1e3 * simulated["lag"][0]),
            ("concurrent streams", real["running"], simulated["running"]),
        ]
        for index, (what, measured, predicted) in enumerate(figures):
            error = f"{predicted / measured - 1:+.0%}" if measured else ""
            rows.append([run["what"] if not index else "", what, f"{measured:,.3g}", f"{predicted:,.3g}", error])
    return markdown(["run", "figure", "measured", "simulated", "error"], rows)


def plot(curves: Mapping[str, Sequence[tuple[float, float, float]]], promise: float, path: Path) -> None:
    """Plot time to first token and gap by load: points (requests a second, s, ms) by curve."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, points in curves.items():
        rates = [rate for rate, _, _ in points]
        axes[0].plot(rates, [first for _, first, _ in points], "o-", markersize=3, label=name)
        axes[1].plot(rates, [gap for _, _, gap in points], "o-", markersize=3, label=name)
    axes[0].axhline(promise, color="grey", linestyle=":")
    axes[0].set(title="First token, 95th percentile", ylabel="seconds", yscale="log")
    axes[1].set(title="Between tokens, 95th percentile", ylabel="milliseconds", ylim=(0, None))
    for axis in axes:
        axis.set(xlabel="requests a second of one server")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small", loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns of numbers are right-aligned, except the first."""
    lines = [header, ["---"] + ["---:" if _is_number(rows, index) else "---" for index in range(1, len(header))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_number(rows: Sequence[Sequence[str]], index: int) -> bool:
    return all(not row[index] or (row[index].strip("*+-")[:1].isdigit() and len(row[index]) < 20) for row in rows)
