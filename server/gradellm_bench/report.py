"""Results as Markdown tables, sentences, JSON and a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradellm_bench.latency import Latency
from gradellm_bench.served.throughput import Admission, Memory, Reuse, Throughput


@dataclass
class Report:
    """Results of one run of `gradellm bench`.

    Attributes:
        machine: model, dtype, device, threads, versions.
        bandwidth: memory bandwidth in bytes per second.
        latencies: every backend at every prompt length.
        throughputs: backends by prompt length and number of streams.
        admission: running streams while a long prompt is admitted.
        reuse: prefix reuse in a conversation.
        memory: peak memory, and memory after many requests.
    """

    machine: dict[str, str]
    bandwidth: float
    latencies: list[Latency] = field(default_factory=list)
    throughputs: list[Throughput] = field(default_factory=list)
    admission: Admission | None = None
    reuse: Reuse | None = None
    memory: Memory | None = None

    def write_json(self, path: Path) -> None:
        """Write every figure of every round."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def headline(report: Report) -> str:
    """Machine, model and versions, in a line."""
    machine = ", ".join(filter(None, report.machine.values()))
    return f"{machine}; memory bandwidth {report.bandwidth / 1e9:.1f} GB/s"


def latency_table(latencies: Sequence[Latency]) -> str:
    """A row for each backend, at one prompt length."""
    plain = next((latency for latency in latencies if latency.backend == "plain"), None)
    rows = []
    for latency in latencies:
        per_token = statistics.median(latency.per_token)
        rows.append(
            [
                latency.backend,
                f"{statistics.median(latency.first_token):,.0f}",
                f"{per_token:,.1f}",
                f"{latency.over(plain):,.2f}" if plain else "",
                f"{statistics.median(latency.to_vector):,.0f}" if latency.to_vector else "",
                f"{latency.floor:,.1f} ({latency.floor / per_token:.0%})" if latency.floor else "",
            ]
        )
    header = [
        "backend",
        "time to first token, ms",
        "time per token, ms",
        "relative to plain",
        "attribution lag, ms",
        "lower bound, ms (share reached)",
    ]
    return f"prompt of {latencies[0].prompt_tokens:,} tokens\n\n{_markdown(header, rows)}"


def throughput_table(throughputs: Sequence[Throughput]) -> str:
    """Tokens per second of all streams, by number of streams and backend, at one prompt length."""
    backends = list(dict.fromkeys(result.backend for result in throughputs))
    rows = []
    for count in dict.fromkeys(result.streams for result in throughputs):
        row = {result.backend: result for result in throughputs if result.streams == count}
        cells = [
            f"{cell.tokens_per_second:,.1f} ({cell.gap:,.0f}; {cell.tokens_per_second / cell.floor:.0%})"
            for cell in (row[backend] for backend in backends)
        ]
        rows.append([str(count), *cells])
    title = (
        f"prompts of {throughputs[0].prompt_tokens:,} tokens: tokens per second of all streams "
        "(median ms between a stream's tokens; share of the upper bound)"
    )
    return f"{title}\n\n{_markdown(['streams', *backends], rows)}"


def admission_fact(admission: Admission) -> str:
    """The largest gap of running streams while a long prompt is admitted."""
    return (
        f"A prompt of {admission.prompt_tokens:,} tokens is admitted while {admission.streams} explained streams "
        f"run: their largest gap between tokens is {admission.largest_gap:,.0f} ms, {admission.stretch:.1f} times "
        f"the median before; its own first token takes {admission.first_token:,.0f} ms."
    )


def reuse_fact(turns: Reuse) -> str:
    """Time to first token of a conversation's second turn."""
    return (
        f"A conversation's second turn ({turns.second_tokens:,} tokens, {turns.reused_tokens:,} of them reused) takes "
        f"{turns.second:,.0f} ms to its first token, {turns.second / turns.first:.2f} of what the first turn "
        f"({turns.first_tokens:,} tokens) took, {turns.first:,.0f} ms."
    )


def memory_fact(used: Memory) -> str:
    """Peak memory by mode, and memory before and after many requests."""
    peaks = [f"{kind} {peak / 1e6:,.0f} MB ({peak / used.peak['plain']:.3f})" for kind, peak in used.peak.items()]
    sentences = [f"Peak memory of one stream, in brackets relative to plain: {', '.join(peaks)}."] if peaks else []
    sentences.append(
        f"{used.requests:,} short explained requests: {used.before / 1e6:,.1f} MB in use before, "
        f"{used.after / 1e6:,.1f} MB after."
    )
    return " ".join(sentences)


def plot(report: Report, path: Path) -> None:
    """Plot cost by prompt length and throughput by number of streams, as far as measured, as PNG or SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    panels = [panel for panel, figures in ((_cost, report.latencies), (_speed, report.throughputs)) if figures]
    figure, axes = pyplot.subplots(
        1, len(panels) or 1, figsize=(6 * (len(panels) or 1), 4.2), layout="constrained", squeeze=False
    )
    for panel, axis in zip(panels, axes[0], strict=False):
        panel(report, axis)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(headline(report).replace("; ", "\n"), fontsize="x-small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _cost(report: Report, axes: Any) -> None:  # noqa: ANN401 (matplotlib's)
    for backend in dict.fromkeys(latency.backend for latency in report.latencies):
        rows = [latency for latency in report.latencies if latency.backend == backend]
        lengths = [latency.prompt_tokens for latency in rows]
        (line,) = axes.plot(lengths, [statistics.median(latency.per_token) for latency in rows], "o-", label=backend)
        if all(latency.floor for latency in rows):
            axes.plot(lengths, [latency.floor for latency in rows], ":", color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="prompt tokens", ylabel="milliseconds per token")
    axes.set_title("Time per token (dotted: lower bound)")
    lengths = sorted({latency.prompt_tokens for latency in report.latencies})
    axes.set_xticks(lengths, map(str, lengths))
    axes.minorticks_off()


def _speed(report: Report, axes: Any) -> None:  # noqa: ANN401 (matplotlib's)
    for backend, length in dict.fromkeys((result.backend, result.prompt_tokens) for result in report.throughputs):
        rows = [result for result in report.throughputs if (result.backend, result.prompt_tokens) == (backend, length)]
        axes.plot(
            [r.streams for r in rows], [r.tokens_per_second for r in rows], "o-", label=f"{backend}, {length} tokens"
        )
    axes.set(xlabel="concurrent streams", ylabel="tokens per second, all streams", ylim=(0, None))
    axes.set_title("Throughput")


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns; all but the first are right-aligned."""
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = line(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join([line(header), rule, *map(line, rows)])
