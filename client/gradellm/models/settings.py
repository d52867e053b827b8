"""The settings of a request as the server resolved them, and the provenance of its results.

Saved explanations hold these classes: a new field has a default and comes last, so that older files are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gradellm.models.server import ModelInfo, Preset

Loosening = Literal["min_max", "none"]
Similarity = Literal["dot", "cosine"]
Rotary = Literal["rotated", "unrotated"]
Rectify = Literal["per_layer", "total", "none", "per_head"]
Magnitude = Literal["signed_sum", "head_abs", "channel_abs", "knockout"]
NormaliseOver = Literal["visible", "prompt", "user"]
Sink = Literal["keep", "exclude"]
Gradient = Literal["true", "relevance"]
Objective = Literal["logit", "log_prob", "prob"]
Aggregation = Literal["norm", "sum"]
Sources = Literal["prompt", "prefix"]
Resolution = Literal["token", "word", "segment"]
Delivery = Literal["per_token", "chunked"]
UpstreamDtype = Literal["float32", "bfloat16", "float16", "fp8", "int8", "int4"]
Metric = Literal["pi_soft_ns", "pi_soft_nc", "soft_ns", "soft_nc", "insertion", "deletion", "auprc", "token_f1"]
Perturb = Literal["user", "prompt", "prefix"]
Removal = Literal["remove", "zero", "pad"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings as the server resolved them."""

    max_new_tokens: int
    temperature: float
    """0: greedy decoding."""
    top_k: int
    """0: all tokens."""
    top_p: float
    seed: int
    """The seed in use; chosen by the server if the request had none."""
    stop: tuple[str, ...]
    min_p: float | None = None
    """None, as in the fields that follow: the server did not have the setting yet."""
    repetition_penalty: float | None = None
    """1: none."""
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    """By token id."""
    min_new_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: tuple[int, ...] = ()
    skip_special_tokens: bool | None = None

    @property
    def changes_logits(self) -> bool:
        """Whether a setting changes logits, so that greedy decoding may not choose the most probable token."""
        penalties = (self.frequency_penalty, self.presence_penalty, self.min_new_tokens, self.logit_bias)
        return any(penalties) or self.repetition_penalty not in (None, 1)


@dataclass(frozen=True, slots=True)
class AttributionSettings:
    """Attribution settings as the server resolved them: the keywords of a request, with every default filled in."""

    method: str
    preset: Preset | None
    loosening: Loosening | None
    layers: Literal["all"] | int | tuple[int, ...] | None
    """"all", the number of last layers, or layer indexes. None, as for other switches, if it does not apply to the
    method."""
    similarity: Similarity | None
    rotary: Rotary | None
    rectify: Rectify | None
    magnitude: Magnitude | None
    normalise_over: NormaliseOver | None
    target_token_id: int | None
    """None: the generated token's own logit."""
    contrast: int | str | None
    """A token id, a text, or "runner_up"."""
    sources: Sources | None
    resolution: Resolution | None
    top_k_sources: int | None
    delivery: Delivery | None
    chunk_size: int | None
    """None: the server's choice."""
    objective: Objective | None = None
    aggregation: Aggregation | None = None
    steps: int | None = None
    samples: int | None = None
    seed: int | None = None
    layer: int | None = None
    """-1 is the embedding."""
    baseline_ids: tuple[int, ...] = ()
    """Empty: zero embeddings."""
    sink: Sink | None = None
    gradient: Gradient | None = None
    tokens: tuple[int, ...] = ()
    """Indexes of the explained tokens of the completion. Empty: all."""

    def explains(self, index: int) -> bool:
        """Whether a token of the completion is explained, by its index."""
        return not self.tokens or index in self.tokens


@dataclass(frozen=True, slots=True)
class EvaluatedMethod:
    """A method of the server that was evaluated."""

    name: str
    """Its name in the results."""
    attribution: AttributionSettings | None


@dataclass(frozen=True, slots=True)
class GivenScores:
    """Scores that the caller sent; the server does not send them back."""

    name: str
    """Their name in the results."""


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Evaluation settings as the server resolved them: the keywords of a request, with every default filled in."""

    methods: tuple[EvaluatedMethod, ...]
    scores: tuple[GivenScores, ...]
    metrics: tuple[Metric, ...]
    pis: tuple[float, ...]
    samples: int | None
    stride: int | None
    offset: int | None
    seed: int | None
    perturb: Perturb | None
    removal: Removal | None
    raw_scores: bool
    rationale: tuple[str, ...]
    perturb_positions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """Texts of which a completion is one."""

    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """What a completion had to be: one of these is not None."""

    json_schema: str | None = None
    """A JSON schema, as text."""
    json_object: bool | None = None
    """True: any JSON object."""
    grammar: str | None = None
    regex: str | None = None
    choice: Choice | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Everything that is needed to compute a result again: model, versions and settings."""

    model: ModelInfo
    versions: Mapping[str, str]
    sampling: Sampling | None
    attribution: AttributionSettings | None
    """None for a request without attribution."""
    evaluation: EvaluationSettings | None = None
    """None for a request without evaluation."""
    structured_output: StructuredOutput | None = None
    """What the completion had to be; None for any text."""
