"""The specification of a run: the request for each example, and the record that is kept of its report.

1. Methods are given by name, as presets of Grad-ELLM, or as the sets "paper" and "all".
2. Each example has its own seed, a pure function of the run's seed and the example's id, so that masks differ between
   examples but do not depend on the server or the order.
3. The run's identity, which the results file stores, consists of all settings that affect values.
4. A record has the mean over steps of each metric and method.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from gradellm import models
from gradellm.errors import InvalidRequestError
from gradellm.evaluation.examples import digest
from gradellm.evaluation.names import PAPER_METHODS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gradellm.evaluation.examples import Example
    from gradellm.evaluation.presets import Preset
    from gradellm.evaluation.report import EvaluationReport
    from gradellm.models import Metric, ModelInfo, ServerInfo
    from gradellm.wire.keywords import EvaluateKeywords

__all__ = [
    "METRICS",
    "PIS",
    "PRESETS",
    "Methods",
    "RunSpec",
    "did_you_mean",
    "model_difference",
    "named_methods",
    "seed_of",
]

Methods = dict[str, dict[str, Any]]
"""The methods of a run: attribution keywords by name."""

METRICS: tuple[Metric, ...] = get_args(models.Metric)
PRESETS: tuple[str, ...] = get_args(models.Preset)
_OTHER_NAMES = ("paper", "recommended")  # of the method grad_ellm, and of another preset
_WITH_RECOMMENDED = ("head_abs_no_sink", "step_relevance")  # presets of servers that have `recommended`
PIS: tuple[float, ...] = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""The paper's retention shares: 0.05, 0.10 .. 0.95."""
PLAUSIBILITY: tuple[Metric, ...] = ("auprc", "token_f1")
RANKED: tuple[Metric, ...] = ("insertion", "deletion")


# --- methods ----------------------------------------------------------------------------------------------------------


def named_methods(names: Sequence[str], info: ServerInfo, metrics: Sequence[Metric] = ()) -> Methods:
    """Return the methods of these names, each once, in their order.

    "paper" stands for the paper's nine methods and the preset knockout; with insertion or deletion among the metrics
    also for Grad-ELLM without loosening, as in the paper's tables 4 and 5. "all" stands for every method that supports
    the model, and the presets. "recommended" is the preset that it stands for on the server, under that preset's name:
    results of different versions are merged by name.

    Raises InvalidRequestError for an unknown name, or a method that does not support the model.
    """
    available = {method.name: method for method in info.methods}
    methods: Methods = {}
    for name in names:
        if name == "paper":
            methods |= {**PAPER_METHODS} | {preset: {"attribution": preset} for preset in _paper_presets(metrics)}
        elif name == "all":
            methods |= {name: {"method": name} for name, method in available.items() if not method.refusal}
            methods |= {preset: {"attribution": preset} for preset in _presets(info)}
        elif name == "recommended":
            preset = info.recommended_preset or name  # which an older server refuses
            methods[preset] = {"attribution": preset}
        elif name in PRESETS:
            methods[name] = {"attribution": name}
        elif name in available:
            methods.setdefault(name, {"method": name})
        else:
            raise InvalidRequestError.of("methods", did_you_mean("method", name, sorted({*available, *PRESETS, "all"})))
    for name, keywords in methods.items():
        method = available.get(keywords.get("method", "grad_ellm"))
        if method is None:
            raise InvalidRequestError.of(
                "methods", f"the server does not have {name}; `gradellm info` lists its methods"
            )
        if method.refusal:
            raise InvalidRequestError.of(
                "methods", f"{name} cannot be computed for this model: {method.refusal}; leave it out"
            )
    return methods


def _presets(info: ServerInfo) -> Iterator[str]:
    """Yield the presets that the server has for its model, each once."""
    refused = {method.name for method in info.methods if method.refusal}
    for name in PRESETS:
        is_older = name in _WITH_RECOMMENDED and info.recommended_preset is None
        is_refused = name == "step_relevance" and "relevance" in refused  # for the same reason
        if not (name in _OTHER_NAMES or is_older or is_refused):
            yield name


def _paper_presets(metrics: Sequence[Metric]) -> tuple[str, ...]:
    return ("unloosened", "knockout") if set(metrics) & set(RANKED) else ("knockout",)


def did_you_mean(what: str, name: str, candidates: Iterable[str]) -> str:
    """Return the error message for an unknown name, with the closest known name, or all of them."""
    names = list(candidates)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
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


def model_difference(first: ModelInfo, second: ModelInfo) -> str | None:
    """Return the first difference of two models that affects values; None if there is none."""
    for name, title in _IDENTITY.items():
        values = getattr(first, name), getattr(second, name)
        if name == "config_sha256" and not all(values):
            continue  # older servers do not send it
        if values[0] != values[1]:
            first_value, second_value = (value[:12] or "none" for value in values)
            return f"different {title}, {first_value} ({first.name}) and {second_value} ({second.name})"
    return None


# --- the specification ------------------------------------------------------------------------------------------------


def seed_of(seed: int, example_id: str) -> int:
    """Return the seed of an example's masks, from 0 to 2**63 - 1."""
    hashed = hashlib.sha256(f"gradellm evaluate:{seed}:{example_id}".encode()).digest()
    return int.from_bytes(hashed[:8]) >> 1


@dataclass(frozen=True)
class RunSpec:
    """The settings of a run. Requests contain all of them, so that no default of a server affects values."""

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
    """Whether prompts use the model's chat template; otherwise they are raw texts."""
    sample: int | None = None
    balance: bool = False

    def request(self, example: Example, *, without: Sequence[Metric] = ()) -> tuple[str | None, EvaluateKeywords]:
        """Return the prompt of an example and the keywords of `evaluate`, without the metrics `without`."""
        metrics = [metric for metric in self.metrics if metric not in without]
        if not example.rationale:
            metrics = [metric for metric in metrics if metric not in PLAUSIBILITY]
        if not metrics:
            raise InvalidRequestError.of("rationale", "the example has none, and no other metric is measured")
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
        """Return the run's identity: all settings that affect values."""
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
        """Return the record of a report, as JSON-compatible values."""
        summary, model = report.summary, report.provenance.model
        measured: dict[str, dict[str, Any]] = {}
        for result in summary.metrics:
            if result.metric is None:  # a metric of a newer server
                continue
            values: dict[str, Any] = {"value": result.interval.mean, "steps": result.steps}
            if result.curve:
                values["curve"] = list(result.curve)
            if result.expected_tokens is not None:
                values["expected_tokens"] = result.expected_tokens
            measured.setdefault(result.metric, {})[result.name] = values
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
