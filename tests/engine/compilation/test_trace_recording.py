"""Recording the trace of a small model: the operations before and after its language-model head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine.compilation.cpu_trace import CpuTrace, TraceContext, TraceKey
from gradellm_engine.compilation.trace_recording import record_trace
from gradellm_engine.compilation.tracer import NotTraceable

torch.manual_seed(0)
EMBEDDING, LAYER, HEAD = nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 6)


class Tokens:
    """A pass without attention."""

    graph_anchor, lowest, output_is_used, num_logits, relevance_rows = None, 0, True, 0, False

    def __init__(self, *ids: int) -> None:
        self.ids_and_positions = torch.tensor([ids, range(len(ids))])


def context_of(*ids: int) -> TraceContext:
    run: Any = Tokens(*ids)
    return TraceContext(run, None)


def hidden(row: Tensor) -> Tensor:
    states: Tensor = LAYER(EMBEDDING(row[:1])).relu()
    return states


def recorded(model: Callable[[Tensor, Any], Tensor]) -> CpuTrace:
    return record_trace(model, HEAD, TraceKey(2), context_of(1, 2))


def test_a_trace_gives_other_tokens_their_logits() -> None:
    def model(row: Tensor, run: Any) -> Tensor:
        logits: Tensor = HEAD(hidden(row))[0]
        return logits.tanh() * 3  # a soft cap

    context = context_of(5, 7)
    with torch.no_grad():
        expected = model(context.run.ids_and_positions, None)
    assert torch.equal(recorded(model).logits(context, HEAD), expected)


@pytest.mark.parametrize(
    "model",
    [lambda row, run: HEAD(HEAD(hidden(row))[..., :4])[0], lambda row, run: hidden(row)[0]],
    ids=["twice", "never"],
)
def test_a_head_that_does_not_run_once(model: Callable[[Tensor, Any], Tensor]) -> None:
    with pytest.raises(NotTraceable, match="exactly once"):
        recorded(model)
    assert not HEAD._forward_hooks
    assert not HEAD._forward_pre_hooks


def test_a_logit_that_needs_the_hidden_states_again() -> None:
    """Operations after the head may use only the head's output."""
    with pytest.raises(NotTraceable, match="another part of the trace"):
        recorded(lambda row, run: (states := hidden(row), HEAD(states) + states.sum())[1][0])
