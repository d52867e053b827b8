"""Curves of pi-Soft metrics over the retention share, as in the paper's figure 2. Needs matplotlib."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from gradellm.errors import GradellmError
from gradellm.evaluation.names import method_title, metric_title

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from matplotlib.figure import Figure

    from gradellm.evaluation.run_results import Run

__all__ = ["curves_figure", "missing_package", "run_figure", "save"]

_MARKERS = "osD^vP*X<>hpd"
_COLORS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#5254a3", "#b5651d",
    "#637939", "#7b4173",
)  # fmt: skip
_OURS = ("grad_ellm", "#d62728")  # highlighted
_MISSING = "plotting needs matplotlib: pip install 'gradellm[plots]'"


def missing_package() -> str:
    """Return how to install matplotlib; empty if it is installed."""
    return "" if importlib.util.find_spec("matplotlib") is not None else _MISSING


def curves_figure(
    pis: Sequence[float],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    bands: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] | None = None,
    heading: str = "",
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Plot curves by metric and name, one panel per metric, with their bands (low, high), if given.

    `labels` has the names in the legend that differ from the curves' names.

    Raises GradellmError without matplotlib.
    """
    if missing := missing_package():
        raise GradellmError(missing)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(curves), 4.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (metric, by_name) in zip(panels, curves.items(), strict=True):
        spacing = 3 if len(by_name) > 4 else 1  # so that overlapping curves show alternating markers
        for i, (name, values) in enumerate(by_name.items()):
            is_random, is_ours = name == "random", name == _OURS[0]
            color = "black" if is_random else _OURS[1] if is_ours else _COLORS[i % len(_COLORS)]
            panel.plot(
                pis,
                values,
                label=(labels or {}).get(name, name),
                color=color,
                linestyle="--" if is_random else "-",
                linewidth=2.2 if is_ours else 1.3,
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=4 if spacing > 1 else 3.5,
                markevery=(i % spacing, spacing),
                zorder=3 if is_ours else 2,
            )
            if bands and (band := bands.get(metric, {}).get(name)):
                is_prominent = is_random or is_ours or len(by_name) <= 4
                panel.fill_between(pis, *band, color=color, alpha=0.13 if is_prominent else 0.05, linewidth=0)
        panel.set_xlabel("retention share π")
        panel.set_ylabel(f"{metric_title(metric)} (higher is better)")
        panel.set_xlim(0, 1)
        peak = max((max(values) for values in by_name.values()), default=1.0)
        panel.set_ylim(0, max(1.25 * peak if bands else 1.08 * peak, 1e-3))  # bands may be clipped, curves not
        panel.grid(alpha=0.25)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), frameon=False, fontsize=9)
    if heading:
        figure.suptitle(heading, fontsize=10)
    return figure


def run_figure(run: Run) -> Figure | None:
    """Plot the mean curves of a data set with their bands at 95 %. None if no pi-Soft metric was measured."""
    from gradellm.evaluation import statistics

    curves: dict[str, dict[str, list[float]]] = {}
    bands: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    n = 0
    for metric in ("pi_soft_ns", "pi_soft_nc"):
        if rows := run.curves(metric):
            n = len(next(iter(rows.values())))
            with_bands = statistics.bands(rows, run.settings["seed"])
            curves[metric] = {name: mean for name, (mean, _, _) in with_bands.items()}
            bands[metric] = {name: (low, high) for name, (_, low, high) in with_bands.items()}
    if not curves:
        return None
    count = "1 example" if n == 1 else f"{n:,} examples; bands: bootstrap over examples, 95 %"
    labels = {name: method_title(name) for name in run.methods}
    return curves_figure(
        run.settings["pis"], curves, bands if n > 1 else None, f"{run.title}, {run.model_title}: {count}", labels
    )


def save(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure to a .png, .svg or .pdf file, reproducibly: equal figures make equal files.

    Raises GradellmError if it cannot be written.
    """
    from matplotlib import rc_context

    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(str(path)[-4:].lower())
    try:
        with rc_context({"svg.hashsalt": "gradellm"}):
            figure.savefig(path, dpi=150, metadata=metadata)
    except (OSError, ValueError) as error:
        raise GradellmError(f"the figure {path} cannot be written: {error}") from error
