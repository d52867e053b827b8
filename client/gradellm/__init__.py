"""The client of the gradellm explanation server: every generated token with its attribution over the prompt.

    from gradellm import Client

    with Client("localhost:50051") as client:  # or Client.local(), which starts a server
        explanation = client.explain("Once upon a time", max_new_tokens=32)
        print(explanation.to_ansi())

`AsyncClient` is the client for asyncio. Names are imported on first use, so that `import gradellm` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from gradellm._version import __version__

if TYPE_CHECKING:
    from gradellm.aio import AsyncClient
    from gradellm.client import Client
    from gradellm.errors import (
        CallCancelledError,
        ClientClosedError,
        DeadlineExceededError,
        GradellmError,
        InvalidExplanationError,
        InvalidReportError,
        InvalidRequestError,
        LocalServerError,
        OverloadedError,
        PermissionDeniedError,
        ServerError,
        StreamBrokenError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
        Violation,
    )
    from gradellm.evaluation.report import EvaluationReport
    from gradellm.explanation.explanation import Explanation
    from gradellm.explanation.tool_calls import ArgumentOrigin, CallSource, ToolCallOrigin
    from gradellm.following.asynchronous import AsyncFollowing
    from gradellm.following.synchronous import Following
    from gradellm.models import (
        Agreement,
        AgreementTotal,
        Alternative,
        Attribution,
        AttributionSettings,
        EvaluationItem,
        EvaluationPoint,
        EvaluationSettings,
        EvaluationSummary,
        Event,
        Finished,
        Interval,
        Limits,
        Memory,
        MethodInfo,
        MetricSummary,
        ModelInfo,
        PromptToken,
        Provenance,
        Sampling,
        ServerInfo,
        Source,
        Started,
        Timings,
        Token,
        TokenizedPrompt,
        Usage,
    )
    from gradellm.transport.credentials import Tls
    from gradellm.transport.retry import Retry

__all__ = [
    "Agreement",
    "AgreementTotal",
    "Alternative",
    "ArgumentOrigin",
    "AsyncClient",
    "AsyncFollowing",
    "Attribution",
    "AttributionSettings",
    "CallCancelledError",
    "CallSource",
    "Client",
    "ClientClosedError",
    "DeadlineExceededError",
    "EvaluationItem",
    "EvaluationPoint",
    "EvaluationReport",
    "EvaluationSettings",
    "EvaluationSummary",
    "Event",
    "Explanation",
    "Finished",
    "Following",
    "GradellmError",
    "Interval",
    "InvalidExplanationError",
    "InvalidReportError",
    "InvalidRequestError",
    "Limits",
    "LocalServerError",
    "Memory",
    "MethodInfo",
    "MetricSummary",
    "ModelInfo",
    "OverloadedError",
    "PermissionDeniedError",
    "PromptToken",
    "Provenance",
    "Retry",
    "Sampling",
    "ServerError",
    "ServerInfo",
    "Source",
    "Started",
    "StreamBrokenError",
    "Timings",
    "Tls",
    "Token",
    "TokenizedPrompt",
    "ToolCallOrigin",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Usage",
    "Violation",
    "__version__",
]

_MODULES = {
    "ArgumentOrigin": "explanation.tool_calls",
    "AsyncClient": "aio",
    "AsyncFollowing": "following.asynchronous",
    "CallSource": "explanation.tool_calls",
    "Client": "client",
    "EvaluationReport": "evaluation.report",
    "Explanation": "explanation.explanation",
    "Following": "following.synchronous",
    "Retry": "transport.retry",
    "Tls": "transport.credentials",
    "ToolCallOrigin": "explanation.tool_calls",
    "Violation": "errors",
}


if not TYPE_CHECKING:  # for a type checker only the names above exist

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'gradellm' has no attribute {name!r}")
        module = _MODULES.get(name, "errors" if name.endswith("Error") else "models")
        value = getattr(import_module(f"gradellm.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
