"""The engine: one decoder-only model that explains every token it generates. No gRPC, usable alone.

See `gradellm_engine.engine.Engine`.
"""

import gradellm_engine._quiet  # noqa: F401 (before the libraries that it is for)
from gradellm_engine.chat_template import Message
from gradellm_engine.encoding import checkpoint
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
from gradellm_engine.events import Attribution, Event, Finished, FinishReason, Progress, Started, Step
from gradellm_engine.faithfulness.results import EvaluationItem, EvaluationSummary
from gradellm_engine.faithfulness.settings import EvaluationSettings, Judged, Metric, Perturb, Removal
from gradellm_engine.generation import Generation
from gradellm_engine.prompts import Prompt, PromptInput, PromptLimits, PromptToken, Role, Segment
from gradellm_engine.quantization import Quantization
from gradellm_engine.ranks import Ranks
from gradellm_engine.settings import (
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
from gradellm_engine.stream import Stream

__all__ = [
    "Attribution",
    "AttributionSettings",
    "BusyError",
    "ComputationError",
    "Contrast",
    "Delivery",
    "Engine",
    "EngineError",
    "EvaluationItem",
    "EvaluationSettings",
    "EvaluationSummary",
    "Event",
    "FinishReason",
    "Finished",
    "Generation",
    "GradEllm",
    "GroupLostError",
    "InvalidRequestError",
    "Judged",
    "Loosening",
    "Magnitude",
    "Message",
    "Metric",
    "ModelLoadError",
    "NormaliseOver",
    "OutOfMemoryError",
    "Perturb",
    "Progress",
    "Prompt",
    "PromptInput",
    "PromptLimits",
    "PromptToken",
    "Quantization",
    "Ranks",
    "Rectify",
    "Removal",
    "Resolution",
    "Role",
    "Rotary",
    "Sampling",
    "Segment",
    "Similarity",
    "Sources",
    "Started",
    "Step",
    "Stream",
    "Switches",
    "TokenizerError",
    "UnsupportedModelError",
    "checkpoint",
]
