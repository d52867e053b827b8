"""The keywords of the SDK's calls, as TypedDicts: both clients and the command line take the same ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

if TYPE_CHECKING:
    from gradellm.models import (
        Aggregation,
        Attribution,
        Delivery,
        Gradient,
        Loosening,
        Magnitude,
        Metric,
        NormaliseOver,
        Objective,
        Perturb,
        Preset,
        PromptToken,
        Rectify,
        Removal,
        Resolution,
        Rotary,
        Similarity,
        Sink,
        Sources,
        Started,
        Token,
        UpstreamDtype,
    )

__all__ = [
    "AttributeKeywords",
    "AttributionKeywords",
    "CallKeywords",
    "EvaluateKeywords",
    "ExplanationLike",
    "FollowKeywords",
    "GenerateKeywords",
    "InputKeywords",
    "Message",
    "MessageSpan",
    "SamplingKeywords",
    "Segment",
    "StructuredOutputKeywords",
    "TokenChoice",
    "TokenizeKeywords",
    "Tool",
    "WordLike",
]

Message = Mapping[str, Any] | tuple[str, str]
"""A turn of a conversation: {"role": ..., "content": ...}, or (role, content).

As in OpenAI's API, an assistant's may have tool_calls and reasoning_content, and no content; a tool's tool_call_id and
name."""
Tool = Mapping[str, Any]
"""A tool in OpenAI's form: {"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}."""
Segment = tuple[int, int] | tuple[int, int, int]
"""A span of the caller's text in code points: (start, end) of a prompt, or (message, start, end) of messages."""


MessageSpan = tuple[str, int, int]
"""The place of a message in the text of prompt_ids: (role, start, end) in code points."""


class WordLike(Protocol):
    """The part of a `gradellm.Word` that selects its tokens."""

    @property
    def token_indexes(self) -> tuple[int, ...]: ...  # noqa: D102


TokenChoice = int | range | str | re.Pattern[str] | WordLike | tuple[int, int]
"""Tokens of a completion: an index, a range of indexes, a word of an explanation, a text (its first place), a regular
expression (all its matches); in a list also (start, end), a span of the completion's text in code points."""


class ExplanationLike(Protocol):
    """The parts of a `gradellm.Explanation` that an evaluation reads."""

    @property
    def started(self) -> Started: ...  # noqa: D102

    @property
    def prompt_tokens(self) -> tuple[PromptToken, ...]: ...  # noqa: D102

    @property
    def tokens(self) -> tuple[Token, ...]: ...  # noqa: D102

    @property
    def attributions(self) -> tuple[Attribution, ...]: ...  # noqa: D102


class CallKeywords(TypedDict, total=False):
    """The keyword that every call takes."""

    timeout: float | None
    """Seconds until the call fails with DeadlineExceededError. None, the default, means no limit."""


class InputKeywords(TypedDict, total=False):
    """The prompt in its other forms. Exactly one of prompt, messages and prompt_ids is required."""

    messages: Sequence[Message] | None
    """A conversation, rendered with the model's chat template."""
    prompt_ids: Sequence[int] | None
    """Token ids."""
    segments: Mapping[str, Segment] | None
    """Named spans of the prompt, such as the documents of a retrieval prompt."""
    message_spans: Sequence[MessageSpan] | None
    """With prompt_ids: the messages in their text, in order; the rest is template. By default all is the user's."""
    chat_template_kwargs: Mapping[str, Any] | None
    """With messages: variables of the chat template, such as {"enable_thinking": False}. Those that it does not read
    have no effect."""
    add_generation_prompt: bool | None
    """With messages: whether the prompt ends with the header of the assistant's turn; by default it does, unless the
    last message is continued."""
    continue_final_message: bool | None
    """With messages: continue the last message, whose turn is left open, instead of beginning a new one."""
    tools: Sequence[Tool] | None
    """With messages: tools that the model may call. Their definitions are segments of the prompt, "tool:NAME"."""


class AttributionKeywords(TypedDict, total=False):
    """The attribution method and its switches. A keyword that is absent or None has the preset's value.

    Without a preset, a method and a switch, the server's default preset applies: "recommended", or what
    `gradellm serve --default-attribution` says. A switch alone starts from "paper". The keywords from `target` on are
    no switches.
    """

    attribution: Preset | bool | None
    """The preset: "recommended", "paper", "unloosened", "grad_eclip", "knockout", "head_abs_no_sink" or
    "step_relevance". True, as where it is absent, names none. None or False turns attribution off."""
    method: str | None
    """The method's name; "grad_ellm" is the paper's. `server_info().methods` lists all."""
    loosening: Loosening | None
    layers: Literal["all"] | int | Sequence[int] | None
    """"all", the number of last layers, or a list of layer indexes from 0, the layer after the embedding."""
    similarity: Similarity | None
    rotary: Rotary | None
    rectify: Rectify | None
    magnitude: Magnitude | None
    normalise_over: NormaliseOver | None
    sink: Sink | None
    """Whether the first token is a source: "keep" or "exclude"."""
    gradient: Gradient | None
    """The gradient by attention's output: the "true" one, or the one that the rules of "relevance" propagate."""
    objective: Objective | None
    """The function of the target that is differentiated, or measured while the prompt is perturbed: "logit" by
    default."""
    aggregation: Aggregation | None
    """Reduction over a token's channels: their "norm" (the default), or their signed "sum"."""
    steps: int | None
    """Integration steps of integrated gradients, 50 by default."""
    samples: int | None
    """Number of samples, for sampling methods."""
    attribution_seed: int | None
    """Seed of sampling methods; 0 by default."""
    layer: int | None
    """The layer whose output is attributed, from 0; -1 is the embedding. By default the middle layer."""
    baseline_ids: Sequence[int] | None
    """Baseline token ids, one per prompt token; zero embeddings by default."""
    target: int | None
    """Explain this token id's logit at every step, instead of the generated token's own."""
    contrast: int | str | None
    """Contrastive explanation, the target against this token: a token id, a text's first token, or "runner_up"."""
    sources: Sources | None
    """Score the "prompt" (the default), or the "prefix": prompt and completion so far."""
    resolution: Resolution | None
    """One score per "token" (the default), "word" or "segment"."""
    top_k_sources: int | None
    """Return only this many scores per token, the largest by magnitude."""
    delivery: Delivery | None
    """When scores are sent: "per_token" (the default), or "chunked" for several tokens at once, which is cheaper."""
    chunk_size: int | None
    """Tokens per attribution chunk, for "chunked" and for `attribute`: 1 to 256; the server's choice by default."""
    tokens: TokenChoice | Sequence[TokenChoice] | None
    """Explain these tokens of the completion only, all by default: an index, a range, a word, a text, a regular
    expression, or a list of these and of spans (start, end). Texts and expressions are looked up in `completion`."""


class TokenizeKeywords(CallKeywords, InputKeywords, total=False):
    """The keywords of `tokenize`."""


class StructuredOutputKeywords(TypedDict, total=False):
    """What the completion has to be, at most one of these. The model is not told: say it in the prompt, too."""

    json_schema: Mapping[str, Any] | str | bool | type | None
    """A JSON value that this JSON schema describes; as a mapping, as text, or as a Pydantic model's class."""
    json_object: bool | None
    """True: any JSON object."""
    grammar: str | None
    """A text of this grammar, in Lark's notation or GBNF."""
    regex: str | None
    """A text that this regular expression matches as a whole; the syntax is that of Rust's regex crate."""
    choice: Sequence[str] | None
    """One of these texts."""


class SamplingKeywords(TypedDict, total=False):
    """How tokens are sampled.

    Where temperature, top_k, top_p, min_p, a penalty or max_new_tokens is absent, it has the value of the model's
    generation_config.json, unless the server leaves that out, else the default named here.
    """

    max_new_tokens: int | None
    """The most tokens to generate; by default 256, or what is left of the context length."""
    temperature: float | None
    """0, the default, is greedy decoding."""
    top_k: int | None
    """Sample from the k most probable tokens; 0, the default, means all."""
    top_p: float | None
    """Sample from the most probable tokens that hold this probability, in (0, 1]; 1, the default, means all."""
    seed: int | None
    """Seed of sampling. By default the server chooses one and returns it in the provenance."""
    stop: str | Sequence[str] | None
    """End the completion before the first of these texts."""
    min_p: float | None
    """Sample from tokens with at least this share of the most probable token's probability; 0, the default, means
    all."""
    repetition_penalty: float | None
    """Divide the positive logits, and multiply the negative ones, of tokens in the prompt or the completion: 0.01 to
    100; 1 by default."""
    frequency_penalty: float | None
    """Subtract this from a token's logit for each time that it is in the completion: -2 to 2; 0 by default."""
    presence_penalty: float | None
    """Subtract this from the logits of tokens in the completion: -2 to 2; 0 by default."""
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    """Add these to the logits of tokens, by token id: -100 to 100; of at most 1024 tokens."""
    min_new_tokens: int | None
    """Tokens before which neither an end token nor a stop text ends the completion."""
    ignore_eos: bool | None
    """Whether the model's own end tokens end nothing."""
    stop_token_ids: Sequence[int] | None
    """End the completion with one of these tokens, too, which has no text in it; at most 128."""
    skip_special_tokens: bool | None
    """Whether special tokens have no text in the completion; True by default."""


class GenerateKeywords(
    CallKeywords, InputKeywords, AttributionKeywords, SamplingKeywords, StructuredOutputKeywords, total=False
):
    """The keywords of `generate` and `explain`."""

    num_alternatives: int | None
    """Return the N most probable tokens with each generated token."""
    forced_ids: Sequence[int] | None
    """Token ids that the completion begins with: generation resumes after them."""
    first_attribution: int | None
    """Index of the first completion token to explain, at most the number of forced ids (the default)."""


class AttributeKeywords(CallKeywords, InputKeywords, AttributionKeywords, total=False):
    """The keywords of `attribute`. Exactly one of completion and completion_ids is required."""

    completion: str | None
    """The completion as text."""
    completion_ids: Sequence[int] | None
    """The completion as token ids."""
    num_alternatives: int | None
    """Return the N most probable tokens with each completion token."""


class FollowKeywords(CallKeywords, InputKeywords, AttributionKeywords, total=False):
    """The keywords of `follow`."""

    max_new_tokens: int | None
    """The most tokens that the completion may have; by default what the server's limits and the context leave."""
    upstream_dtype: UpstreamDtype | None
    """What the other engine computes with, or stores its weights in, whichever is coarser; "bfloat16" by default."""
    flush_seconds: float | None
    """Explain fewer than chunk_size tokens when none has come for so long: 0 to 60, 0.25 by default."""
    num_alternatives: int | None
    """Return the N most probable tokens with each token."""


class EvaluateKeywords(CallKeywords, InputKeywords, total=False):
    """The keywords of `evaluate`. At most one of completion, completion_ids, labels, explanation and max_new_tokens."""

    completion: str | None
    """The completion as text. Without a completion, the model generates one first."""
    completion_ids: Sequence[int] | None
    """The completion as token ids."""
    labels: Sequence[str] | None
    """Label words: the most probable one, by its first token, is explained."""
    explanation: ExplanationLike | None
    """A `gradellm.Explanation`, in place of prompt and completion. Its scores are evaluated under the name
    "explanation", together with `methods`, "random" by default."""
    max_new_tokens: int | None
    """Of the completion that is generated first, as are the next four keywords."""
    temperature: float | None
    top_k: int | None
    top_p: float | None
    stop: str | Sequence[str] | None
    generation_seed: int | None
    """The seed of its sampling; chosen by the server by default."""
    methods: Sequence[str] | Mapping[str, Mapping[str, Any] | None] | None
    """Methods to evaluate: names of methods and presets; or a mapping from your own names to attribution keywords. By
    default the server's default preset, under its own name, and "random", which is the reference of differences."""
    scores: Mapping[str, Mapping[int, Sequence[float]]] | None
    """Your own attributions, by name and by index of the evaluated token: one score per prompt token, or per token of
    the whole prefix."""
    metrics: Sequence[Metric] | None
    """By default "pi_soft_ns" and "pi_soft_nc"."""
    pis: Sequence[float] | None
    """Retention shares, ascending; by default 0.05, 0.10 .. 0.95."""
    samples: int | None
    """Masks per retention share; 3 by default."""
    stride: int | None
    """Evaluate every N-th token of the completion; 5 by default."""
    offset: int | None
    """The first token to evaluate; 0 by default."""
    seed: int | None
    """Seed of masks, tie breaks and random scores; 0 by default. Equal seeds give equal numbers."""
    perturb: Perturb | None
    """Tokens that may be perturbed: those of the "user" (the default), the whole "prompt", or the "prefix"."""
    perturb_positions: Sequence[int] | None
    """In place of `perturb`: indexes of prompt tokens."""
    removal: Removal | None
    """How insertion and deletion remove a token: "remove" (the default), "zero" its embedding, or "pad"."""
    raw_scores: bool | None
    """Whether soft_ns and soft_nc use raw scores, clipped to 0..1, instead of min-max normalised ones."""
    rationale: Sequence[str] | None
    """Names of the segments that are the human rationale, for auprc and token_f1."""
