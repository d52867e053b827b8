"""Plans and trials as tables and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradellm_bench.capacity.limits import Limit
from gradellm_bench.capacity.planning import Plan


def plan_table(plans: Sequence[Plan], currency: str = "") -> str:
    """A row a load."""
    rows = [
        [
            f"{its.load:,.0f}",
            f"{its.replicas * its.run.running:,.0f}",
            f"{its.replicas:,}",
            f"{its.gpus:,}",
            f"{its.each:.2f}",
            f"{its.run.first_token[0]:.2f} / {its.run.first_token[1]:.2f}",
            f"{1e3 * its.run.gap[0]:.0f} / {1e3 * its.run.gap[1]:.0f}",
            f"{its.run.lag[0]:.2f} / {its.run.lag[1]:.2f}",
            f"{its.run.busy:.0%}",
            "" if its.a_month is None else f"{its.a_month / 1e3:,.0f}",
        ]
        for its in plans
    ]
    header = [
        *("requests/s", "streams at a time", "servers", "GPUs", "most a server takes, /s", "first token, s: 50 / 95 %"),
        *("between tokens, ms: 50 / 95 %", "to its scores, s: 50 / 95 %", "GPU busy"),
        f"a month, thousand {currency}".rstrip(),
    ]
    return markdown(header, rows)


def limit_table(found: Sequence[Limit]) -> str:
    """A row a limit; what has run out is in bold."""
    rows = [
        [its.what, f"**{its.used:.0%}**" if its.used > 1 else f"{its.used:.0%}", its.arithmetic, its.remedy]
        for its in found
    ]
    return markdown(["what", "used", "how that comes", "what helps"], rows)


def validation_table(trials: Sequence[Mapping[str, Any]]) -> str:
    """What was measured beside what was predicted, and how far off."""
    rows = []
    for its in trials:
        real, simulated = its["real"], its["simulated"]
        figures = [
            ("tokens a second", real["tokens_per_second"], simulated["tokens_per_second"]),
            ("first token, s, 50 %", real["first_token"][0], simulated["first_token"][0]),
            ("first token, s, 95 %", real["first_token"][1], simulated["first_token"][1]),
            ("between tokens, ms, 50 %", 1e3 * real["gap"][0], 1e3 * simulated["gap"][0]),
            ("between tokens, ms, 95 %", 1e3 * real["gap"][1], 1e3 * simulated["gap"][1]),
            ("to its scores, ms, 50 %", 1e3 * real["lag"][0], 1e3 * simulated["lag"][0]),
            ("streams at a time", real["running"], simulated["running"]),
        ]
        for index, (what, was, said) in enumerate(figures):
            off = f"{said / was - 1:+.0%}" if was else ""
            rows.append([its["what"] if not index else "", what, f"{was:,.3g}", f"{said:,.3g}", off])
    return markdown(["run", "figure", "measured", "simulated", "off by"], rows)


def plot(curves: Mapping[str, Sequence[tuple[float, float, float]]], promise: float, path: Path) -> None:
    """First token and gap by the load of one server: (requests a second, s, ms) by curve."""
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
    for its in axes:
        its.set(xlabel="requests a second of one server")
        its.grid(alpha=0.3)
        its.legend(fontsize="x-small", loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns but the first and those of words stand on the right."""
    lines = [header, ["---"] + ["---:" if _is_number(rows, index) else "---" for index in range(1, len(header))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_number(rows: Sequence[Sequence[str]], index: int) -> bool:
    return all(not row[index] or (row[index].strip("*+-")[:1].isdigit() and len(row[index]) < 20) for row in rows)
