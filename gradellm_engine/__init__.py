"""The inference engine: one decoder-only model that attributes every token it generates. No gRPC; usable by itself.

Start with `Engine`. The names in `__all__` are the public interface; the server and the Ray job import nothing else.
Names are imported on first use, so that `check_checkpoint` and the errors do not import torch, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import gradellm_engine.utils.quiet  # noqa: F401 (before the libraries that it is for)

if TYPE_CHECKING:
    from gradellm_engine.core.following.agreement import (
        MIN_COMPARED_TOKENS,
        Agreement,
        GivenLogprobs,
        NumberFormat,
        Verdict,
    )
    from gradellm_engine.core.following.given_tokens import FollowSettings
    from gradellm_engine.core.following.request import FollowedRequest
    from gradellm_engine.core.generation import GenerationIterator
    from gradellm_engine.core.outputs import (
        Attribution,
        ChunkAgreement,
        Event,
        Finished,
        FinishReason,
        Progress,
        PromptProgress,
        Started,
        Step,
    )
    from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE, Request
    from gradellm_engine.distributed.process_group import ProcessGroup
    from gradellm_engine.engine import Engine
    from gradellm_engine.errors import (
        BusyError,
        ComputationError,
        EngineError,
        GroupLostError,
        InvalidRequestError,
        ModelLoadError,
        OutOfMemoryError,
        TokenizerError,
        UnsupportedModelError,
    )
    from gradellm_engine.faithfulness.metrics.statistics import Interval
    from gradellm_engine.faithfulness.results import EvaluationItem, EvaluationSummary, MetricSummary
    from gradellm_engine.faithfulness.settings import (
        MAX_EVALUATED_METHODS,
        MAX_EVALUATION_SEQUENCES,
        MAX_EVALUATION_STEP_TOKENS,
        MAX_LABELS,
        MAX_PIS,
        EvaluatedMethod,
        EvaluationSettings,
        Metric,
        Perturb,
        Removal,
    )
    from gradellm_engine.methods.base import Method
    from gradellm_engine.methods.gradients.base import Aggregation
    from gradellm_engine.methods.post_hoc import Objective
    from gradellm_engine.methods.random import Random
    from gradellm_engine.methods.registry import METHODS, method_named
    from gradellm_engine.model.checkpoint_check import check_checkpoint, check_context
    from gradellm_engine.model.generation_config import GenerationConfigSource, GenerationDefaults
    from gradellm_engine.model.loader import software_versions
    from gradellm_engine.model.quantization import Quantization
    from gradellm_engine.params import (
        AttributionSettings,
        Contrast,
        Delivery,
        GradEllm,
        Gradient,
        Loosening,
        Magnitude,
        NormaliseOver,
        Rectify,
        Resolution,
        Rotary,
        Similarity,
        Sink,
        Sources,
        Switches,
        TokenSelection,
    )
    from gradellm_engine.presets import concrete_preset, preset_of
    from gradellm_engine.sampling_params import (
        MAX_ALTERNATIVES,
        MAX_LOGIT_BIASES,
        MAX_STOP_TEXTS,
        MAX_STOP_TOKEN_IDS,
        Sampling,
    )
    from gradellm_engine.structured.settings import MAX_CHOICES, StructuredOutput
    from gradellm_engine.tokenization.chat_template import Message
    from gradellm_engine.tokenization.encoder import interruption_point
    from gradellm_engine.tokenization.prompt import Prompt, PromptToken, Role
    from gradellm_engine.tokenization.prompt_input import MessageSpan, PromptInput, Segment
    from gradellm_engine.tokenization.prompt_limits import PromptLimits
    from gradellm_engine.tokenization.prompt_reader import check_token_ids
    from gradellm_engine.tokenization.template_options import TemplateOptions
    from gradellm_engine.tokenization.tools import ToolCall
    from gradellm_engine.utils.memory import gpu_memory

__all__ = [
    "DEFAULT_CHUNK_SIZE",
    "MAX_ALTERNATIVES",
    "MAX_CHOICES",
    "MAX_EVALUATED_METHODS",
    "MAX_EVALUATION_SEQUENCES",
    "MAX_EVALUATION_STEP_TOKENS",
    "MAX_LABELS",
    "MAX_LOGIT_BIASES",
    "MAX_PIS",
    "MAX_STOP_TEXTS",
    "MAX_STOP_TOKEN_IDS",
    "METHODS",
    "MIN_COMPARED_TOKENS",
    "Aggregation",
    "Agreement",
    "Attribution",
    "AttributionSettings",
    "BusyError",
    "ChunkAgreement",
    "ComputationError",
    "Contrast",
    "Delivery",
    "Engine",
    "EngineError",
    "EvaluatedMethod",
    "EvaluationItem",
    "EvaluationSettings",
    "EvaluationSummary",
    "Event",
    "FinishReason",
    "Finished",
    "FollowSettings",
    "FollowedRequest",
    "GenerationConfigSource",
    "GenerationDefaults",
    "GenerationIterator",
    "GivenLogprobs",
    "GradEllm",
    "Gradient",
    "GroupLostError",
    "Interval",
    "InvalidRequestError",
    "Loosening",
    "Magnitude",
    "Message",
    "MessageSpan",
    "Method",
    "Metric",
    "MetricSummary",
    "ModelLoadError",
    "NormaliseOver",
    "NumberFormat",
    "Objective",
    "OutOfMemoryError",
    "Perturb",
    "ProcessGroup",
    "Progress",
    "Prompt",
    "PromptInput",
    "PromptLimits",
    "PromptProgress",
    "PromptToken",
    "Quantization",
    "Random",
    "Rectify",
    "Removal",
    "Request",
    "Resolution",
    "Role",
    "Rotary",
    "Sampling",
    "Segment",
    "Similarity",
    "Sink",
    "Sources",
    "Started",
    "Step",
    "StructuredOutput",
    "Switches",
    "TemplateOptions",
    "TokenSelection",
    "TokenizerError",
    "ToolCall",
    "UnsupportedModelError",
    "Verdict",
    "check_checkpoint",
    "check_context",
    "check_token_ids",
    "concrete_preset",
    "gpu_memory",
    "interruption_point",
    "method_named",
    "preset_of",
    "software_versions",
]

# The modules that define the names above, searched in order: those that import torch come last.
_MODULES = (
    "errors",
    "params",
    "sampling_params",
    "presets",
    "structured.settings",
    "model.checkpoint_check",
    "model.quantization",
    "faithfulness.settings",
    "faithfulness.metrics.statistics",
    "faithfulness.results",
    "utils.memory",
    "core.outputs",
    "tokenization.template_options",
    "tokenization.encoder",
    "tokenization.chat_template",
    "tokenization.prompt",
    "tokenization.prompt_input",
    "tokenization.prompt_limits",
    "tokenization.prompt_reader",
    "distributed.process_group",
    "methods.random",
    "methods.registry",
    "methods.base",
    "methods.gradients.base",
    "methods.post_hoc",
    "model.generation_config",
    "model.loader",
    "core.generation",
    "core.request",
    "core.following.agreement",
    "core.following.given_tokens",
    "core.following.request",
    "engine",
)


if not TYPE_CHECKING:  # with a module-level __getattr__, mypy would accept any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'gradellm_engine' has no attribute {name!r}")
        for module in _MODULES:
            found = vars(import_module(f"gradellm_engine.{module}"))
            if name in found:
                return globals().setdefault(name, found[name])
        raise AttributeError(f"module 'gradellm_engine' promises {name!r}, and none of its modules has it")


def __dir__() -> list[str]:
    return sorted(__all__)
