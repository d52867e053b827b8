"""Curves over the share of the text that is kept, as the paper's figure 2 has them. Needs matplotlib."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from gradellm.errors import GradellmError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

__all__ = ["curves_figure"]

_MARKERS = "osD^vP*X<>hpd"


def curves_figure(
    pis: Sequence[float],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    bands: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]] | None = None,
    heading: str = "",
) -> Figure:
    """Draw curves by metric and name, a panel a metric, each with its band (low, high) where there is one."""
    if importlib.util.find_spec("matplotlib") is None:
        raise GradellmError("drawing needs matplotlib: pip install 'gradellm[plots]'")
    from matplotlib.figure import Figure

    from gradellm.evaluation.report import title

    figure = Figure(figsize=(5.2 * len(curves), 4.4), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (metric, by_name) in zip(panels, curves.items(), strict=True):
        for i, (name, values) in enumerate(by_name.items()):
            is_random = name == "random"
            (line,) = panel.plot(
                pis,
                values,
                label=name,
                color="black" if is_random else None,
                linestyle="--" if is_random else "-",
                linewidth=1.4,
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=3.5,
            )
            if bands and (band := bands.get(metric, {}).get(name)):
                panel.fill_between(pis, *band, color=line.get_color(), alpha=0.12, linewidth=0)
        panel.set_xlabel("share of the text that is kept, π")
        panel.set_ylabel(f"{title(metric)} (higher is better)")
        panel.set_xlim(0, 1)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.25)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(5, len(names)), frameon=False, fontsize=9)
    if heading:
        figure.suptitle(heading, fontsize=10)
    return figure
