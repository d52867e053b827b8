"""Attention of sequences that go on from one common prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.attention.cpu_tiled import TiledAttention
from gradellm_engine.attention.ops import AttentionForm, attention_output, grouped, visibility
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.layers.projection_skipping import Asked, LastTokenOnly
from gradellm_engine.passes.full_sequence import SequenceAttention, ungrouped

_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]


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
        if self._lasts is None and visible is not None and TiledAttention.is_faster(query, V, form):
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

    def last_row_hook(
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
