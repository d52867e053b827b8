"""Chunks of any length against a plain loop over their tokens, and the sum of layers with different windows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradellm_engine.attention.fused_kernels import fused_attention
from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.kv_cache.pool import KVPool, KVSlot, LayerShape, RotaryShape
from gradellm_engine.params import GradEllm, Gradient, Loosening, Rectify
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk
from gradellm_engine.passes.ragged import MIN_FUSED_TOKENS, RaggedLayer, RaggedPass

Normal = Callable[..., Tensor]
Slots = Callable[..., list[KVSlot]]
CPU = torch.device("cpu")
seeds = st.integers(0, 2**20)
first_positions = st.lists(st.integers(0, 4), min_size=1, max_size=4)  # of the layers; the queries begin at 4


START, T, S = 4, 3, 7


def heat_map_of(normal: Normal, seed: int, firsts: list[int], switches: GradEllm) -> tuple[Tensor, list[Tensor]]:
    """What a pass makes of layers with different windows, and the layers' own scores over the whole prefix."""
    slot = KVSlot(KVPool([], [], S), 0, S)
    chunk = SequenceChunk(slot, [0] * T, ExplainSpec(switches), START, is_new=True)
    other = SequenceChunk(slot, [0] * T, None, START, is_new=True)
    run = RaggedPass([other, chunk], {})
    layers = []
    for i, first in enumerate(firsts):
        scores = normal(seed + i, T, S - first)
        run.add_maps(1, first, START - first + 1, (scores,))
        layers.append(torch.cat((torch.zeros(T, first, dtype=torch.float64), scores), 1))
    (actual,) = run.heat_maps()
    return actual, layers


@given(seeds, first_positions, st.sampled_from(Rectify))
def test_heat_map_is_the_sum_of_its_layers(normal: Normal, seed: int, firsts: list[int], rectify: Rectify) -> None:
    actual, layers = heat_map_of(normal, seed, firsts, GradEllm(loosening=Loosening.NONE, rectify=rectify))
    expected = [[0.0] * S for _ in range(T)]
    for layer in layers:
        for t in range(T):
            for i in range(S):
                value = layer[t, i].item()
                expected[t][i] += max(0.0, value) if rectify is Rectify.PER_LAYER else value
    if rectify is Rectify.TOTAL:
        expected = [[max(0.0, value) for value in row] for row in expected]
    assert torch.allclose(actual, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


@given(seeds, first_positions)
def test_rectify_relations(normal: Normal, seed: int, firsts: list[int]) -> None:
    signed, total, per_layer = (
        heat_map_of(normal, seed, firsts, GradEllm(loosening=Loosening.NONE, rectify=r))[0]
        for r in (Rectify.NONE, Rectify.TOTAL, Rectify.PER_LAYER)
    )
    assert torch.equal(signed.relu(), total)
    assert (per_layer >= total - 1e-12).all()
    assert (per_layer >= 0).all()
    assert not per_layer[:, : min(firsts)].any()  # no layer sees them
    if len(firsts) == 1:
        assert torch.equal(per_layer, total)


def test_the_normalisation_domain_is_moved_to_the_layers_device() -> None:
    meta = torch.device("meta")
    slot = KVPool([LayerShape(1, 4, 4, torch.float32, meta)], [], 3).allocate(3)
    assert slot is not None
    chunk = SequenceChunk(slot, [1], ExplainSpec(GradEllm(layers=(0,)), torch.tensor([True, False])), 2, is_new=False)
    layer = RaggedLayer(RaggedPass([chunk], {}), torch.nn.Identity(), 0, AttentionForm(0.5))
    layer.backward(torch.ones(1, 2, 1, 4, device=meta), torch.ones(1, 1, 2, 4, device=meta), needs_input_grad=False)


# One layer ----------------------------------------------------------------------------------------------------------

EXPLAIN = ExplainSpec(GradSam(layers=(0,)))


def plain_token(
    chunk: SequenceChunk, t: int, q: Tensor, form: AttentionForm, w: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
    """One token's attention output, gradients and Grad-SAM scores, by autograd; only its own key and value vary."""
    position, cap = chunk.start + t, form.softcap
    first = form.first_visible(position)
    own = slice(position, position + 1)
    k, v = chunk.slot.keys(0, own.start, own.stop).clone(), chunk.slot.values(0, own.start, own.stop).clone()
    leaves = tuple(leaf.requires_grad_() for leaf in (q.clone(), k, v))
    r = len(q) // len(k)
    K = torch.cat((chunk.slot.keys(0, first, position), k), 1).repeat_interleave(r, 0)
    V = torch.cat((chunk.slot.values(0, first, position), v), 1).repeat_interleave(r, 0)
    z = form.scaling * (K @ leaves[0][..., None])[..., 0]
    A = (z if cap is None else cap * (z / cap).tanh()).softmax(-1)  # [H, N]
    output = (A[..., None] * V).sum(1)
    dA, dq, dk, dv = torch.autograd.grad((output * w).sum(), (A, *leaves))
    scores = torch.zeros(chunk.end, dtype=q.dtype)
    scores[first : position + 1] = (A * dA.relu()).mean(0).detach()
    return output.detach(), (dq, dk[:, 0], dv[:, 0]), scores


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "computed twice"])
@pytest.mark.parametrize(
    "form",
    [AttentionForm(0.5), AttentionForm(0.5, window=3), AttentionForm(0.5, softcap=0.8)],
    ids=["plain", "window", "soft cap"],
)
def test_every_token_is_explained_as_the_last_of_its_prefix(
    normal: Normal, slots: Slots, monkeypatch: pytest.MonkeyPatch, form: AttentionForm, kept: bool
) -> None:
    """Output, gradients and scores; a chunk that is not explained has an output and zero gradients."""
    if not kept:
        monkeypatch.setattr("gradellm_engine.passes.ragged.MAX_KEPT_PRODUCTS", 0)
    first, plain, second = slots(9, 4, 6)
    chunks = [
        SequenceChunk.replay(first, 5, 9, EXPLAIN),
        SequenceChunk(plain, [7, 8], None, 2, is_new=True),
        SequenceChunk.replay(second, 0, 3, EXPLAIN),
    ]
    run = RaggedPass(chunks, {}, graph_anchor=torch.zeros((), requires_grad=True))
    layer = run.layer_attention(nn.Identity(), 0, form)
    query, w = normal(1, 1, 6, 9, 4), normal(2, 1, 9, 6, 5)
    output = layer.output(query)
    gradients = layer.backward(query, w, needs_input_grad=True)
    assert output.shape == w.shape
    assert gradients is not None
    heat_maps = iter(run.heat_maps())
    for chunk, rows in zip(chunks, run.row_slices, strict=True):
        heat_map = None if chunk.explain is None else next(heat_maps)
        for t, row in enumerate(range(rows.start, rows.stop)):
            expected, wanted, scores = plain_token(chunk, t, query[0, :, row], form, w[0, row])
            torch.testing.assert_close(output[0, row], expected)
            if heat_map is None:
                wanted = tuple(map(torch.zeros_like, wanted))  # type: ignore[assignment]
            else:
                torch.testing.assert_close(heat_map[t], scores)
            for gradient, expected_gradient in zip(gradients, wanted, strict=True):
                assert gradient is not None
                torch.testing.assert_close(gradient[0, :, row], expected_gradient)
    assert next(heat_maps, None) is None


def test_chunks_that_propagate_relevance_have_gradients_by_values_alone(normal: Normal, slots: Slots) -> None:
    first, second, plain = slots(5, 7, 4)
    relevance = ExplainSpec(GradEllm(layers=(0,), gradient=Gradient.RELEVANCE))
    chunks = [
        SequenceChunk.replay(first, 3, 5, EXPLAIN),
        SequenceChunk.replay(second, 4, 7, relevance),
        SequenceChunk(plain, [7, 8], None, 2, is_new=True),
    ]
    query, w = normal(1, 1, 6, 7, 4), normal(2, 1, 7, 6, 5)

    def backward(*chosen: int) -> tuple[RaggedPass, tuple[Tensor | None, ...]]:
        run = RaggedPass([chunks[i] for i in chosen], {}, graph_anchor=torch.zeros((), requires_grad=True))
        rows = [row for i in chosen for row in ([0, 1], [2, 3, 4], [5, 6])[i]]
        layer = run.layer_attention(nn.Identity(), 0, AttentionForm(0.4))
        layer.output(query[:, :, rows])
        gradients = layer.backward(query[:, :, rows], w[:, rows], needs_input_grad=True)
        assert gradients is not None
        return run, gradients

    true, of_true = backward(0, 2)
    assert true.relevance_rows is False
    mixed, of_mixed = backward(0, 1, 2)
    assert isinstance(mixed.relevance_rows, Tensor)
    assert mixed.relevance_rows.tolist() == [False, False, True, True, True, False, False]
    alone, (dq, dk, dv) = backward(1, 2)
    assert alone.relevance_rows is True
    assert dq is None
    assert dk is None
    for together, by_itself in zip(of_mixed, of_true, strict=True):
        assert together is not None
        assert by_itself is not None
        torch.testing.assert_close(together[:, :, [0, 1, 5, 6]], by_itself)
    assert of_mixed[0] is not None
    assert of_mixed[2] is not None
    assert not of_mixed[0][:, :, 2:].any()
    assert dv is not None
    torch.testing.assert_close(dv, of_mixed[2][:, :, 2:])
    assert dv[:, :, :3].any()


def test_the_lowest_layer_has_scores_and_no_gradients(normal: Normal, slots: Slots) -> None:
    chunk = SequenceChunk.replay(slots(5)[0], 3, 5, EXPLAIN)
    run = RaggedPass([chunk], {}, graph_anchor=torch.zeros((), requires_grad=True))
    layer = run.layer_attention(nn.Identity(), 0, AttentionForm(0.5))
    assert layer.backward(normal(1, 1, 4, 2, 4), normal(2, 1, 2, 4, 5), needs_input_grad=False) is None
    assert run.heat_maps()[0].shape == (2, 5)


def test_layers_that_are_not_selected_add_no_scores(normal: Normal, slots: Slots) -> None:
    run = RaggedPass([SequenceChunk.replay(slots(5)[0], 3, 5, EXPLAIN)], {})
    layer = run.layer_attention(nn.Identity(), 1, AttentionForm(0.5))
    assert layer.backward(normal(1, 1, 4, 2, 4), normal(2, 1, 2, 4, 5), needs_input_grad=True) is not None
    with pytest.raises(RuntimeError, match="no layer added maps"):
        run.heat_maps()


def test_an_output_that_is_not_used_is_nan(normal: Normal, slots: Slots) -> None:
    chunk = SequenceChunk.replay(slots(5)[0], 3, 5, EXPLAIN)
    run = RaggedPass([chunk], {}, output_is_used=False)
    output = run.layer_attention(nn.Identity(), 0, AttentionForm(0.5)).output(normal(1, 1, 4, 2, 4))
    assert output.shape == (1, 2, 4, 5)
    assert output.isnan().all()


def test_only_new_tokens_are_stored(normal: Normal) -> None:
    """At their positions, in the table of the layer's rotary embedding."""
    pool = KVPool([LayerShape(1, 4, 5, torch.float64, CPU)] * 2, [RotaryShape(4, torch.float64, CPU)] * 2, 12)
    pool.touch()
    slots = [pool.allocate_probe(6), pool.allocate_probe(6)]
    slots[0].ids += [1, 2, 3, 4]
    chunks = [SequenceChunk.replay(slots[0], 1, 4, EXPLAIN), SequenceChunk(slots[1], [5, 6], None, 2, is_new=True)]
    run = RaggedPass(chunks, {0: 0, 1: 1})
    keys, values, cosines, sines = normal(1, 1, 5, 4), normal(2, 1, 5, 5), normal(3, 5, 4), normal(4, 5, 4)
    run.store(1, keys, values)
    run.store_rotary(1, cosines, sines)
    for tensor, rows in ((pool.keys[1][0], keys[0]), (pool.values[1][0], values[0]), (pool.cosines[1], cosines)):
        assert torch.equal(tensor[8:10], rows[3:])
        assert not tensor[[*range(8), 10, 11]].any()
    assert torch.equal(pool.sines[1][8:10], sines[3:])
    assert not pool.keys[0].any()
    assert not pool.cosines[0].any()
    assert run.ids_and_positions.tolist() == [[2, 3, 4, 5, 6], [1, 2, 3, 2, 3]]


@pytest.mark.parametrize("length", [MIN_FUSED_TOKENS - 1, MIN_FUSED_TOKENS, 40])
@pytest.mark.parametrize(
    ("form", "is_fused"),
    [
        (AttentionForm(0.5), True),
        (AttentionForm(0.5, window=5), True),
        (AttentionForm(0.5, softcap=0.8), False),
        (AttentionForm(0.5, sinks=torch.zeros(4)), False),
    ],
    ids=["plain", "window", "soft cap", "sinks"],
)
def test_kernels_compute_chunks_that_are_not_explained(
    monkeypatch: pytest.MonkeyPatch, length: int, form: AttentionForm, is_fused: bool
) -> None:
    pytest.importorskip("numba")
    kernels = fused_attention(CPU)
    assert kernels is not None
    pool = KVPool([LayerShape(2, 6, 8, torch.float32, CPU)], [], 200)
    slots = [pool.allocate_probe(90) for _ in range(2)]
    for tensor in (*pool.keys, *pool.values):
        tensor.normal_()
    chunks = [
        SequenceChunk(slots[0], [1] * length, None, 3, is_new=True),
        SequenceChunk(slots[1], [1] * 5, None, 0, is_new=True),
    ]
    query = torch.randn(1, 4, length + 5, 6)
    expected = RaggedPass(chunks, {}).layer_attention(nn.Identity(), 0, form).output(query)
    assert kernels.prompts is not None
    calls: list[Tensor] = []
    original = kernels.prompts.output
    monkeypatch.setattr(kernels.prompts, "output", lambda *args: calls.append(args[0]) or original(*args))  # type: ignore[func-returns-value]
    actual = RaggedPass(chunks, {}, fused=kernels).layer_attention(nn.Identity(), 0, form).output(query)
    torch.testing.assert_close(actual, expected)
    assert len(calls) == (is_fused and length >= MIN_FUSED_TOKENS)
