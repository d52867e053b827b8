"""Attention's arithmetic, forward and backward, by hand: tensors in, tensors out.

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

A decode step has one query, the replay of a chunk of tokens has several. Each is to be explained as if it were the last
of its prefix: keys and values of the positions before it are constants of its gradient, its own are not. So key and
value gradients live on the diagonal, where key t meets query t, and nowhere else; with that, the sum of all queries'
targets can be differentiated at once, and each gets the gradient that it would get alone.

Grad-ELLM's heat map is made of S, A and U, which are at hand: it costs no pass of its own. Query heads that share a
key-value head are grouped as [G, r, T, .], so that keys and values are never repeated. Sequences of one length may
stand behind one another in dimensions before these, in all arguments alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gradellm_engine.utils.torch_compat import softmax_backward


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


def attention_output(
    q: Tensor, K: Tensor, V: Tensor, visible: Tensor | None, form: AttentionForm, *, keep_products: bool = False
) -> tuple[Tensor, AttentionState | None]:
    """Attention's output, by a stock kernel where there is a faster one.

    Args:
        q: queries. [G, r, T, D]
        K: keys. [G, N, D]
        V: values. [G, N, Dv]
        visible: which keys each query sees, None for all; of all sequences alike, or of each. [T, N], bool
        form: the layer's attention.
        keep_products: for a backward pass that goes on from the products.

    Returns:
        The output [G, r, T, Dv], and all that was computed on the way, where no stock kernel hid it.
    """
    *batch, G, r, T, D = q.shape
    compute = torch.promote_types(q.dtype, torch.float32)
    if keep_products or not form.is_plain or (T == 1 and compute == q.dtype):
        attended = attend(q.to(compute), K.to(compute), V.to(compute), visible, form)
        return attended.output().to(q.dtype), attended
    if T == 1:  # the r query heads of a group see the same keys, as r queries of one head would
        K, V = K.view(-1, G, *K.shape[-2:]), V.view(-1, G, *V.shape[-2:])
        seen = None if visible is None else visible.view(-1, 1, 1, K.shape[2])
        o = F.scaled_dot_product_attention(q.reshape(-1, G, r, D), K, V, seen, scale=form.scaling)
    else:
        # A prompt's first chunk is a square, for which kernels have a causal form that skips half of it.
        is_square = K.shape[-2] == T and (form.window is None or form.window >= T)
        is_causal = is_square and (visible is None or visible.dim() == 2)  # nothing else is hidden of any sequence
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
    """Which of the N keys from position `first` on each of the T queries from `start` on sees. [T, N], bool.

    None for one query that sees them all.
    """
    if T == 1 and first + N == start + 1 and (window is None or window >= N):
        return None
    query = torch.arange(start, start + T, device=device)[:, None]
    key = torch.arange(first, first + N, device=device)[None, :]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)


@dataclass(frozen=True)
class AttentionState:
    """Attention of a sequence's queries, as its backward pass and the heat map need it.

    Attributes:
        q: the queries. [G, r, T, D]
        K: the keys. [G, N, D]
        V: the values. [G, N, Dv]
        S: query-key products, scaled; of a key that the query does not see, it may be -inf. [G, r, T, N]
        A: attention weights. [G, r, T, N]
        form: the layer's attention.
    """

    q: Tensor
    K: Tensor
    V: Tensor
    S: Tensor
    A: Tensor
    form: AttentionForm

    def output(self) -> Tensor:
        """The output, A V. [G, r, T, Dv]"""
        return grouped_matmul(self.A, self.V)


def grouped(heads: Tensor, num_groups: int) -> Tensor:
    """Query heads by the key-value head that they share. [H, T, D] -> [G, r, T, D]"""
    *batch, _, T, D = heads.shape
    return heads.reshape(*batch, num_groups, -1, T, D)


def grouped_matmul(x: Tensor, M: Tensor) -> Tensor:
    """Each group's rows times the group's own matrix. [G, r, T, A], [G, A, B] -> [G, r, T, B]"""
    *groups, r, T, width = x.shape
    rows = x.reshape(*groups, r * T, width)
    product = torch.bmm(rows, M) if len(groups) == 1 else rows @ M  # the same; bmm looks at less before
    return product.view(*groups, r, T, -1)


def attend(q: Tensor, K: Tensor, V: Tensor, visible: Tensor | None, form: AttentionForm) -> AttentionState:
    """The forward pass as far as its weights, every product kept. Arguments as for `attention_output`."""
    Z = S = grouped_matmul(q * form.scaling, K.mT)
    if form.softcap is not None:
        Z = form.softcap * torch.tanh(S / form.softcap)
    if visible is not None and Z.requires_grad:
        # Gradients pass a sum as they are; those of hidden products are zero already, for their weights are.
        Z = Z + torch.zeros_like(visible, dtype=Z.dtype).masked_fill_(~visible, -torch.inf)[..., None, None, :, :]
    elif visible is not None:
        # Of one sequence without a window, all queries see all keys but those of the queries themselves.
        before = K.shape[-2] - q.shape[-2] if visible.dim() == 2 and form.window is None else 0
        Z[..., before:].masked_fill_(~visible[..., None, None, :, before:], -torch.inf)
    if form.sinks is None:
        A = Z.softmax(-1)
    else:
        sinks = form.sinks.to(Z.dtype).view(*q.shape[-4:-2], 1, 1).expand(*q.shape[:-1], 1)
        A = torch.cat((Z, sinks), dim=-1).softmax(-1)[..., :-1]
    return AttentionState(q, K, V, S, A, form)


@dataclass(frozen=True)
class Gradients:
    """The backward pass.

    Attributes:
        dq: [G, r, T, D]
        dk: of each query's own key. [G, T, D]
        dv: of each query's own value. [G, T, Dv]
    """

    dq: Tensor
    dk: Tensor
    dv: Tensor


def value_gradients(forward: AttentionState, w: Tensor) -> Tensor:
    """U = (dl/do) V^T: how the target changes with each head's weight on each token.

    w: [G, r, T, Dv] -> [G, r, T, N]
    """
    return grouped_matmul(w, forward.V.mT)


def mean_effect(forward: AttentionState, U: Tensor) -> Tensor:
    """(dl/do) . o = sum_j a_hj u_hj: what each head's output does to the target. [G, r, T, N] -> [G, r, T, 1]"""
    return (forward.A * U).sum(-1, keepdim=True)


def attention_backward(forward: AttentionState, w: Tensor, U: Tensor, own: int) -> Gradients:
    """Gradients from w = dl/do [G, r, T, Dv] and U = w V^T [G, r, T, N]; `own` is the first query's key in K."""
    # With a sink, too: what it takes has no value, so that its gradient counts for nothing in the sum.
    dS, c = softmax_backward(U, forward.A, -1, U.dtype), forward.form.scaling
    if forward.form.softcap is not None:
        dS = dS * (1 - torch.tanh(forward.S / forward.form.softcap) ** 2)
    return Gradients(
        dq=grouped_matmul(dS, forward.K).mul_(c),
        dk=(_on_diagonal(dS, own) * forward.q).sum(-3).mul_(c),
        dv=(_on_diagonal(forward.A, own) * w).sum(-3),
    )


def _on_diagonal(x: Tensor, own: int) -> Tensor:
    """Of each query its own key's. [G, r, T, N] -> [G, r, T, 1]"""
    if x.shape[-2] == 1:
        return x[..., own : own + 1]
    return x.diagonal(own, -2, -1)[..., None]
