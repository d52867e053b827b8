"""The access log: one line for each call, with client, counts, times and status; never the text of a request."""

from __future__ import annotations

import logging
from typing import Any

from gradellm_server.observability.call import Call, CallObserver
from gradellm_server.observability.logging_setup import FIELDS

logger = logging.getLogger(__name__)


class AccessLog(CallObserver):
    """Logs each call when it ends."""

    def on_end(self, call: Call) -> None:
        """See `CallObserver`."""
        logger.info("%s %s", call.method, call.code, extra={FIELDS: fields(call)})


def fields(call: Call) -> dict[str, Any]:
    """The fields of a call's line after method and code; counts and times only for a stream."""
    stats, timings = call.stats, call.stats.timings
    values: dict[str, Any] = {
        "id": call.id,
        "trace_id": call.trace_id,
        "client": call.client,
        "rpc": call.method,
        "code": call.code,
        "reason": call.reason,
        "total_seconds": _rounded(call.seconds),
    }
    if not stats.num_prompt_tokens:
        return values
    first = None if stats.first_token_at is None else stats.first_token_at - call.started_at
    values |= {
        "method": stats.method,
        "finish_reason": stats.finish_reason,
        "prompt_tokens": stats.num_prompt_tokens,
        "reused_tokens": stats.num_reused_tokens,
        "completion_tokens": stats.num_tokens,
        "attributed_tokens": stats.num_attributed,
        "first_token_seconds": _rounded(first),
    }
    if timings is not None:
        values |= {
            "queue_seconds": _rounded(timings.queue),
            "prefill_seconds": _rounded(timings.prefill),
            "decode_seconds": _rounded(timings.decode),
            "attribution_seconds": _rounded(timings.attribution),
        }
    return values


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
