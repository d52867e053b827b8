"""What a run asks of every example, and what of the answer it keeps.

1. Methods are named by themselves, by Grad-ELLM's presets, or as sets: "paper" and "all".
2. Each example is asked with a seed of its own, a pure function of the run's seed and the example's id: masks differ
   between examples, and come again whatever server or order.
3. The run's identity is all that changes numbers, and nothing else; the results file keeps it.
4. Of a report a record stays: for each metric and method its mean over steps.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from gradellm import models
from gradellm.errors import InvalidRequestError
from gradellm.evaluation.datasets import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gradellm.evaluation.datasets import Example
    from gradellm.evaluation.presets import Preset
    from gradellm.evaluation.report import EvaluationReport
    from gradellm.models import Metric, ModelInfo, ServerInfo
    from gradellm.wire.requests import EvaluateKeywords

__all__ = [
    "METRICS",
    "PAPER_METHODS",
    "PIS",
    "PRESETS",
    "Methods",
    "Plan",
    "did_you_mean",
    "difference",
    "named_methods",
    "seed_of",
]

Methods = dict[str, dict[str, Any]]
"""What is evaluated: by name, the keywords of attribution."""

METRICS: tuple[Metric, ...] = get_args(models.Metric)
PRESETS: tuple[str, ...] = get_args(models.Preset)
PIS: tuple[float, ...] = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""The paper's: 0.05, 0.10 .. 0.95."""
PLAUSIBILITY: tuple[Metric, ...] = ("auprc", "token_f1")
RANKED: tuple[Metric, ...] = ("insertion", "deletion")

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
"""The columns of the paper's table 1. At the embedding, layer gradient x activation gives the paper's numbers."""


# --- methods ----------------------------------------------------------------------------------------------------------


def named_methods(names: Sequence[str], info: ServerInfo, metrics: Sequence[Metric] = ()) -> Methods:
    """Return the methods of these names, each once, in their order.

    "paper" stands for the paper's nine and the preset knockout; with insertion or deletion among the metrics also for
    Grad-ELLM without loosening, as its tables 4 and 5 have it. "all" is every method that the server does not refuse,
    and the presets.

    Raises InvalidRequestError for a name that the server does not know, or a method that it refuses.
    """
    known = {method.name: method for method in info.methods}
    found: Methods = {}
    for name in names:
        if name == "paper":
            found |= {**PAPER_METHODS} | {preset: {"attribution": preset} for preset in _paper_presets(metrics)}
        elif name == "all":
            found |= {each: {"method": each} for each, method in known.items() if not method.refusal}
            found |= {preset: {"attribution": preset} for preset in PRESETS if preset != "paper"}  # that is grad_ellm
        elif name in PRESETS:
            found[name] = {"attribution": name}
        elif name in known:
            found.setdefault(name, {"method": name})
        else:
            there = sorted({*known, *PRESETS, "all"})
            raise InvalidRequestError.of("methods", did_you_mean("method", name, there))
    for name, keywords in found.items():
        method = known.get(keywords.get("method", "grad_ellm"))
        if method is None:
            raise InvalidRequestError.of("methods", f"{name} is not known to the server; name those that it has")
        if method.refusal:
            raise InvalidRequestError.of(
                "methods", f"{name} cannot be computed for this model: {method.refusal}; name the others"
            )
    return found


def _paper_presets(metrics: Sequence[Metric]) -> tuple[str, ...]:
    return ("unloosened", "knockout") if set(metrics) & set(RANKED) else ("knockout",)


def did_you_mean(what: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, with the closest one, or all."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return f"there is no {what} {name!r}; {hint}"


# --- the model --------------------------------------------------------------------------------------------------------

_IDENTITY = {
    "weights_sha256": "weights",
    "config_sha256": "configurations",
    "tokenizer_sha256": "tokenizers",
    "chat_template_sha256": "chat templates",
    "dtype": "dtypes",
    "quantization": "quantizations",
}


def difference(one: ModelInfo, other: ModelInfo) -> str | None:
    """Say how two servers' models differ in what changes numbers; None where they do not."""
    for name, title in _IDENTITY.items():
        first, second = getattr(one, name), getattr(other, name)
        if name == "config_sha256" and not (first and second):
            continue  # one of the servers is older, and does not tell it
        if first != second:
            first, second = (value[:12] or "none" for value in (first, second))
            return f"different {title}, {first} ({one.name}) and {second} ({other.name})"
    return None


# --- the plan ---------------------------------------------------------------------------------------------------------


def seed_of(seed: int, example_id: str) -> int:
    """The seed of an example's masks, from 0 to 2**63 - 1."""
    said = hashlib.sha256(f"gradellm evaluate:{seed}:{example_id}".encode()).digest()
    return int.from_bytes(said[:8]) >> 1


@dataclass(frozen=True)
class Plan:
    """What is asked of every example. Every setting is said, so that no server's default decides a number."""

    preset: Preset
    methods: Methods
    metrics: tuple[Metric, ...] = ("pi_soft_ns", "pi_soft_nc")
    pis: tuple[float, ...] = PIS
    samples: int = 3
    stride: int = 5
    offset: int = 0
    seed: int = 0
    perturb: models.Perturb = "user"
    removal: models.Removal = "remove"
    raw_scores: bool = False
    max_new_tokens: int = 32
    chat: bool = True
    """Whether the model's chat template is used, or the prompt is one raw text."""
    sample: int | None = None
    balance: bool = False

    def request(self, example: Example, *, without: Sequence[Metric] = ()) -> tuple[str | None, EvaluateKeywords]:
        """Return what is asked: the prompt, and the keywords of `evaluate`."""
        metrics = [metric for metric in self.metrics if metric not in without]
        if not example.rationale:
            metrics = [metric for metric in metrics if metric not in PLAUSIBILITY]
        if not metrics:
            raise InvalidRequestError.of("rationale", "there is none, and nothing else is measured")
        keywords: EvaluateKeywords = {
            "methods": self.methods,
            "metrics": metrics,
            "pis": self.pis,
            "samples": self.samples,
            "stride": self.stride,
            "offset": self.offset,
            "seed": seed_of(self.seed, example.id),
            "perturb": self.perturb,
            "removal": self.removal,
            "raw_scores": self.raw_scores,
        }
        if example.messages is not None:
            keywords["messages"] = example.messages
        if self.preset.label_words:
            keywords["labels"] = self.preset.label_words
        else:
            keywords["max_new_tokens"] = self.max_new_tokens
        if example.rationale and set(metrics) & set(PLAUSIBILITY):
            names = [f"rationale {number}" for number in range(1, len(example.rationale) + 1)]
            message = () if example.messages is None else (len(example.messages) - 1,)
            keywords["segments"] = {
                name: (*message, *span) for name, span in zip(names, example.rationale, strict=True)
            }
            keywords["rationale"] = names
        return example.prompt, keywords

    def settings(self, examples: Iterable[Example], model: ModelInfo) -> dict[str, Any]:
        """The run's identity: all that changes its numbers."""
        examples = list(examples)
        preset = self.preset
        return {
            "preset": preset.name,
            "prompt": {"system": preset.system, "user": preset.user, "form": "chat" if self.chat else "raw"},
            "labels": list(preset.label_words),
            "data": {
                "sha256": digest(examples),
                "examples": len(examples),
                "sample": self.sample,
                "balance": self.balance,
            },
            "methods": self.methods,
            "metrics": list(self.metrics),
            "pis": list(self.pis),
            "samples": self.samples,
            "stride": self.stride,
            "offset": self.offset,
            "seed": self.seed,
            "perturb": self.perturb,
            "removal": self.removal,
            "raw_scores": self.raw_scores,
            "max_new_tokens": None if preset.label_words else self.max_new_tokens,
            "model": {name: getattr(model, name) for name in _IDENTITY},
        }

    def record(self, example: Example, report: EvaluationReport) -> dict[str, Any]:
        """What stays of a report, as JSON can hold it."""
        summary, model = report.summary, report.provenance.model
        measured: dict[str, dict[str, Any]] = {}
        for of in summary.metrics:
            if of.metric is None:  # a newer server's
                continue
            kept: dict[str, Any] = {"value": of.interval.mean, "steps": of.steps}
            if of.curve:
                kept["curve"] = list(of.curve)
            if of.expected_tokens is not None:
                kept["expected_tokens"] = of.expected_tokens
            measured.setdefault(of.metric, {})[of.name] = kept
        words = self.preset.label_words
        predicted = words[summary.label_index] if words and summary.label_index is not None else None
        return {
            "label": example.label,
            "predicted": predicted,
            "outside_labels": summary.answer_outside_labels,
            "text": report.text,
            "prompt_tokens": len(report.prompt_tokens),
            "perturbable_tokens": summary.perturbable_tokens,
            "steps": len(summary.steps),
            "skipped_steps": len(summary.skipped_steps),
            "metrics": measured,
            "by": {
                **{name: getattr(model, name) for name in ("name", "revision", "attention_kernel", "device")},
                "versions": dict(report.provenance.versions),
            },
        }
