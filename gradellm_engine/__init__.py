"""The engine: one decoder-only model that explains every token it generates. No gRPC, usable alone.

See `gradellm_engine.engine.Engine`. Names are loaded when they are first used:
`gradellm_engine.model.checkpoint_check` is of use without the seconds that torch takes to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import gradellm_engine.utils.quiet  # noqa: F401 (before the libraries that it is for)

if TYPE_CHECKING:
    from gradellm_engine.core.generation import GenerationIterator
    from gradellm_engine.core.outputs import (
        Attribution,
        Event,
        Finished,
        FinishReason,
        Progress,
        PromptProgress,
        Started,
        Step,
    )
    from gradellm_engine.core.request import Request
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
    from gradellm_engine.faithfulness.results import EvaluationItem, EvaluationSummary
    from gradellm_engine.faithfulness.settings import EvaluatedMethod, EvaluationSettings, Metric, Perturb, Removal
    from gradellm_engine.model.quantization import Quantization
    from gradellm_engine.params import (
        AttributionSettings,
        Contrast,
        Delivery,
        GradEllm,
        Loosening,
        Magnitude,
        NormaliseOver,
        Rectify,
        Resolution,
        Rotary,
        Sampling,
        Similarity,
        Sources,
        Switches,
    )
    from gradellm_engine.tokenization.chat_template import Message
    from gradellm_engine.tokenization.encoder import interruption_point
    from gradellm_engine.tokenization.prompt import Prompt, PromptToken, Role
    from gradellm_engine.tokenization.prompt_input import PromptInput, Segment
    from gradellm_engine.tokenization.prompt_limits import PromptLimits

__all__ = [
    "Attribution",
    "AttributionSettings",
    "BusyError",
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
    "GenerationIterator",
    "GradEllm",
    "GroupLostError",
    "InvalidRequestError",
    "Loosening",
    "Magnitude",
    "Message",
    "Metric",
    "ModelLoadError",
    "NormaliseOver",
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
    "Rectify",
    "Removal",
    "Request",
    "Resolution",
    "Role",
    "Rotary",
    "Sampling",
    "Segment",
    "Similarity",
    "Sources",
    "Started",
    "Step",
    "Switches",
    "TokenizerError",
    "UnsupportedModelError",
    "interruption_point",
]

# Where the names above are, those first that are loaded fastest.
_MODULES = (
    "errors",
    "core.outputs",
    "params",
    "tokenization.encoder",
    "tokenization.chat_template",
    "tokenization.prompt",
    "tokenization.prompt_input",
    "tokenization.prompt_limits",
    "model.quantization",
    "distributed.process_group",
    "faithfulness.settings",
    "faithfulness.results",
    "core.generation",
    "core.request",
    "engine",
)


if not TYPE_CHECKING:  # a type checker is to find the names above, and no others

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
