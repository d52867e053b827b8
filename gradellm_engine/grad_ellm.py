"""Grad-ELLM (Huang and Chan 2026, section 3.2): from attention's own numbers to one score a token.

For the token at step t, with target logit l and last position p, in every selected layer:

    1. w = dl/do          the output's gradient, by a backward pass through position p alone        (eqs 8-9)
    2. s_i = q_p . k_i     summed over heads: how alike query and key are
    3. lam_i               s brought to 0..1 over the tokens that the layer sees: the loosening      (after eq 13)
    4. u_i = w . v_i       summed over heads: what the token's value would do to the target
    5. h_i = ReLU(lam_i u_i)                                                                       (eq 13)
    6. H_i = sum of h_i over the layers                                                            (eq 5)

The named switches vary steps 2 to 6. Attention hands over R = q K^T, its weights A and U = w V^T for each head
(`gradellm_engine.attention`); everything here is pure arithmetic on them.
Shapes: G key-value heads, r query heads to each, N visible tokens, S tokens of the prefix, L selected layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradellm_engine.attention import OneQuery, mean_effect
from gradellm_engine.settings import GradEllm, Loosening, Magnitude, Rectify, Similarity


@dataclass(frozen=True)
class LayerContribution:
    """What one layer says about the tokens that it sees.

    Attributes:
        first: position of the first visible token.
        similarity: s of step 2, to be normalised; None where true attention weights are already in `effect`. [N]
        effect: u of step 4, or with loosening none the tokens' weighted effects. [N]
    """

    first: int
    similarity: Tensor | None
    effect: Tensor


def dot_similarity(R: Tensor) -> Tensor:
    """s_i: query-key products summed over heads. [G, r, N] -> [N]"""
    return R.sum((0, 1))


def cosine_similarity(q: Tensor, K: Tensor, R: Tensor) -> Tensor:
    """Cosine of query and keys over the heads' concatenated width. [G, r, D], [G, N, D], [G, r, N] -> [N]

    A key-value head stands r times in the concatenated key, once for each query head that shares it.
    """
    key_norms = (K.square().sum((0, 2)) * q.shape[1]).sqrt()  # [N]
    norms = q.square().sum().sqrt() * key_norms
    # A zero vector is like nothing: its cosine is 0, not NaN.
    return torch.where(norms > 0, dot_similarity(R) / norms.where(norms > 0, 1), 0)


def weighted_effect(forward: OneQuery, w: Tensor, U: Tensor, magnitude: Magnitude) -> Tensor:
    """Steps 3 to 5 with true attention weights, heads combined as `magnitude` says. -> [N]

    Args:
        forward: the layer's attention.
        w: dl/do. [G, r, Dv]
        U: w V^T. [G, r, N]
        magnitude: signed_sum: sum_h a_hi u_hi. head_abs: sum_h |a_hi u_hi|. channel_abs: sum_hc |a_hi w_hc v_ic|.
            knockout: sum_h |a_hi (u_hi - sum_j a_hj u_hj)|, the first-order effect of taking token i out of the
                softmax.
    """
    A = forward.A
    match magnitude:
        case Magnitude.SIGNED_SUM:
            return (A * U).sum((0, 1))
        case Magnitude.HEAD_ABS:
            return (A * U).abs().sum((0, 1))
        case Magnitude.CHANNEL_ABS:
            return (A * (w.abs() @ forward.V.abs().transpose(-1, -2))).sum((0, 1))
        case Magnitude.KNOCKOUT:
            return (A * (U - mean_effect(A, U))).abs().sum((0, 1))


def layer_contribution(
    forward: OneQuery,
    w: Tensor,
    U: Tensor,
    first: int,
    switches: GradEllm,
    unrotated: tuple[Tensor, Tensor] | None = None,
) -> LayerContribution:
    """Steps 2 and 4 for one layer.

    Args:
        forward: the layer's attention over its visible tokens.
        w: dl/do. [G, r, Dv]
        U: w V^T. [G, r, N]
        first: position of the first visible token.
        switches: the method's switches.
        unrotated: query [G, r, D] and keys [G, N, D] before the rotary embedding, where those are to be compared.
    """
    if switches.loosening is Loosening.NONE:
        return LayerContribution(first, None, weighted_effect(forward, w, U, switches.magnitude))
    q, K, R = forward.q, forward.K, forward.R
    if unrotated is not None:
        q, K = unrotated
        R = q @ K.transpose(-1, -2)
    similarity = cosine_similarity(q, K, R) if switches.similarity is Similarity.COSINE else dot_similarity(R)
    return LayerContribution(first, similarity, U.sum((0, 1)))


def min_max(s: Tensor, domain: Tensor) -> Tensor:
    """Step 3: s brought to 0..1 over the tokens of `domain`, 0 outside, 0 everywhere where max = min. [L, S] each"""
    low = s.masked_fill(~domain, torch.inf).amin(-1, keepdim=True)
    high = s.masked_fill(~domain, -torch.inf).amax(-1, keepdim=True)
    spread = high - low  # not positive where the domain is empty or all its values are equal
    return torch.where(domain & (spread > 0), (s - low) / spread.where(spread > 0, 1), 0)


def heat_map(
    contributions: Sequence[LayerContribution], num_tokens: int, switches: GradEllm, domain: Tensor | None = None
) -> Tensor:
    """Steps 3, 5 and 6: one score a token of the prefix. -> [S]

    Args:
        contributions: one a selected layer; at least one.
        num_tokens: S, tokens of the prefix.
        switches: the method's switches.
        domain: the tokens over which similarities are normalised; None for all that a layer sees. [S], bool
    """
    device = contributions[0].effect.device  # with a model spread over devices, the first one's
    effects = torch.stack([_padded(c.effect, c.first, num_tokens, device) for c in contributions])  # [L, S]
    if switches.loosening is Loosening.MIN_MAX:
        similarities = torch.stack(
            [_padded(c.similarity, c.first, num_tokens, device) for c in contributions if c.similarity is not None]
        )
        first = torch.tensor([c.first for c in contributions], device=device)
        visible = torch.arange(num_tokens, device=device) >= first[:, None]  # [L, S]
        effects = min_max(similarities, visible if domain is None else visible & domain.to(device)) * effects
    if switches.rectify is Rectify.PER_LAYER:
        effects = effects.relu()
    total = effects.sum(0)
    return total.relu() if switches.rectify is Rectify.TOTAL else total


def _padded(values: Tensor, first: int, num_tokens: int, device: torch.device) -> Tensor:
    """Values of the positions first.., with zeros for those before: a token outside the window contributes nothing."""
    return torch.nn.functional.pad(values.to(device), (first, num_tokens - first - values.shape[0]))
