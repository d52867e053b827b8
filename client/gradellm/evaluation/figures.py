"""Curves over the share of the text that is kept, as the paper's figure 2 has them. Needs matplotlib."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from gradellm.errors import GradellmError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from matplotlib.figure import Figure

    from gradellm.evaluation.run_results import Run

__all__ = ["can_draw", "curves_figure", "run_figure", "save"]

_MARKERS = "osD^vP*X<>hpd"
_COLORS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#5254a3", "#b5651d",
    "#637939", "#7b4173",
)  # fmt: skip
_OURS = ("grad_ellm", "#d62728")  # what the paper is about stands out
_MISSING = "drawing needs matplotlib: pip install 'gradellm[plots]'"


def can_draw() -> str:
    """Return an empty text, or what to install."""
    return "" if importlib.util.find_spec("matplotlib") is not None else _MISSING


def curves_figure(
    pis: Sequence[float],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    bands: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] | None = None,
    heading: str = "",
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw curves by metric and name, a panel a metric, each with its band (low, high) where there is one.

    `labels` are what the legend calls them, where that is not their name.
    """
    if missing := can_draw():
        raise GradellmError(missing)
    from matplotlib.figure import Figure

    from gradellm.evaluation.report import title

    figure = Figure(figsize=(5.2 * len(curves), 4.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (metric, by_name) in zip(panels, curves.items(), strict=True):
        apart = 3 if len(by_name) > 4 else 1  # curves that lie upon one another show markers in turn
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
                markersize=4 if apart > 1 else 3.5,
                markevery=(i % apart, apart),
                zorder=3 if is_ours else 2,
            )
            if bands and (band := bands.get(metric, {}).get(name)):
                stands_out = is_random or is_ours or len(by_name) <= 4
                panel.fill_between(pis, *band, color=color, alpha=0.13 if stands_out else 0.05, linewidth=0)
        panel.set_xlabel("share of the text that is kept, π")
        panel.set_ylabel(f"{title(metric)} (higher is better)")
        panel.set_xlim(0, 1)
        peak = max((max(values) for values in by_name.values()), default=1.0)
        panel.set_ylim(0, max(1.25 * peak if bands else 1.08 * peak, 1e-3))  # a band may be cut, no curve is
        panel.grid(alpha=0.25)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), frameon=False, fontsize=9)
    if heading:
        figure.suptitle(heading, fontsize=10)
    return figure


def run_figure(run: Run) -> Figure | None:
    """Draw a data set's curves, each with the band of its means at 95 %. None where no pi-Soft metric was measured."""
    from gradellm.evaluation import statistics
    from gradellm.evaluation.run_results import method_title

    curves: dict[str, dict[str, list[float]]] = {}
    bands: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    n = 0
    for metric in ("pi_soft_ns", "pi_soft_nc"):
        if rows := run.curves(metric):
            n = len(next(iter(rows.values())))
            found = statistics.bands(rows, run.settings["seed"])
            curves[metric] = {name: mean for name, (mean, _, _) in found.items()}
            bands[metric] = {name: (low, high) for name, (_, low, high) in found.items()}
    if not curves:
        return None
    said = "1 example" if n == 1 else f"{n:,} examples; bands: bootstrap over examples, 95 %"
    labels = {name: method_title(name) for name in run.methods}
    return curves_figure(
        run.settings["pis"], curves, bands if n > 1 else None, f"{run.title}, {run.model_title}: {said}", labels
    )


def save(figure: Figure, path: str | PathLike[str]) -> None:
    """Write a figure to a file; equal figures make equal ones. The name's end says of which kind: .png, .svg, .pdf.

    Raises GradellmError where it cannot be written.
    """
    from matplotlib import rc_context

    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(str(path)[-4:].lower())
    try:
        with rc_context({"svg.hashsalt": "gradellm"}):
            figure.savefig(path, dpi=150, metadata=metadata)
    except (OSError, ValueError) as error:
        raise GradellmError(f"the figure {path} cannot be written: {error}") from error
