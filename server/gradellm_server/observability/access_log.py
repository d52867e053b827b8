"""A line a call: who, what, how much, how long and how it ended. Never what was asked or answered."""

from __future__ import annotations

import logging
from typing import Any

from gradellm_server.observability.call import Call, CallObserver
from gradellm_server.observability.logging_setup import FIELDS

logger = logging.getLogger(__name__)


class RequestLog(CallObserver):
    """A watcher of calls."""

    def ended(self, call: Call) -> None:
        """See `calls.Watcher`."""
        logger.info("%s %s", call.method, call.code, extra={FIELDS: fields(call)})


def fields(call: Call) -> dict[str, Any]:
    """What a line tells of a call beside its method and code; counts and times only of a stream."""
    facts, timings = call.facts, call.facts.timings
    told: dict[str, Any] = {
        "id": call.id,
        "trace_id": call.trace_id,
        "client": call.client,
        "rpc": call.method,
        "code": call.code,
        "reason": call.reason,
        "total_seconds": _rounded(call.seconds),
    }
    if not facts.num_prompt_tokens:
        return told
    first = None if facts.first_token_at is None else facts.first_token_at - call.began
    told |= {
        "method": facts.method,
        "finish_reason": facts.finish_reason,
        "prompt_tokens": facts.num_prompt_tokens,
        "reused_tokens": facts.num_reused_tokens,
        "completion_tokens": facts.num_tokens,
        "attributed_tokens": facts.num_attributed,
        "first_token_seconds": _rounded(first),
    }
    if timings is not None:
        told |= {
            "queue_seconds": _rounded(timings.queue),
            "prefill_seconds": _rounded(timings.prefill),
            "decode_seconds": _rounded(timings.decode),
            "attribution_seconds": _rounded(timings.attribution),
        }
    return told


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
