"""Usage in streams: in a last chunk, and with vLLM's `continuous_usage_stats` in every chunk, of its choice so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradellm import Event


def usage_options(body: Mapping[str, Any]) -> dict[str, bool]:
    """What a request's checked `stream_options` ask for.

    `includes_usage`: a last chunk with usage; `has_running_usage`: usage in every other chunk, too, which needs the
    first, as in vLLM.
    """
    options = body.get("stream_options") or {}
    includes_usage = bool(options.get("include_usage"))
    return {
        "includes_usage": includes_usage,
        "has_running_usage": includes_usage and bool(options.get("continuous_usage_stats")),
    }


@dataclass
class RunningUsage:
    """Token counts of one choice while it is written.

    Attributes:
        prompt_tokens: of the prompt.
        completion_tokens: generated so far.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, event: Event) -> None:
        """Count an event of the choice."""
        if event.started is not None:
            self.prompt_tokens = len(event.started.prompt_tokens)
        elif event.token is not None:
            self.completion_tokens = event.token.index + 1
        elif event.finished is not None:
            self.completion_tokens = event.finished.usage.completion_tokens

    def to_object(self) -> dict[str, int]:
        """Return OpenAI's usage."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
