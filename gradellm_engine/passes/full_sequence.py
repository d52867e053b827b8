"""A pass over many sequences at once that leaves nothing behind: how their attention is computed.

Methods that look at a completion after the fact differentiate such a pass by anything, or change something in it;
metrics change the text and look at what comes after it. All sequences of a pass are of one length; causal attention
keeps what stands behind from what stands before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.attention.ops import (
    AttentionForm,
    AttentionState,
    attend,
    attention_output,
    by_group,
    grouped,
    visibility,
)
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.layers.projection_skipping import Asked, LastTokenOnly

Watch = Callable[[int, AttentionState], None]
_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]


class SequenceAttention(ABC):
    """What attention layers ask for their outputs."""

    @abstractmethod
    def output(self, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """A layer's. [B, H, T, D], [B, G, T, D], [B, G, T, Dv] -> [B, T, H, Dv]"""


@dataclass
class FullSequenceAttention(SequenceAttention):
    """The model's own attention, by a stock kernel where nobody looks at its weights or differentiates.

    Attributes:
        weights_are_constant: whether gradients take attention weights for constants.
        watch: is shown every layer's attention, by index.
    """

    weights_are_constant: bool = False
    watch: Watch | None = None
    _visible: dict[tuple[int, int | None, torch.device], Tensor | None] = field(default_factory=dict)

    def output(self, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """See `SequenceAttention`."""
        q, visible = grouped(query, key.shape[1]), self._visibility(query, form.window)
        if torch.is_grad_enabled() or self.watch is not None:
            compute = torch.promote_types(q.dtype, torch.float32)
            attended = attend(q.to(compute), key.to(compute), value.to(compute), visible, form)
            if self.watch is not None:
                self.watch(index, attended)
            o = by_group(attended.A.detach(), attended.V) if self.weights_are_constant else attended.output()
            o = o.to(query.dtype)
        else:
            o, _ = attention_output(q, key, value, visible, form)
        return ungrouped(o)

    def _visibility(self, query: Tensor, window: int | None) -> Tensor | None:
        T, device = query.shape[2], query.device
        if (T, window, device) not in self._visible:
            self._visible[T, window, device] = visibility(0, T, 0, T, window, device)
        return self._visible[T, window, device]


# Measured on a CPU with 1 MB of second-level cache a core.
PIECE = 2**18  # attention weights that are computed at once, so that they stay there until they are multiplied
STRETCH = 40  # queries of a piece, about: fewer see fewer keys that are hidden from them, more are fewer calls
WIDEST = 32  # heads for which all that is faster than a stock kernel
NARROW = 16  # values narrower than that are multiplied faster as columns


@dataclass
class TiledAttention:
    """Plain attention of many short sequences, a stretch of queries and some sequences' heads at a time.

    A stock kernel takes them one by one, and half of its time is not arithmetic where heads are narrow.
    """

    _memory: Tensor | None = None  # of products and weights; memory that is new each time is slow

    def output(self, query: Tensor, K: Tensor, V: Tensor, visible: Tensor, form: AttentionForm) -> Tensor:
        """The output. [B, T, H, Dv]

        Args:
            query: queries of the last T positions. [B, H, T, D]
            K: keys. [B, G, N, D]
            V: values. [B, G, N, Dv]
            visible: which keys each query sees. [T, N], bool
            form: the layer's attention.
        """
        B, H, T, D = query.shape
        G, N, Dv = K.shape[1], K.shape[2], V.shape[3]
        r, count = H // G, -(-T // STRETCH)
        K, V = K.contiguous(), V.contiguous()
        hidden = torch.zeros(visible.shape, dtype=query.dtype).masked_fill_(~visible, -torch.inf)
        output = query.new_empty(B, T, G, r, Dv)
        for begin, end in pairwise(T * i // count for i in range(count + 1)):
            seen, rows = N - T + end, r * (end - begin)
            q = query[:, :, begin:end].reshape(B * G, rows, D)
            k, v = K[:, :, :seen].flatten(0, 1), V[:, :, :seen].flatten(0, 1)  # [B G, seen, .]
            bias = hidden[begin:end, :seen].repeat(r, 1)
            o = query.new_empty(B * G, Dv, rows).mT if Dv < NARROW else query.new_empty(B * G, rows, Dv)
            size = max(1, PIECE // (rows * seen))
            for its in (slice(start, start + size) for start in range(0, B * G, size)):
                Z, A = self._room(len(q[its]), rows, seen, like=q)
                torch.softmax(torch.baddbmm(bias, q[its], k[its].mT, alpha=form.scaling, out=Z), -1, out=A)
                if Dv < NARROW:
                    torch.bmm(v[its].mT, A.mT, out=o[its].mT)
                else:
                    torch.bmm(A, v[its], out=o[its])
            output[:, begin:end] = o.reshape(B, G, r, end - begin, Dv).permute(0, 3, 1, 2, 4)
        return output.flatten(2, 3)

    @staticmethod
    def are_fast(query: Tensor, V: Tensor, form: AttentionForm) -> bool:
        """Whether they are faster than a stock kernel."""
        is_float = query.device.type == "cpu" and query.dtype == V.dtype == torch.float32
        return is_float and form.is_plain and max(query.shape[-1], V.shape[-1]) <= WIDEST

    def _room(self, *shape: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """For products, and for weights."""
        numel = math.prod(shape)
        if self._memory is None or self._memory.shape[1] < numel:
            self._memory = like.new_empty(2, max(numel, PIECE))
        products, weights = self._memory[:, :numel]
        return products.view(shape), weights.view(shape)


@dataclass
class SharedPrefixAttention(SequenceAttention):
    """Sequences that go on, each by itself, from the same beginning, which a slot holds.

    Attributes:
        slot: the beginning's keys and values.
        length: how many of its tokens they go on from.
        first: the first layer's queries, keys and values, where they are known already.
    """

    slot: KVSlot
    length: int
    first: tuple[Tensor, ...] | None = None
    _asks: bool = False  # only what attention is asked with is wanted
    _asked: tuple[Tensor, Tensor, Tensor] | None = None
    _visible: dict[tuple[int, int | None, torch.device], Tensor | None] = field(default_factory=dict)
    _lasts: Tensor | None = None  # whose rows alone the last layer goes on with
    _made: tuple[Tensor, Tensor] | None = None  # its keys and values, of all rows
    _pieces: TiledAttention = field(default_factory=TiledAttention)

    def output(self, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """See `SequenceAttention`."""
        if self._asks:
            self._asked = query, key, value
            raise _Made
        if index == 0 and self.first is not None:
            (query, key, value), self.first = self.first, None
        own = (key, value) if self._made is None else self._made
        first = form.first_visible(self.length)
        kept = self.slot.keys(index, first, self.length), self.slot.values(index, first, self.length)
        K, V = (
            torch.cat((before.expand(len(query), -1, -1, -1), its), dim=2) if self.length else its
            for before, its in zip(kept, own, strict=True)
        )
        visible = self._visibility(query.shape[2], first, form.window, K)
        if self._lasts is None and visible is not None and TiledAttention.are_fast(query, V, form):
            return self._pieces.output(query, K, V, visible, form)
        o, _ = attention_output(grouped(query, K.shape[1]), K, V, visible, form)
        return ungrouped(o)

    def asked(self, run: Callable[[], object]) -> tuple[Tensor, Tensor, Tensor] | None:
        """With what queries, keys and values a layer asks for attention, as `run` has it; None where it does not."""
        self._asks, self._asked = True, None
        try:
            with suppress(_Made):
                run()
        finally:
            self._asks = False
        return self._asked

    def only_lasts(
        self, lasts: Tensor, queries: LastTokenOnly | None = None
    ) -> Callable[[nn.Module, _Args, _Kwargs], tuple[_Args, _Kwargs]]:
        """A hook before the last layer, which then computes only what becomes of one row of each sequence. [B]

        All else that it would compute nobody looks at. Keys and values it needs of all rows: so it runs as far as its
        attention with all of them, and then with the last ones alone; `queries` are those of the layer, if they can be
        left out the first time.
        """

        def before(block: nn.Module, args: _Args, kwargs: _Kwargs) -> tuple[_Args, _Kwargs]:
            def ask(args: _Args, kwargs: Mapping[str, Any]) -> Asked | None:
                return self.asked(lambda: block.forward(*args, **kwargs))

            if queries is None:
                asked = ask(args, kwargs)
                self._made = None if asked is None else asked[1:]
            else:
                self._made = queries.keys_and_values(ask, args, kwargs)
            self._lasts = lasts
            rows = _Rows(lasts, args[0].shape[1])
            return tuple(map(rows.of, args)), {name: rows.of(its) for name, its in kwargs.items()}

        return before

    def _visibility(self, T: int, first: int, window: int | None, K: Tensor) -> Tensor | None:
        if self._lasts is not None:
            return self._visible_to_lasts(self._lasts.to(K.device), first, window, K)
        at = (T, window, K.device)
        if at not in self._visible:
            self._visible[at] = visibility(self.length, T, first, K.shape[2], window, K.device)
        return self._visible[at]

    def _visible_to_lasts(self, lasts: Tensor, first: int, window: int | None, K: Tensor) -> Tensor:
        """[B, 1, N], bool"""
        query = self.length + lasts[:, None, None]
        key = torch.arange(first, first + K.shape[2], device=K.device)
        visible = key <= query
        return visible if window is None else visible & (key > query - window)


class _Made(Exception):  # noqa: N818 (no error)
    """A layer's keys and values are there; the rest of its pass is not computed."""


@dataclass(frozen=True)
class _Rows:
    """One row of each of B sequences.

    Attributes:
        chosen: which. [B]
        num_rows: how many each sequence has, T.
    """

    chosen: Tensor
    num_rows: int

    def of(self, its: Any) -> Any:  # noqa: ANN401 (whatever a layer is given)
        """Its part, of what has a row a token. [B, T, ..] or [1, T, ..] -> [B, 1, ..]"""
        if isinstance(its, tuple):
            return tuple(map(self.of, its))
        if not isinstance(its, Tensor) or its.dim() < 2 or its.shape[1] != self.num_rows:
            return its
        B, chosen = len(self.chosen), self.chosen.to(its.device)
        return its.expand(B, *its.shape[1:])[torch.arange(B, device=its.device), chosen][:, None]


def ungrouped(o: Tensor) -> Tensor:
    """As the model goes on with them. [B, G, r, T, Dv] -> [B, T, H, Dv]"""
    return o.flatten(1, 2).transpose(1, 2).contiguous()
