"""The answer to GetServerInfo: the model that is served, its attribution methods, and the limits of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Preset = Literal["paper", "unloosened", "grad_eclip", "knockout", "recommended", "head_abs_no_sink", "step_relevance"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that a server hosts."""

    name: str
    """The path or hub id that it was loaded from."""
    revision: str
    """The hub revision; empty for a model that was loaded from a path."""
    family: str
    """The architecture family of its configuration: llama, mistral, ..."""
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str
    """Empty for a model without a chat template."""
    dtype: str
    """The dtype of computation: float32, bfloat16, ..."""
    quantization: str
    """How weights are stored: none (in that dtype), int8 or nf4."""
    device: str
    attention_kernel: str
    """The attention implementation in use."""
    num_layers: int
    num_heads: int
    """Query heads per layer."""
    num_key_value_heads: int
    num_parameters: int
    vocab_size: int
    context_tokens: int
    """Context length: the most tokens of prompt and completion together."""
    has_chat_template: bool
    """Whether the model accepts messages."""
    config_sha256: str = ""
    """Hash of the configuration without names, versions and stored dtype, and of the tokens that begin and end a text.
    Empty from older servers."""
    has_tools: bool = False
    """Whether its chat template has tools."""
    tool_call_parser: str = ""
    """The form in which it writes calls of tools: hermes, llama3_json, mistral or qwen3_coder. Empty if it has no
    tools, or another form."""


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """An attribution method."""

    name: str
    """The value of the keyword `method`."""
    description: str
    streams: bool
    """Whether `generate` and `explain` offer it. `attribute` offers every method."""
    switches: tuple[str, ...]
    """The fields of `AttributionSettings` that apply to this method."""
    forward_passes: str = ""
    """Number of forward passes, over m prompt tokens, n completion tokens and the method's own switches: "1 + m"."""
    backward_passes: str = ""
    """Number of backward passes, in the same terms."""
    reads_completion_alone: bool = False
    """Whether a pass reads the completion's tokens only; passes of other methods read prompt and completion."""
    has_target: bool = True
    """Whether it explains a token's logit, so that a target or a contrast applies."""
    error: str = ""
    """What `Attribution.error` measures; empty for a method without one."""
    refusal: str = ""
    """Why the method does not support this model; empty if it does."""
    estimate: Estimate | None = None
    """Cost with default switches, for one size. None from older servers."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimated cost of a method."""

    prompt_tokens: int
    completion_tokens: int
    seconds: float
    """On an idle server."""
    bytes: int
    """Memory in addition to the model and the KV cache, at most `Limits.method_bytes`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of requests."""

    max_prompt_tokens: int
    max_new_tokens: int
    max_running_requests: int
    max_queued_requests: int
    max_message_bytes: int
    max_queued_tokens: int
    """Of all queued requests together: prompts, and completions at their maximum."""
    kv_bytes: int
    """Size of the KV cache, shared by all running requests."""
    kv_tokens: int
    """Tokens that fit into the KV cache."""
    method_bytes: int = 0
    """Memory for methods that read whole completions."""
    max_evaluation_sequences: int = 0
    """Perturbed sequences of one evaluation."""
    max_evaluation_step_tokens: int = 0
    """Tokens of all perturbed sequences of one evaluation step."""
    reader_timeout_seconds: float = 0.0
    """How long a stream may have unread messages before it is aborted."""
    max_prompt_characters: int = 0
    """Of a prompt as text, chat template included."""
    max_messages: int = 0
    """Of a conversation."""
    max_segments: int = 0
    """Of a prompt."""
    max_gap_seconds: float = 0.0
    """Between two tokens of a stream, while prompts of other requests are read."""
    max_followed_requests: int = 0
    """Completions of other engines that are followed at a time, beside max_running_requests. 0 from older servers."""
    follow_idle_seconds: float = 0.0
    """How long nothing may be appended to a followed completion."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a server's memory is for, in bytes; zeros from a server that does not tell."""

    limit_bytes: int = 0
    """Of all together; 0 for what the machine has."""
    weights_bytes: int = 0
    """Of the model's weights."""
    packed_weights_bytes: int = 0
    """Of copies of weights in the layouts that a CPU's kernels read."""
    kv_cache_bytes: int = 0
    """Of the KV cache when it is full; on a CPU it is taken as it is used."""
    method_bytes: int = 0
    """That methods over whole completions may take."""
    resident_bytes: int = 0
    """That the server's process takes now, on the machine."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The model that a server hosts, its methods, its limits and its memory."""

    model: ModelInfo
    methods: tuple[MethodInfo, ...]
    limits: Limits
    versions: Mapping[str, str]
    """Versions of the server's software, by package name."""
    memory: Memory = Memory()
    """What its memory is for."""
    default_attribution: Preset | None = None
    """What a request gets that wants an attribution, and names neither a preset nor a method nor a switch. Never
    "recommended", but the preset that it stands for. None from older servers, whose default is "paper"."""
    recommended_preset: Preset | None = None
    """The preset that "recommended" stands for. None from older servers, which do not have it."""
