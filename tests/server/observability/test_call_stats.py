"""Statistics of a call's messages: counts, gaps and lag."""

from __future__ import annotations

import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm_server.observability.call_stats import EVALUATION_METRICS, FINISH_REASONS, CallStats, Timings


def token(index: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(token=pb.Token(index=index))


def row(index: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(attribution=pb.Attribution(token_index=index))


def test_lag_counts_the_tokens_after_the_one_that_is_explained() -> None:
    stats = CallStats()
    lags = []
    for message in (token(0), row(0), token(1), token(2), token(3), row(1), row(2), row(3)):
        stats.on_response(message, 0.0)
        lags.append(stats.lag_tokens)
    assert lags == [None, 0, None, None, None, 2, 1, 0]
    assert (stats.num_tokens, stats.num_attributed) == (4, 4)


def test_rows_of_given_tokens_have_no_lag() -> None:
    stats = CallStats()
    stats.on_response(row(5), 0.0)
    assert stats.lag_tokens == 0


def test_gaps_are_between_tokens_and_not_before_the_first() -> None:
    stats = CallStats()
    gaps = []
    for message, now in ((token(0), 1.0), (row(0), 1.5), (token(1), 2.0), (token(2), 2.25)):
        stats.on_response(message, now)
        gaps.append(stats.gap_seconds)
    assert gaps == [None, None, 1.0, 0.25]
    assert (stats.first_token_at, stats.last_token_at) == (1.0, 2.25)


@pytest.mark.parametrize(
    ("request_", "generates"),
    [
        (pb.GenerateRequest(), True),
        (pb.AttributeRequest(completion="x"), False),
        (pb.EvaluateRequest(), True),
        (pb.EvaluateRequest(generation=pb.GenerationOptions()), True),
        (pb.EvaluateRequest(completion="x"), False),
        (pb.EvaluateRequest(completion_ids=[1]), False),
        (pb.EvaluateRequest(labels=["yes", "no"]), False),
        (pb.TokenizeRequest(), False),
        (pb.GetServerInfoRequest(), False),
    ],
)
def test_generates_unless_a_completion_is_given(request_: pb.GenerateRequest, generates: bool) -> None:
    stats = CallStats()
    stats.on_request(request_)
    assert stats.generates is generates


def test_stats_hold_finish_reason_timings_and_item_metric() -> None:
    stats = CallStats()
    finished = pb.Finished(
        reason=pb.FINISH_REASON_STOP_TEXT,
        usage=pb.Usage(reused_prompt_tokens=3),
        timings=pb.Timings(queue_seconds=1, prefill_seconds=2, decode_seconds=3, attribution_seconds=4),
    )
    stats.on_response(pb.EvaluateResponse(item=pb.EvaluationItem(metric=pb.METRIC_PI_SOFT_NS)), 0.0)
    assert stats.metric == "pi_soft_ns"
    stats.on_response(pb.EvaluateResponse(finished=finished), 0.0)
    assert (stats.finish_reason, stats.num_reused_tokens, stats.timings) == ("stop_text", 3, Timings(1, 2, 3, 4))
    assert stats.finish_reason in FINISH_REASONS
    assert "pi_soft_nc" in EVALUATION_METRICS
    assert "unspecified" not in (*FINISH_REASONS, *EVALUATION_METRICS)
