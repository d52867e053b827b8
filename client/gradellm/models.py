"""What a server says, as frozen dataclasses. Their fields have the names of the proto's fields.

A proto field that can be absent is None here; an enum's value is its lower-case name without the prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Preset = Literal["paper", "unloosened", "grad_eclip", "knockout"]
Loosening = Literal["min_max", "none"]
Similarity = Literal["dot", "cosine"]
Rotary = Literal["rotated", "unrotated"]
Rectify = Literal["per_layer", "total", "none"]
Magnitude = Literal["signed_sum", "head_abs", "channel_abs", "knockout"]
NormaliseOver = Literal["visible", "prompt", "user"]
Objective = Literal["logit", "log_prob", "prob"]
Aggregation = Literal["norm", "sum"]
Sources = Literal["prompt", "prefix"]
Resolution = Literal["token", "word", "segment"]
Delivery = Literal["per_token", "chunked"]
Role = Literal["template", "system", "user", "assistant", "tool", "other"]
Metric = Literal["pi_soft_ns", "pi_soft_nc", "soft_ns", "soft_nc", "insertion", "deletion", "auprc", "token_f1"]
Perturb = Literal["user", "prompt", "prefix"]
Removal = Literal["remove", "zero", "pad"]
IntervalKind = Literal["bootstrap", "monte_carlo"]
FinishReason = Literal["end_of_text", "stop_text", "max_new_tokens", "end_of_completion"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model behind a server."""

    name: str
    """The path or hub id it was loaded by."""
    revision: str
    """The hub revision; empty where it came from no hub."""
    family: str
    """Its family, as its configuration names it: llama, mistral, ..."""
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str
    """Empty where the model has no chat template."""
    dtype: str
    """What its weights are computed in: float32, bfloat16, ..."""
    quantization: str
    """How they are kept: none (in that dtype), int8 or nf4."""
    device: str
    attention_kernel: str
    """The attention arithmetic that ran."""
    num_layers: int
    num_heads: int
    """Query heads a layer."""
    num_key_value_heads: int
    num_parameters: int
    vocab_size: int
    context_tokens: int
    """Tokens it can attend to, prompt and completion together."""
    has_chat_template: bool
    """Whether it takes messages."""
    config_sha256: str = ""
    """Of what else decides its numbers and tokens: its configuration without names, versions and stored dtype, and the
    tokens that begin and end a text. Empty where the server is older."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A way to explain a token."""

    name: str
    """What the keyword `method` takes."""
    description: str
    streams: bool
    """Whether `generate` and `explain` offer it. `attribute` offers every method."""
    switches: tuple[str, ...]
    """The fields of `AttributionSettings` that are its own."""
    forward_passes: str = ""
    """Of the model, over m tokens of a prompt, n of a completion, and its own switches: "1 + m"."""
    backward_passes: str = ""
    """Likewise."""
    reads_completion_alone: bool = False
    """Whether a pass reads the completion's tokens alone; all others read prompt and completion."""
    has_target: bool = True
    """Whether it explains a token's logit, so that a target or a contrast makes sense."""
    error: str = ""
    """What `Attribution.error` says; empty where it has none."""
    refusal: str = ""
    """Why this model cannot be explained by it; empty where it can."""
    estimate: Estimate | None = None
    """What it takes with its default switches, for one size. None where the server is older."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a method would take of a server."""

    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """Where nothing else runs."""
    bytes: int
    """Beside the model and its keys and values; `Limits.method_bytes` is the most."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for at most."""

    max_prompt_tokens: int
    max_new_tokens: int
    max_running_requests: int
    max_queued_requests: int
    max_message_bytes: int
    max_queued_tokens: int
    """Of all requests that wait, prompts and completions at their longest."""
    kv_bytes: int
    """Memory for keys and values of all requests that run."""
    kv_tokens: int
    """Tokens that this memory holds."""
    method_bytes: int = 0
    """Memory for methods that look at whole completions."""
    max_evaluation_sequences: int = 0
    """Changed texts that one evaluation may run."""
    max_evaluation_step_tokens: int = 0
    """Tokens of all changed texts of one of its steps."""
    reader_timeout_seconds: float = 0.0
    """For which a stream may have something to read and not be read."""
    max_prompt_characters: int = 0
    """Of a prompt as text, the chat template's own included."""
    max_messages: int = 0
    """Of a conversation."""
    max_segments: int = 0
    """Of an input."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What is served."""

    model: ModelInfo
    methods: tuple[MethodInfo, ...]
    limits: Limits
    versions: Mapping[str, str]
    """Versions of the software that computes, by package name."""


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt. Offsets are code points of the rendered prompt text."""

    id: int
    text: str
    """Empty for a token that the tokenizer added."""
    start: int
    end: int
    """One past its last code point. Tokens that share a character overlap."""
    role: Role | None
    """Whose words it belongs to. None where not known."""
    message: int | None
    """Index of its message. None for template tokens and raw prompts."""
    segment: str
    """Its segment's name; empty where none."""
    special: bool
    """Whether it is one of the tokenizer's special tokens."""
    word: int | None = None
    """Which word of the prompt it belongs to, from 0. None where the server is older."""


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """An input as the model would see it."""

    prompt_text: str
    """What the tokens were made from, chat template included."""
    tokens: tuple[PromptToken, ...]
    unplaced_messages: tuple[int, ...] = ()
    """As in `Started`."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a column of scores stands for."""

    label: str
    token_indexes: tuple[int, ...]
    """Indexes of its prompt tokens; empty for a part of the completion."""
    completion_indexes: tuple[int, ...] = ()
    """Places in the completion of its generated tokens, with sources="prefix"; empty for a part of the prompt."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings as the server resolved them."""

    max_new_tokens: int
    temperature: float
    """0: greedy."""
    top_k: int
    """0: all."""
    top_p: float
    seed: int
    """The seed that was used, chosen by the server where the request had none."""
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AttributionSettings:
    """Attribution settings as the server resolved them: the keywords of a request, every one said."""

    method: str
    preset: Preset | None
    loosening: Loosening | None
    layers: Literal["all"] | int | tuple[int, ...] | None
    """"all", how many of the last, or which. None for a method that looks at no layers, as other switches are."""
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


@dataclass(frozen=True, slots=True)
class EvaluatedMethod:
    """A method of the server that was evaluated."""

    name: str
    """What results call it."""
    attribution: AttributionSettings | None


@dataclass(frozen=True, slots=True)
class GivenScores:
    """The caller's own scores, which the server does not send back."""

    name: str
    """What results call them."""


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """Evaluation settings as the server resolved them: the keywords of a request, every one said."""

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
class Provenance:
    """All that it takes to compute the same again."""

    model: ModelInfo
    versions: Mapping[str, str]
    sampling: Sampling | None
    attribution: AttributionSettings | None
    """None where no attribution was asked for."""
    evaluation: EvaluationSettings | None = None
    """None where no evaluation was asked for."""


@dataclass(frozen=True, slots=True)
class Started:
    """The first event: how the request was understood."""

    prompt_text: str
    """What the prompt's tokens were made from, chat template included."""
    prompt_tokens: tuple[PromptToken, ...]
    sources: tuple[Source, ...]
    """The columns over the prompt at resolution word or segment; empty at resolution token."""
    provenance: Provenance
    unplaced_messages: tuple[int, ...] = ()
    """Messages that the chat template rewrote so that nobody can say which tokens are their words."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have come."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the completion. Offsets are code points of the completion's text."""

    index: int
    """Its place in the completion, from 0."""
    id: int
    text: str
    """What it adds; empty for special tokens, for a part of a character, and from a stop text on."""
    start: int
    end: int
    logprob: float
    """Natural logarithm of its probability under the model, before temperature, top_k and top_p."""
    alternatives: tuple[Alternative, ...]
    special: bool
    source_index: int | None
    """Its column in later rows, with sources="prefix"."""
    word: int | None = None
    """Which word of the completion it belongs to, from 0.

    None for a token without text, such as a part of a character, which is in the next one's word; and where the server
    is older.
    """


@dataclass(frozen=True, slots=True)
class Attribution:
    """How much each source contributed to one token."""

    token_index: int
    """The token's place in the completion."""
    scores: tuple[float, ...]
    """One raw score a source; with top_k_sources one for each of `source_indexes`."""
    source_indexes: tuple[int, ...]
    """With top_k_sources: which sources, the largest score by magnitude first. Else empty."""
    target_token_id: int
    """The token whose logit was explained."""
    contrast_token_id: int | None
    """The token whose logit was taken off."""
    error: float | None = None
    """The method's own measure of how far off the scores are; `MethodInfo.error` says which."""

    def by_column(self) -> dict[int, float]:
        """Return the scores by the places in `Explanation.sources` that they are for."""
        return dict(zip(self.source_indexes or range(len(self.scores)), self.scores, strict=True))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a method is that takes long, or the reading of a prompt."""

    done: float
    """Of its work, 0 to 1."""


@dataclass(frozen=True, slots=True)
class EvaluationPoint:
    """A metric where a share of the text is kept."""

    pi: float | None
    """The share that was asked for. None for soft_ns and soft_nc."""
    achieved_pi: float
    """The mean probability of being kept that came out."""
    alpha: float
    """What scores were raised to."""
    mean: float
    samples: tuple[float, ...]
    """The metric, for each mask that was drawn."""


@dataclass(frozen=True, slots=True)
class EvaluationItem:
    """One metric of one attribution at one step."""

    step: int
    """Which token of the completion was explained."""
    name: str
    """Whose attribution it was."""
    metric: Metric | None
    """None where the server is newer and measures what this client does not know."""
    value: float
    """Of pi-Soft metrics the area under the curve over pi, not divided by its length."""
    points: tuple[EvaluationPoint, ...]
    """Of the four soft metrics."""
    flips: tuple[bool, ...]
    """Of insertion and deletion: whether the answer differs, at each of 20 steps."""
    expected_tokens: float | None
    """Of soft_ns and soft_nc: how many tokens are kept in the mean."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and how sure it is."""

    mean: float
    low: float | None
    """Where the interval at 95 % begins. None where there is too little to tell."""
    high: float | None
    kind: IntervalKind | None
    """Over prompts, or over the masks that were drawn for one prompt, which says nothing about others."""
    count: int
    """Prompts, or mask draws at each pi."""

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class MetricSummary:
    """One metric of one method, over all steps."""

    name: str
    metric: Metric | None
    interval: Interval
    median: float
    difference_from_random: Interval | None
    """How much more it is than random's, on the same masks. None where random was not evaluated."""
    curve: tuple[float, ...]
    """Of pi-Soft metrics: the mean over steps at each pi."""
    expected_tokens: float | None
    steps: int


@dataclass(frozen=True, slots=True)
class EvaluationSummary:
    """What an evaluation came to."""

    metrics: tuple[MetricSummary, ...]
    steps: tuple[int, ...]
    """Places in the completion that were evaluated."""
    skipped_steps: tuple[int, ...]
    """Those of them at which emptying the text changes too little to measure anything."""
    label_index: int | None
    """With labels: which one the model predicts."""
    answer_outside_labels: bool
    """With labels: whether the model's likeliest token begins none of them."""
    perturbable_tokens: int
    sequences_run: int
    """Changed texts that were run."""
    sequences_asked: int
    """Changed texts that were asked for; equal ones run once."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What was counted, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    """Forced ones included."""
    attributed_tokens: int
    reused_prompt_tokens: int
    """Tokens of the prompt that an earlier request had read already."""


@dataclass(frozen=True, slots=True)
class Timings:
    """What it took, in seconds."""

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    """Without attribution."""
    attribution_seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event."""

    reason: FinishReason | None
    """Why the stream ended. None where the server is newer and gives a reason that this client does not know."""
    stop: str
    """The stop text that was met."""
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream: exactly one of these is not None.

    Of a generation's events it is one of the first four. `prompt_progress`, how far a prompt is read that takes several
    passes, goes to `on_event` alone, not to those who iterate.
    """

    started: Started | None = None
    token: Token | None = None
    attribution: Attribution | None = None
    finished: Finished | None = None
    progress: Progress | None = None
    item: EvaluationItem | None = None
    summary: EvaluationSummary | None = None
    prompt_progress: Progress | None = None
