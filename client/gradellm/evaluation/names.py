"""Names of methods, metrics and data sets: the paper's, for headings and for the order of columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "EXPECTED_TOKENS",
    "LOWER_IS_BETTER",
    "METHOD_TITLES",
    "PAPER_METHODS",
    "data_title",
    "in_order",
    "method_title",
    "metric_heading",
    "metric_title",
]

PAPER_METHODS: Mapping[str, dict[str, Any]] = {
    "attention": {"method": "attention"},
    "deeplift": {"method": "deeplift"},
    "input_x_gradient": {"method": "input_x_gradient"},
    "integrated_gradients": {"method": "integrated_gradients"},
    "layer_gradient_x_activation": {"method": "layer_gradient_x_activation", "layer": -1},
    "random": {"method": "random"},
    "saliency": {"method": "saliency"},
    "value_zeroing": {"method": "value_zeroing"},
    "grad_ellm": {"method": "grad_ellm"},
}
"""The columns of the paper's table 1, with their attribution keywords. Layer gradient x activation reproduces the
paper's numbers at the embedding layer."""
METHOD_TITLES = {
    "attention": ("Attn", "Attention"),
    "deeplift": ("DL", "DeepLIFT"),
    "input_x_gradient": ("I×G", "Input×Gradients"),
    "integrated_gradients": ("IG", "Integrated Gradients"),
    "layer_gradient_x_activation": ("LGA", "Layer Gradient×Activation"),
    "random": ("Rnd", "Random"),
    "saliency": ("Sal", "Saliency"),
    "value_zeroing": ("VZ", "Value Zeroing"),
    "grad_ellm": ("Ours", "Grad-ELLM"),
    "unloosened": ("w/o", "Grad-ELLM without loosening"),
}
"""The paper's abbreviation and full name of each method."""
EXPECTED_TOKENS = "expected_tokens"
"""The expected number of tokens that Soft-NS and Soft-NC keep; tables list it among the metrics."""
LOWER_IS_BETTER = ("insertion",)
_METRIC_TITLES = {
    "pi_soft_ns": "π-Soft-NS",
    "pi_soft_nc": "π-Soft-NC",
    "soft_ns": "Soft-NS",
    "soft_nc": "Soft-NC",
    "insertion": "insertion",
    "deletion": "deletion",
    "auprc": "AUPRC",
    "token_f1": "token F1",
}
_DATA_TITLES = {"sst2": "SST2", "imdb": "IMDb", "boolq": "BoolQ", "tellmewhy": "TellMeWhy", "wikibio": "WikiBio"}


def method_title(name: str) -> str:
    """Return the paper's abbreviation of a method; its name if the paper has none."""
    return METHOD_TITLES[name][0] if name in METHOD_TITLES else name


def data_title(preset: str) -> str:
    """Return the paper's name of a data set; its own name if the paper has none."""
    return _DATA_TITLES.get(preset, preset)


def metric_title(metric: str) -> str:
    """Return the name of a metric in prose."""
    return _METRIC_TITLES.get(metric, metric)


def metric_heading(metric: str) -> str:
    """Return the name of a metric as a heading, with an arrow towards better values."""
    if metric == EXPECTED_TOKENS:
        return "E[R]"
    title = metric_title(metric)
    title = f"AUC {title}" if metric.startswith("pi_") else title[0].upper() + title[1:]
    return f"{title} {'↓' if metric in LOWER_IS_BETTER else '↑'}"


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return methods in the order of table columns: the paper's first, then the rest in the given order; each once."""
    unique = list(dict.fromkeys(names))
    first = [name for name in (*PAPER_METHODS, "unloosened") if name in unique]
    return (*first, *(name for name in unique if name not in first))
