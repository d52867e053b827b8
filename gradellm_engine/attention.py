"""Attention's arithmetic, forward and backward, by hand: tensors in, tensors out.

Notation (one query, G key-value heads, r query heads to each, N visible keys, widths D and Dv, scaling c):

    forward    R = q K^T                        [G, r, N]
               Z = c R, soft-capped where the model does: cap tanh(c R / cap)
               A = softmax(Z)                   with a sink: over Z and one logit that has no value
               o = A V                          [G, r, Dv]
    backward   U = (dl/do) V^T                  [G, r, N]
               dZ = A * (U - sum_j A_j U_j)     since (dl/do) . o = sum_j A_j U_j
               dR = c dZ, times the soft-cap's derivative
               dq = dR K;  dk_p = dR_p q;  dv_p = A_p (dl/do)

Keys and values before position p are constants of this gradient (attention is causal, and p is the last position), so
only the last column has dk and dv. Grad-ELLM's heat map is made of R, A and U, which are at hand: it costs no pass of
its own. Query heads that share a key-value head are grouped as [G, r, .], so that keys and values are never repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AttentionForm:
    """How a layer's attention departs from the plain one.

    Attributes:
        scaling: what query-key products are multiplied with.
        softcap: products are squashed to (-softcap, softcap); None for not.
        sinks: one logit a head that takes attention and gives no value, [H]; None for none.
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
        """Whether a stock kernel computes it."""
        return self.softcap is None and self.sinks is None


@dataclass(frozen=True)
class OneQuery:
    """One query's attention, as its backward pass and the heat map need it.

    Attributes:
        q: the query. [G, r, D]
        K: the visible keys. [G, N, D]
        V: the visible values. [G, N, Dv]
        R: query-key products, unscaled. [G, r, N]
        A: attention weights. [G, r, N]
    """

    q: Tensor
    K: Tensor
    V: Tensor
    R: Tensor
    A: Tensor

    @property
    def o(self) -> Tensor:
        """The output. [G, r, Dv]"""
        return self.A @ self.V


def one_query_forward(q: Tensor, K: Tensor, V: Tensor, form: AttentionForm) -> OneQuery:
    """Attention of one query [G, r, D] over visible keys [G, N, D] and values [G, N, Dv]."""
    R = q @ K.transpose(-1, -2)  # [G, r, N]
    Z = capped(R, form)
    if form.sinks is None:
        A = Z.softmax(-1)
    else:
        sinks = form.sinks.to(Z.dtype).view(*Z.shape[:-1], 1)  # [G, r, 1]
        A = torch.cat((Z, sinks), dim=-1).softmax(-1)[..., :-1]
    return OneQuery(q, K, V, R, A)


def one_query_output(q: Tensor, K: Tensor, V: Tensor, form: AttentionForm) -> Tensor:
    """The output alone, by a stock kernel where there is one. [G, r, D], [G, N, D], [G, N, Dv] -> [G, r, Dv]"""
    if form.is_plain:
        # The r query heads of a group see the same keys, as r queries of one head would.
        return F.scaled_dot_product_attention(q[None], K[None], V[None], scale=form.scaling)[0]
    compute = torch.promote_types(q.dtype, torch.float32)
    return one_query_forward(q.to(compute), K.to(compute), V.to(compute), form).o.to(q.dtype)


def capped(R: Tensor, form: AttentionForm) -> Tensor:
    """Attention logits from query-key products: scaled, and soft-capped where the form says so."""
    Z = R * form.scaling
    return Z if form.softcap is None else form.softcap * torch.tanh(Z / form.softcap)


@dataclass(frozen=True)
class OneQueryGradients:
    """The backward pass of one query.

    Attributes:
        dq: [G, r, D]
        dk: of the last key, the query's own. [G, D]
        dv: of the last value. [G, Dv]
    """

    dq: Tensor
    dk: Tensor
    dv: Tensor


def value_gradients(forward: OneQuery, w: Tensor) -> Tensor:
    """U = (dl/do) V^T: how the target changes with each head's weight on each token. w: [G, r, Dv] -> [G, r, N]."""
    return w @ forward.V.transpose(-1, -2)


def mean_effect(A: Tensor, U: Tensor) -> Tensor:
    """sum_j a_hj u_hj, which is (dl/do) . o: what each head's output does to the target. [G, r, N] -> [G, r, 1]"""
    return (A * U).sum(-1, keepdim=True)


def one_query_backward(forward: OneQuery, w: Tensor, U: Tensor, form: AttentionForm) -> OneQueryGradients:
    """Gradients from w = dl/do [G, r, Dv] and U = w V^T [G, r, N]."""
    dZ = forward.A * (U - mean_effect(forward.A, U))
    dR = dZ * form.scaling
    if form.softcap is not None:
        dR = dR * (1 - torch.tanh(forward.R * (form.scaling / form.softcap)) ** 2)
    return OneQueryGradients(
        dq=dR @ forward.K,
        dk=(dR[..., -1:] * forward.q).sum(-2),
        dv=(forward.A[..., -1:] * w).sum(-2),
    )


def many_queries_forward(q: Tensor, K: Tensor, V: Tensor, start: int, form: AttentionForm) -> Tensor:
    """Causal attention of T queries at positions start.., for reading a prompt; no gradient.

    Args:
        q: queries. [H, T, D]
        K: keys of positions 0 .. start + T. [G, N, D]
        V: their values. [G, N, Dv]
        start: the first query's position.
        form: the layer's attention.

    Returns:
        The output. [H, T, Dv]
    """
    (H, T, D), (G, N, _) = q.shape, K.shape
    first = form.first_visible(start)
    K, V = K[:, first:], V[:, first:]
    whole_prompt = start == 0 and (form.window is None or form.window >= T)
    visible = None if whole_prompt else visibility(start, T, first, N, form.window, q.device)
    if form.is_plain:
        return F.scaled_dot_product_attention(
            q[None], K[None], V[None], visible, is_causal=whole_prompt, scale=form.scaling, enable_gqa=H != G
        )[0]
    if visible is None:
        visible = visibility(start, T, first, N, form.window, q.device)
    compute = torch.promote_types(q.dtype, torch.float32)
    R = q.to(compute).reshape(G, H // G, T, D) @ K.to(compute).transpose(-1, -2)[:, None]  # [G, r, T, N]
    Z = capped(R, form).masked_fill(~visible, -torch.inf)
    if form.sinks is None:
        A = Z.softmax(-1)
    else:
        sinks = form.sinks.to(compute).view(G, H // G, 1, 1).expand(-1, -1, T, 1)
        A = torch.cat((Z, sinks), dim=-1).softmax(-1)[..., :-1]
    return (A @ V.to(compute)[:, None]).reshape(H, T, -1).to(q.dtype)


def visibility(start: int, T: int, first: int, N: int, window: int | None, device: torch.device) -> Tensor:
    """Which of the keys first..N each of the queries start..start + T sees. [T, N - first], bool"""
    query = torch.arange(start, start + T, device=device)[:, None]
    key = torch.arange(first, N, device=device)[None, :]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)
