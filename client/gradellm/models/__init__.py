"""The server's messages as frozen dataclasses. Their fields have the names of the proto's fields.

An optional proto field that is absent is None. An enum's value is its lower-case name without the prefix.

server.py      ServerInfo: the model, its methods and the limits
tokens.py      tokens of prompt and completion, sources, and attribution rows
settings.py    sampling, attribution and evaluation settings as the server resolved them, and the provenance
evaluation.py  results of an evaluation
events.py      the events of a stream
"""

from gradellm.models.evaluation import (
    EvaluationItem,
    EvaluationPoint,
    EvaluationSummary,
    Interval,
    IntervalKind,
    MetricSummary,
)
from gradellm.models.events import (
    Agreement,
    AgreementTotal,
    Event,
    Finished,
    FinishReason,
    Progress,
    Started,
    Timings,
    Usage,
    Verdict,
)
from gradellm.models.server import Estimate, Limits, Memory, MethodInfo, ModelInfo, Preset, ServerInfo
from gradellm.models.settings import (
    Aggregation,
    AttributionSettings,
    Delivery,
    EvaluatedMethod,
    EvaluationSettings,
    GivenScores,
    Gradient,
    Loosening,
    Magnitude,
    Metric,
    NormaliseOver,
    Objective,
    Perturb,
    Provenance,
    Rectify,
    Removal,
    Resolution,
    Rotary,
    Sampling,
    Similarity,
    Sink,
    Sources,
    UpstreamDtype,
)
from gradellm.models.tokens import Alternative, Attribution, PromptToken, Role, Source, Token, TokenizedPrompt

__all__ = [
    "Aggregation",
    "Agreement",
    "AgreementTotal",
    "Alternative",
    "Attribution",
    "AttributionSettings",
    "Delivery",
    "Estimate",
    "EvaluatedMethod",
    "EvaluationItem",
    "EvaluationPoint",
    "EvaluationSettings",
    "EvaluationSummary",
    "Event",
    "FinishReason",
    "Finished",
    "GivenScores",
    "Gradient",
    "Interval",
    "IntervalKind",
    "Limits",
    "Loosening",
    "Magnitude",
    "Memory",
    "MethodInfo",
    "Metric",
    "MetricSummary",
    "ModelInfo",
    "NormaliseOver",
    "Objective",
    "Perturb",
    "Preset",
    "Progress",
    "PromptToken",
    "Provenance",
    "Rectify",
    "Removal",
    "Resolution",
    "Role",
    "Rotary",
    "Sampling",
    "ServerInfo",
    "Similarity",
    "Sink",
    "Source",
    "Sources",
    "Started",
    "Timings",
    "Token",
    "TokenizedPrompt",
    "UpstreamDtype",
    "Usage",
    "Verdict",
]
