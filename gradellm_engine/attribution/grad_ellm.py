"""Grad-ELLM (Huang and Chan 2026, section 3.2): from a layer's attention to one score a token.

For the token at step t, with target logit l and last position p, in every selected layer:

    1. w = dl/do          the output's gradient, by a backward pass through position p alone        (eqs 8-9)
    2. s_i = q_p . k_i     summed over heads: the similarity of query and key
    3. lam_i               s brought to 0..1 over the tokens that the layer sees: the loosening      (after eq 13)
    4. u_i = w . v_i       summed over heads: the effect of the token's value on the target
    5. h_i = ReLU(lam_i u_i)                                                                       (eq 13)
    6. H_i = sum of h_i over the layers                                                            (eq 5)

The settings vary steps 2 to 6, and whether the first token, the attention sink, is a source at all. The inputs are
S = c q K^T, the weights A and U = w V^T of each head, from `gradellm_engine.attention.ops`; the functions are pure.
Kernels compute `layer_maps` of those switches that `gradellm_engine.attention.fused.map_form` names.
Shapes: G key-value heads, r query heads to each, T explained tokens of a sequence, N keys. Arguments may have a batch
dimension before these, for sequences of one length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradellm_engine.attention.ops import AttentionState, grouped_matmul, source_weights
from gradellm_engine.params import GradEllm, Loosening, Magnitude, Rectify, Similarity

HEADS = (-4, -3)  # the dimensions G and r
ROUNDING = 32 * torch.finfo(torch.float32).eps  # of a sum over heads and channels, relative to its size


def squares(q: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Squared lengths of queries and of keys, over the heads' concatenated width. -> [T, N] each

    The concatenated key has a key-value head r times, once for each query head that shares it.

    Args:
        q: queries. [G, r, T, D]
        K: keys. [G, N, D]
    """
    of_keys = K.square().sum((-3, -1)) * q.shape[-3]  # [N]
    of_queries = q.square().sum((-4, -3, -1))  # [T]
    shape = (*of_queries.shape, of_keys.shape[-1])
    return of_queries[..., :, None].expand(shape), of_keys[..., None, :].expand(shape)


def cosine_similarity(dot: Tensor, of_queries: Tensor, of_keys: Tensor) -> Tensor:
    """Cosine over the heads' concatenated width, of dot products and `squares`. [T, N] each -> [T, N]"""
    norms = of_queries.sqrt() * of_keys.sqrt()
    # A zero vector has cosine 0, not NaN.
    return torch.where(norms > 0, dot / norms.where(norms > 0, 1), 0)


def weighted_effect(
    forward: AttentionState, w: Tensor, U: Tensor, magnitude: Magnitude, *, rectifies: bool = False
) -> Tensor:
    """Steps 3 to 5 with the attention weights themselves (no loosening), heads combined by `magnitude`. -> [T, N]

    Args:
        forward: the layer's attention; where its `sources` are set, a are `source_weights`.
        w: dl/do. [G, r, T, Dv]
        U: w V^T. [G, r, T, N]
        magnitude: signed_sum: sum_h a_hi u_hi. head_abs: sum_h |a_hi u_hi|. channel_abs: sum_hc |a_hi w_hc v_ic|.
            knockout: sum_h |a_hi (u_hi - sum_j a_hj u_hj)|, the first-order effect of removing token i from the
                softmax.
        rectifies: whether the positive part of each head is summed, of signed_sum's terms or of knockout's.
    """
    A = source_weights(forward)
    if magnitude is Magnitude.CHANNEL_ABS:
        return (A * grouped_matmul(w.abs(), forward.V.abs().mT)).sum(HEADS)
    effect = A * (U - (A * U).sum(-1, keepdim=True)) if magnitude is Magnitude.KNOCKOUT else A * U
    if rectifies:
        effect = effect.relu()
    elif magnitude is not Magnitude.SIGNED_SUM:
        effect = effect.abs()
    return effect.sum(HEADS)


def min_max(s: Tensor, domain: Tensor | None) -> Tensor:
    """Step 3: s brought to 0..1 over the tokens of `domain` (None for all), 0 outside, 0 everywhere where max = min.

    Both [T, N]. Values that differ by no more than float32's rounding count as equal: stretched to 0..1, the rounding
    would set equal tokens apart.
    """
    outside = None if domain is None else ~domain
    if outside is None:
        low, high = torch.aminmax(s, dim=-1, keepdim=True)
    else:
        low = s.masked_fill(outside, torch.inf).amin(-1, keepdim=True)
        high = s.masked_fill(outside, -torch.inf).amax(-1, keepdim=True)
    spread = high - low  # -inf where the domain is empty
    lam = (s - low) / spread.where(spread > ROUNDING * torch.maximum(high, -low), torch.inf)
    return lam if outside is None else lam.masked_fill(outside, 0)


def layer_maps(
    forward: AttentionState, w: Tensor, U: Tensor, switches: GradEllm, unrotated: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Steps 2 and 4 for one layer: dot products s and effects u, summed over heads; for cosines, squared lengths, too.

    Without loosening, the product h alone.

    Args:
        forward: the layer's attention over its keys.
        w: dl/do. [G, r, T, Dv]
        U: w V^T. [G, r, T, N]
        switches: the method's switches.
        unrotated: queries [G, r, T, D] and keys [G, N, D] before the rotary embedding, where the method compares those.

    Returns:
        [T, N] each. Dot products keep attention's scaling c, to which min-max is invariant.
    """
    if switches.loosening is Loosening.NONE:
        rectifies = switches.rectify is Rectify.PER_HEAD
        # 0 at masked tokens, as their weight is
        return (weighted_effect(forward, w, U, switches.magnitude, rectifies=rectifies),)
    q, K = (forward.q, forward.K) if unrotated is None else unrotated
    dot = forward.S.sum(HEADS) if unrotated is None else grouped_matmul(q, K.mT).sum(HEADS)
    if switches.similarity is Similarity.COSINE:
        return dot if unrotated is not None else dot / forward.form.scaling, U.sum(HEADS), *squares(q, K)
    return dot, U.sum(HEADS)


def layer_scores(maps: tuple[Tensor, ...], switches: GradEllm, domain: Tensor | None) -> Tensor:
    """Steps 3 and 5: h_i, of one layer or a stack of layers. -> [.., T, N]

    Args:
        maps: `layer_maps`' results. [.., T, N] each
        switches: the method's switches.
        domain: the keys that a query sees and over which similarities are normalised; None for all. [T, N], bool
    """
    if switches.loosening is Loosening.NONE:
        h = maps[0]
    else:
        dot, effect, *lengths = maps
        h = min_max(cosine_similarity(dot, *lengths) if lengths else dot, domain) * effect
    return h.relu() if switches.rectify is Rectify.PER_LAYER else h


def heat_map(total: Tensor, switches: GradEllm) -> Tensor:
    """Step 6 from the sum over layers, rectified if the settings rectify the total. [T, S]"""
    return total.relu() if switches.rectify is Rectify.TOTAL else total
