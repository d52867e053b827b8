"""Tokens that attend one by one: the numbers of a ragged pass, and the same bits in any batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.passes.base import ExplainSpec, QKVGrads, SequenceChunk
from gradellm_engine.passes.invariant import SLOT_ALIGNMENT, PerTokenPass
from gradellm_engine.passes.ragged import RaggedPass

Normal = Callable[..., Tensor]
Slots = Callable[..., list[KVSlot]]
EXPLAIN = ExplainSpec(GradSam(layers=(0,)))
FORMS = [AttentionForm(0.5), AttentionForm(0.5, window=3)]


def outcome(
    kind: type[RaggedPass], chunks: Sequence[SequenceChunk], query: Tensor, w: Tensor, form: AttentionForm
) -> tuple[Tensor, QKVGrads, list[Tensor]]:
    """Output, gradients and heat maps of one layer."""
    run = kind(chunks, {}, graph_anchor=torch.zeros((), requires_grad=True))
    layer = run.layer_attention(nn.Identity(), 0, form)
    output, gradients = layer.output(query), layer.backward(query, w, needs_input_grad=True)
    assert gradients is not None
    return output, gradients, run.heat_maps()


def chunks_of(slots: Slots, dtype: torch.dtype) -> list[SequenceChunk]:
    first, plain, second = slots(40, 4, 33, dtype=dtype, alignment=SLOT_ALIGNMENT)
    return [
        SequenceChunk.replay(first, 35, 40, EXPLAIN),
        SequenceChunk(plain, [7, 8], None, 2, is_new=True),
        SequenceChunk.replay(second, 30, 33, EXPLAIN),
    ]


@pytest.mark.parametrize("form", FORMS, ids=["plain", "window"])
def test_numbers_are_those_of_a_ragged_pass(normal: Normal, slots: Slots, form: AttentionForm) -> None:
    chunks, query, w = chunks_of(slots, torch.float64), normal(1, 1, 6, 10, 4), normal(2, 1, 10, 6, 5)
    actual, expected = (outcome(kind, chunks, query, w, form) for kind in (PerTokenPass, RaggedPass))
    torch.testing.assert_close(actual, expected)
    assert [heat_map.shape for heat_map in actual[2]] == [(5, 40), (3, 33)]


@pytest.mark.parametrize("form", FORMS, ids=["plain", "window"])
def test_bits_do_not_depend_on_the_other_tokens(normal: Normal, slots: Slots, form: AttentionForm) -> None:
    """Of a chunk alone, and of a part of it."""
    chunks, query, w = chunks_of(slots, torch.float32), normal(1, 1, 6, 10, 4).float(), normal(2, 1, 10, 6, 5).float()
    output, gradients, heat_maps = outcome(PerTokenPass, chunks, query, w, form)
    last = chunks[2].slot
    for part, rows in ((chunks[2], slice(7, 10)), (SequenceChunk.replay(last, 31, 32, EXPLAIN), slice(8, 9))):
        alone = outcome(PerTokenPass, [part], query[:, :, rows].contiguous(), w[:, rows].contiguous(), form)
        assert torch.equal(alone[0], output[:, rows])
        for gradient, together in zip(alone[1], gradients, strict=True):
            assert gradient is not None
            assert together is not None
            assert torch.equal(gradient, together[:, :, rows])
        of_rows = heat_maps[1][rows.start - 7 : rows.stop - 7]
        assert torch.equal(alone[2][0], of_rows[:, : part.end])
        assert not of_rows[:, part.end :].any()


def test_an_output_that_is_not_used_is_nan(normal: Normal, slots: Slots) -> None:
    run = PerTokenPass(chunks_of(slots, torch.float32)[:1], {})
    run.output_is_used = False  # as a replay sets it, after the pass was made
    output = run.layer_attention(nn.Identity(), 0, FORMS[0]).output(normal(1, 1, 6, 5, 4).float())
    assert output.shape == (1, 5, 6, 5)
    assert output.isnan().all()
