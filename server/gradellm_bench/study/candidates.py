"""The methods that are compared: those that cost a decode step, and the baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gradellm_engine import GradEllm, Gradient, Loosening, Magnitude, Rectify, Sink
from gradellm_engine.attribution.attention_weights import Attention
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.methods.gradients.relevance import Relevance
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.methods.perturbation.value_zeroing import ValueZeroing
from gradellm_engine.params import PRESETS, Switches

_TRUE_WEIGHTS = GradEllm(loosening=Loosening.NONE, rectify=Rectify.NONE)
_FORMS: Mapping[str, GradEllm] = {
    **{name: GradEllm.preset(name) for name in PRESETS if "sink" not in PRESETS[name]},
    "signed": _TRUE_WEIGHTS,
    "signed_total": replace(_TRUE_WEIGHTS, rectify=Rectify.TOTAL),
    "positive": replace(_TRUE_WEIGHTS, rectify=Rectify.PER_HEAD),
    "head_abs": replace(_TRUE_WEIGHTS, magnitude=Magnitude.HEAD_ABS),
    "channel_abs": replace(_TRUE_WEIGHTS, magnitude=Magnitude.CHANNEL_ABS),
    "knockout_positive": replace(_TRUE_WEIGHTS, magnitude=Magnitude.KNOCKOUT, rectify=Rectify.PER_HEAD),
}
BASELINES: Mapping[str, Switches] = {
    "saliency": Saliency(),
    "attention": Attention(),
    "relevance": Relevance(),
    "value_zeroing": ValueZeroing(),
}
CANDIDATES: Mapping[str, Switches] = {
    **_FORMS,
    **{f"{name}_no_sink": replace(form, sink=Sink.EXCLUDE) for name, form in _FORMS.items()},
    **{
        f"relevance_{name}_no_sink": replace(_FORMS[name], sink=Sink.EXCLUDE, gradient=Gradient.RELEVANCE)
        for name in ("head_abs", "positive", "knockout", "knockout_positive")
    },
    "attention_mean": Attention(layers=None),
    "grad_sam": GradSam(),
    **BASELINES,
}
"""By name: those of Grad-ELLM with true attention weights are named by `magnitude` and `rectify`."""

PROTOTYPE_BASELINES = (
    "knockout_no_sink",
    "knockout_positive_no_sink",
    "head_abs_no_sink",
    "positive",
    "saliency",
    "attention",
    "relevance",
)
"""What candidate formulas are measured beside."""


def chosen(names: list[str] | None) -> dict[str, Switches]:
    """Some of the candidates; all for None.

    Raises:
        ValueError: for a name that is not one of them.
    """
    if names is None:
        return dict(CANDIDATES)
    if unknown := [name for name in names if name not in CANDIDATES]:
        raise ValueError(f"{unknown[0]!r} is not a method of the study; it has {', '.join(CANDIDATES)}")
    return {name: CANDIDATES[name] for name in names}
