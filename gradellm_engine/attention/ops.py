"""Attention's arithmetic, forward and backward, as functions of tensors.

Notation (T queries of one sequence at positions p_t = start + t; G key-value heads, r query heads to each; N keys, of
positions first..; widths D and Dv; scaling c):

    forward    S = c q K^T                      [G, r, T, N]
               Z = S, soft-capped where the model does: cap tanh(S / cap)
               A = softmax(Z) over the keys that the query sees; with a sink: over Z and one logit that has no value
               o = A V                          [G, r, T, Dv]
    backward   U = (dl/do) V^T                  [G, r, T, N]
               dZ = A * (U - sum_j A_j U_j)     which is softmax's own backward pass; the sum is (dl/do) . o
               dS = dZ, times the soft-cap's derivative
               dq = c dS K;  and on the diagonal alone  dk_t = c dS_tt q_t,  dv_t = A_tt (dl/do)_t

A decode step has one query, the replay of a chunk has several. Each is explained as if it were the last of its prefix:
keys and values of earlier positions are constants of its gradient, its own are not. So key and value gradients are
non-zero on the diagonal alone, where key t meets query t. The sum of all queries' targets can then be differentiated at
once, and each query gets the gradient that it would get alone.

Grad-ELLM's heat map is computed from S, A and U, and needs no pass of its own. Query heads that share a key-value head
are grouped as [G, r, T, .], so that keys and values are never repeated. All arguments may have further batch dimensions
before these, for sequences of one length.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from gradellm_engine.utils.torch_compat import softmax_backward

MIN_SOURCE_WEIGHT = 1e-12  # of all sources of a head together


@dataclass(frozen=True)
class AttentionForm:
    """Scaling, soft cap, sinks and window of a layer's attention.

    Attributes:
        scaling: factor of query-key products.
        softcap: products are squashed to (-softcap, softcap); None for no cap.
        sinks: a logit for each head that takes attention and has no value, [H]; None for none.
        window: a token sees itself and the window - 1 tokens before it; None for all.
    """

    scaling: float
    softcap: float | None = None
    sinks: Tensor | None = None
    window: int | None = None

    def first_visible(self, position: int) -> int:
        """The first position that a query at `position` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)

    @property
    def is_plain(self) -> bool:
        """Whether `scaled_dot_product_attention` computes it: no soft cap and no sinks."""
        return self.softcap is None and self.sinks is None


def attention_output(
    q: Tensor, K: Tensor, V: Tensor, visible: Tensor | None, form: AttentionForm, *, keep_products: bool = False
) -> tuple[Tensor, AttentionState | None]:
    """The attention output, by `scaled_dot_product_attention` where that is faster.

    Args:
        q: queries. [G, r, T, D]
        K: keys. [G, N, D]
        V: values. [G, N, Dv]
        visible: which keys each query sees, None for all; one mask for all sequences, or one each. [T, N], bool
        form: the layer's attention.
        keep_products: whether the backward pass needs the products.

    Returns:
        The output [G, r, T, Dv], and the products where they were computed one by one; else None.
    """
    *batch, G, r, T, D = q.shape
    compute = torch.promote_types(q.dtype, torch.float32)
    if keep_products or not form.is_plain or (T == 1 and compute == q.dtype):
        state = attend(q.to(compute), K.to(compute), V.to(compute), visible, form)
        return state.output().to(q.dtype), state
    if T == 1:  # the r query heads of a group are r queries of one head
        K, V = K.view(-1, G, *K.shape[-2:]), V.view(-1, G, *V.shape[-2:])
        seen = None if visible is None else visible.view(-1, 1, 1, K.shape[2])
        o = F.scaled_dot_product_attention(q.reshape(-1, G, r, D), K, V, seen, scale=form.scaling)
    else:
        # A prompt's first chunk is square; for that, kernels have a causal form that skips half of the work.
        is_square = K.shape[-2] == T and (form.window is None or form.window >= T)
        is_causal = is_square and (visible is None or visible.dim() == 2)  # no padding is masked in any sequence
        o = F.scaled_dot_product_attention(
            q.reshape(-1, G * r, T, D),
            K.view(-1, G, *K.shape[-2:]),
            V.view(-1, G, *V.shape[-2:]),
            None if is_causal or visible is None else visible.view(-1, 1, *visible.shape[-2:]),
            is_causal=is_causal,
            scale=form.scaling,
            enable_gqa=r != 1,
        )
    return o.view(*batch, G, r, T, -1), None


def visibility(start: int, T: int, first: int, N: int, window: int | None, device: torch.device) -> Tensor | None:
    """The causal mask of T queries from position `start` over N keys from position `first`; True is visible. [T, N]

    None for a single query that sees all keys.
    """
    if T == 1 and first + N == start + 1 and (window is None or window >= N):
        return None
    query = torch.arange(start, start + T, device=device)[:, None]
    key = torch.arange(first, first + N, device=device)[None, :]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)


@dataclass(frozen=True)
class AttentionState:
    """A layer's attention with all products, for its backward pass and the heat map.

    Attributes:
        q: the queries. [G, r, T, D]
        K: the keys. [G, N, D]
        V: the values. [G, N, Dv]
        S: scaled query-key products; may be -inf where the key is masked. [G, r, T, N]
        A: attention weights. [G, r, T, N]
        form: the layer's attention.
        sources: which keys count as sources of the target, for `source_weights`; None for all. [N], bool
    """

    q: Tensor
    K: Tensor
    V: Tensor
    S: Tensor
    A: Tensor
    form: AttentionForm
    sources: Tensor | None = None

    def output(self) -> Tensor:
        """The output, A V. [G, r, T, Dv]"""
        return grouped_matmul(self.A, self.V)


def grouped(heads: Tensor, num_groups: int) -> Tensor:
    """Query heads grouped by the key-value head that they share. [H, T, D] -> [G, r, T, D]"""
    *batch, _, T, D = heads.shape
    return heads.reshape(*batch, num_groups, -1, T, D)


def grouped_matmul(x: Tensor, M: Tensor) -> Tensor:
    """Product of each group's rows with the group's matrix. [G, r, T, A], [G, A, B] -> [G, r, T, B]"""
    *groups, r, T, width = x.shape
    rows = x.reshape(*groups, r * T, width)
    product = torch.bmm(rows, M) if len(groups) == 1 else rows @ M  # the same; bmm has less overhead
    return product.view(*groups, r, T, -1)


def attend(q: Tensor, K: Tensor, V: Tensor, visible: Tensor | None, form: AttentionForm) -> AttentionState:
    """The forward pass up to the attention weights, with all products. Arguments as for `attention_output`."""
    Z = S = grouped_matmul(q * form.scaling, K.mT)
    if form.softcap is not None:
        Z = form.softcap * torch.tanh(S / form.softcap)
    if visible is not None and Z.requires_grad:
        # An additive mask, whose backward pass is free; masked products have zero weight, hence zero gradient.
        Z = Z + torch.zeros_like(visible, dtype=Z.dtype).masked_fill_(~visible, -torch.inf)[..., None, None, :, :]
    elif visible is not None:
        # In one sequence without a window, only keys of the queries' own positions can be masked.
        before = K.shape[-2] - q.shape[-2] if visible.dim() == 2 and form.window is None else 0
        Z[..., before:].masked_fill_(~visible[..., None, None, :, before:], -torch.inf)
    if form.sinks is None:
        A = Z.softmax(-1)
    else:
        sinks = form.sinks.to(Z.dtype).view(*q.shape[-4:-2], 1, 1).expand(*q.shape[:-1], 1)
        A = torch.cat((Z, sinks), dim=-1).softmax(-1)[..., :-1]
    return AttentionState(q, K, V, S, A, form)


class InputGradient(IntEnum):
    """What attention's backward pass computes beside maps."""

    NOTHING = 0
    VALUES = 1  # attention weights are constants
    ALL = 2

    @classmethod
    def of(cls, *, is_needed: bool, weights_are_constant: bool) -> InputGradient:
        """What a layer computes, if a layer below needs a gradient."""
        if not is_needed:
            return cls.NOTHING
        return cls.VALUES if weights_are_constant else cls.ALL


@dataclass(frozen=True)
class Gradients:
    """Results of the backward pass.

    Attributes:
        dq: [G, r, T, D]
        dk: by each query's own key. [G, T, D]
        dv: by each query's own value. [G, T, Dv]
    """

    dq: Tensor
    dk: Tensor
    dv: Tensor


def value_gradients(forward: AttentionState, w: Tensor) -> Tensor:
    """U = (dl/do) V^T: the target's gradient by the attention weights.

    w: [G, r, T, Dv] -> [G, r, T, N]
    """
    return grouped_matmul(w, forward.V.mT)


def source_weights(forward: AttentionState) -> Tensor:
    """The attention weights of the keys that are sources, divided by their sum. [G, r, T, N]

    All are 0 in a head whose sources have a total weight below MIN_SOURCE_WEIGHT. The sum is taken over the sources:
    1 minus the weight of the others would lose its digits where they have almost all of it.
    """
    if forward.sources is None:
        return forward.A
    A = forward.A.masked_fill(~forward.sources[..., None, None, None, :], 0)
    total = A.sum(-1, keepdim=True)
    return A / total.where(total >= MIN_SOURCE_WEIGHT, torch.inf)


def attention_backward(forward: AttentionState, w: Tensor, U: Tensor, diagonal_offset: int) -> Gradients:
    """Gradients from w = dl/do [G, r, T, Dv] and U = w V^T [G, r, T, N].

    `diagonal_offset` is the index of the first query's own key in K.
    """
    # Also right with a sink: it has no value, so it adds nothing to the sum in softmax's backward pass.
    dS, c = softmax_backward(U, forward.A, -1, U.dtype), forward.form.scaling
    if forward.form.softcap is not None:
        dS = dS * (1 - torch.tanh(forward.S / forward.form.softcap) ** 2)
    return Gradients(
        dq=grouped_matmul(dS, forward.K).mul_(c),
        dk=(_diagonal(dS, diagonal_offset) * forward.q).sum(-3).mul_(c),
        dv=own_value_gradient(forward, w, diagonal_offset),
    )


def own_value_gradient(forward: AttentionState, w: Tensor, diagonal_offset: int) -> Tensor:
    """The gradient by each query's own value, a_tt w_t, from w = dl/do. [G, r, T, Dv] -> [G, T, Dv]"""
    return (_diagonal(forward.A, diagonal_offset) * w).sum(-3)


def _diagonal(x: Tensor, diagonal_offset: int) -> Tensor:
    """Each query's entry for its own key. [G, r, T, N] -> [G, r, T, 1]"""
    if x.shape[-2] == 1:
        return x[..., diagonal_offset : diagonal_offset + 1]
    return x.diagonal(diagonal_offset, -2, -1)[..., None]
