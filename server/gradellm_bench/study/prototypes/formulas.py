"""Candidate formulas that cost a decode step, as pure functions of one step's tensors.

A formula takes `StepTensors` and returns a score for each token of the prefix, [S]. Most of them combine the terms

    k_hi = a_hi (u_hi - sum_j a_hj u_hj)      the first-order effect of taking token i out of head h's softmax

of all layers and heads, where a are attention weights over all tokens but the sink, which sum to 1. `knockout` is the
sum of their absolute values, `knockout_positive` of their positive parts. Terms have shape [L, H, S].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gradellm_bench.study.prototypes.capture import ReplayTensors, StepTensors
from gradellm_engine.attention.ops import MIN_SOURCE_WEIGHT

Formula = Callable[[StepTensors], Tensor]
HEADS = (0, 1)  # the dimensions L and H
TINY = 1e-20
LEAST_REST = 0.05  # of 1 - a, in exact removals


def without_sink(A: Tensor) -> Tensor:
    """Attention weights of the tokens but the first, divided by their sum; 0 where that is tiny. [.., S]"""
    rest = torch.cat((torch.zeros_like(A[..., :1]), A[..., 1:]), dim=-1)
    total = rest.sum(-1, keepdim=True)
    return rest / total.where(total >= MIN_SOURCE_WEIGHT, torch.inf)


def knockout_terms(a: Tensor, u: Tensor) -> Tensor:
    """a_i (u_i - sum_j a_j u_j). [.., S]"""
    return a * (u - (a * u).sum(-1, keepdim=True))


def removal_terms(a: Tensor, u: Tensor, least: float) -> Tensor:
    """The exact change of w . o when token i leaves the softmax, with the rest of the weight bounded below. [.., S]

    Without token i the other weights are a_j / (1 - a_i), so w . o falls by a_i / (1 - a_i) (u_i - sum_j a_j u_j).
    """
    return knockout_terms(a, u) / (1 - a).clamp_min(least)


def ranks(x: Tensor) -> Tensor:
    """Ranks along the last dimension, the sink left out: 0 for it and for the smallest, 1 for the largest. [.., S]"""
    order = x[..., 1:].argsort(dim=-1, stable=True).argsort(dim=-1, stable=True).to(x.dtype)
    scaled = order / max(1, x.shape[-1] - 2)
    return torch.cat((torch.zeros_like(scaled[..., :1]), scaled), dim=-1)


def shares(x: Tensor) -> Tensor:
    """Terms divided by their sum over tokens. [.., S]"""
    return x / x.sum(-1, keepdim=True).clamp_min(TINY)


def geometric_mean(x: Tensor, y: Tensor) -> Tensor:
    """Of two scores, negative ones as 0. [S]"""
    return (x.relu() * y.relu()).sqrt()


def key_value_gradients(step: StepTensors) -> tuple[Tensor, Tensor]:
    """Gradients of the logit by the keys and the values that the step reads. [L, G, S, D] each

    dl/dv_i = sum of a_hi w_h, dl/dk_i = c sum of a_hi (u_hi - sum_j a_hj u_hj) q_h, over the heads that share them.
    """
    L, G = step.V.shape[:2]
    terms = knockout_terms(step.A, step.U["logit"])
    A, dS, W, Q = (x.reshape(L, G, -1, x.shape[-1]) for x in (step.A, terms, step.W, step.Q))
    dk = torch.einsum("lgrs,lgrd->lgsd", dS, Q) * step.scaling[:, None, None, None]
    return dk, torch.einsum("lgrs,lgrd->lgsd", A, W)


def provenance(mixing: Tensor, share: float) -> Tensor:
    """Attention rollout up to the input of each layer: how much of token i's residual comes from token j. [L, S, S]

    Args:
        mixing: attention of all positions, the mean over heads. [L, S, S]
        share: how much of a layer's output comes through attention. The sink adds nothing.
    """
    S = mixing.shape[-1]
    rollout, layers = torch.eye(S, dtype=mixing.dtype), []
    for attention in without_sink(mixing):
        layers.append(rollout)
        carried = share * (attention.sum(-1, keepdim=True) > 0)
        rollout = (1 - carried) * rollout + carried * (attention @ rollout)
    return torch.stack(layers)


def replayed_relevance(replay: ReplayTensors) -> Tensor:
    """Relevance that replayed positions pass on: a replayed token keeps its embedding's, another what arrives. [S]

    Without replay of other positions than the last, a token's score is the sum of a_hi u_hi. With all of them, it is
    the score of the method `relevance`.
    """
    scores = (replay.A * replay.U).sum((0, 1, 2))
    scores[replay.positions] = replay.products
    return scores


def replayed_knockout(replay: ReplayTensors) -> Tensor:
    """The absolute knockout terms of all replayed positions. [S]"""
    return knockout_terms(without_sink(replay.A), replay.U).abs().sum((0, 1, 2))


def terms(step: StepTensors, objective: str = "logit") -> Tensor:
    """The knockout terms without the sink. [L, H, S]"""
    return knockout_terms(without_sink(step.A), step.U[objective])


def knockout(step: StepTensors, objective: str = "logit") -> Tensor:
    """Sum of the terms' absolute values: `knockout` with `sink="exclude"`. [S]"""
    return terms(step, objective).abs().sum(HEADS)


def knockout_positive(step: StepTensors, objective: str = "logit") -> Tensor:
    """Sum of the terms' positive parts. [S]"""
    return terms(step, objective).relu().sum(HEADS)


def products(step: StepTensors, objective: str = "logit") -> Tensor:
    """a_hi u_hi, without the sink. [L, H, S]"""
    return without_sink(step.A) * step.U[objective]


def weighted(step: StepTensors, weights: Tensor) -> Tensor:
    """Knockout with a weight for each layer or head. weights: [L, 1, 1] or [L, H, 1] -> [S]"""
    return (weights * terms(step).abs()).sum(HEADS)


def key_value_norms(step: StepTensors) -> Tensor:
    """L2 norms of the gradients by a token's keys and values, summed over layers. [S]"""
    dk, dv = key_value_gradients(step)
    norms = (dk.square().sum((1, 3)) + dv.square().sum((1, 3))).sqrt().sum(0)
    norms[0] = 0
    return norms


def traced(step: StepTensors, layers: Tensor, share: float) -> Tensor:
    """Layers' scores led back to the tokens that their positions' residuals come from. [L, S] -> [S]"""
    return torch.einsum("ls,lst->t", layers, provenance(step.mixing, share))


def _effect(step: StepTensors) -> Tensor:
    """The product w . o of each head. [L, H, 1]"""
    return (step.A * step.U["logit"]).sum(-1, keepdim=True)


def _depth(step: StepTensors) -> Tensor:
    """0 for the first layer to 1 for the last. [L, 1, 1]"""
    return torch.linspace(0, 1, len(step.A), dtype=step.A.dtype)[:, None, None]


def _sink_free(step: StepTensors) -> Tensor:
    """The attention that a head does not rest on the sink. [L, H, 1]"""
    return step.A[..., 1:].sum(-1, keepdim=True)


def _rest(scores: Tensor) -> Tensor:
    """Scores with 0 for the sink. [S]"""
    return torch.cat((scores[:1] * 0, scores[1:]))


FORMULAS: Mapping[str, Formula] = {
    # exact removal
    "removal": lambda s: removal_terms(without_sink(s.A), s.U["logit"], LEAST_REST).abs().sum(HEADS),
    "removal_positive": lambda s: removal_terms(without_sink(s.A), s.U["logit"], LEAST_REST).relu().sum(HEADS),
    "layers_abs": lambda s: terms(s).sum(1).abs().sum(0),
    "layers_positive": lambda s: terms(s).sum(1).relu().sum(0),
    "drop_abs": lambda s: _rest(s.drops.abs()),
    "drop_positive": lambda s: _rest(s.drops.relu()),
    # ranks and normalised sums
    "head_ranks": lambda s: ranks(terms(s).abs()).mean(HEADS),
    "layer_ranks": lambda s: ranks(terms(s).abs().sum(1)).mean(0),
    "head_shares": lambda s: shares(terms(s).abs()).sum(HEADS),
    "layer_shares": lambda s: shares(terms(s).abs().sum(1)).sum(0),
    "root": lambda s: terms(s).abs().sqrt().sum(HEADS),
    "square": lambda s: terms(s).square().sum(HEADS),
    "square_positive": lambda s: terms(s).relu().square().sum(HEADS),
    "largest_head": lambda s: terms(s).abs().amax(HEADS),
    # weights of layers and heads
    "early_layers": lambda s: weighted(s, 1 - _depth(s)),
    "late_layers": lambda s: weighted(s, _depth(s)),
    "layer_effect": lambda s: (shares(terms(s).abs().sum(1)) * _effect(s).sum(1).abs()).sum(0),
    "head_effect": lambda s: (shares(terms(s).abs()) * _effect(s).abs()).sum(HEADS),
    "times_head_effect": lambda s: weighted(s, _effect(s).abs()),
    "positive_heads": lambda s: weighted(s, (_effect(s) > 0).to(s.A)),
    "times_sink_free": lambda s: weighted(s, _sink_free(s)),
    "per_gradient_norm": lambda s: weighted(s, 1 / s.W.norm(dim=-1, keepdim=True).clamp_min(TINY)),
    # modified backward passes, gradients by keys and values, products with the residual stream
    "relevance_step": lambda s: (s.A * s.U["relevance"]).sum(HEADS),
    "relevance_positive": lambda s: products(s, "relevance").relu().sum(HEADS),
    "relevance_knockout": lambda s: knockout(s, "relevance"),
    "relevance_knockout_positive": lambda s: knockout_positive(s, "relevance"),
    "relevance_head_abs": lambda s: products(s, "relevance").abs().sum(HEADS),
    "relevance_layers_positive": lambda s: terms(s, "relevance").sum(1).relu().sum(0),
    "relevance_square": lambda s: terms(s, "relevance").square().sum(HEADS),
    "relevance_square_positive": lambda s: terms(s, "relevance").relu().square().sum(HEADS),
    "relevance_root": lambda s: terms(s, "relevance").abs().sqrt().sum(HEADS),
    "key_value_norms": key_value_norms,
    "residual_products": lambda s: _rest(s.residual_products.abs().sum(0)),
    # the objective
    "contrast_knockout": lambda s: knockout(s, "contrast"),
    "contrast_knockout_positive": lambda s: knockout_positive(s, "contrast"),
    # combinations
    "knockout_times_positive": lambda s: geometric_mean(knockout(s), knockout_positive(s)),
    "knockout_rank_positive": lambda s: ranks(knockout(s)) + ranks(knockout_positive(s)),
    "knockout_times_drop": lambda s: geometric_mean(knockout(s), s.drops.abs()),
    "knockout_times_norms": lambda s: geometric_mean(knockout(s), key_value_norms(s)),
    "knockout_times_relevance": lambda s: geometric_mean(knockout(s), knockout_positive(s, "relevance")),
    # sources of the positions that are read; these need attention weights of the prefill
    "traced_10": lambda s: traced(s, terms(s).abs().sum(1), 0.1),
    "traced_50": lambda s: traced(s, terms(s).abs().sum(1), 0.5),
    "traced_10_positive": lambda s: traced(s, terms(s).relu().sum(1), 0.1),
}
"""By name. Each costs a decode step but for the last group, and "drop", which has a row of the batch for each token."""
