"""Attention of sequences that continue one common prefix, whose keys and values a KV slot holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.attention.cpu_tiled import TiledAttention
from gradellm_engine.attention.ops import AttentionForm, attention_output, grouped, visibility
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.layers.projection_skipping import QKV, LastTokenOnly
from gradellm_engine.passes.base import StopForward
from gradellm_engine.passes.full_sequence import SequenceAttention, ungrouped

_Args = tuple[Any, ...]
_Kwargs = dict[str, Any]


@dataclass
class SharedPrefixAttention(SequenceAttention):
    """Attention of a batch of sequences, each of which continues the same prefix by itself.

    Attributes:
        slot: the prefix's keys and values.
        length: tokens of the prefix that the sequences continue.
        first_layer_qkv: the first layer's queries, keys and values, where they are computed already; used once.
    """

    slot: KVSlot
    length: int
    first_layer_qkv: QKV | None = None
    _capture: _QKVCapture | None = None
    _last_rows: _LastRows | None = None
    _visible: dict[tuple[int, int | None, torch.device], Tensor | None] = field(default_factory=dict)
    _tiled: TiledAttention = field(default_factory=TiledAttention)

    def output(self, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """See `SequenceAttention`."""
        if self._capture is not None:
            self._capture.qkv = query, key, value
            raise StopForward
        if index == 0 and self.first_layer_qkv is not None:
            (query, key, value), self.first_layer_qkv = self.first_layer_qkv, None
        last = self._last_rows
        own = (key, value) if last is None or last.keys_and_values is None else last.keys_and_values
        first = form.first_visible(self.length)
        prefix = self.slot.keys(index, first, self.length), self.slot.values(index, first, self.length)
        K, V = (
            torch.cat((before.expand(len(query), -1, -1, -1), new), dim=2) if self.length else new
            for before, new in zip(prefix, own, strict=True)
        )
        visible = self._visibility(query.shape[2], first, form.window, K)
        if last is None and visible is not None and TiledAttention.is_faster(query, V, form):
            return self._tiled.output(query, K, V, visible, form)
        o, _ = attention_output(grouped(query, K.shape[1]), K, V, visible, form)
        return ungrouped(o)

    def capture_qkv(self, layer: nn.Module, args: _Args, kwargs: Mapping[str, Any]) -> QKV | None:
        """Run a layer as far as its attention: the queries, keys and values that it calls attention with.

        Nothing after the attention is computed. None where the layer calls no attention.
        """
        self._capture = capture = _QKVCapture()
        try:
            with suppress(StopForward):
                layer.forward(*args, **kwargs)
        finally:
            self._capture = None
        return capture.qkv

    def last_row_hook(
        self, last_rows: Tensor, queries: LastTokenOnly | None = None
    ) -> Callable[[nn.Module, _Args, _Kwargs], tuple[_Args, _Kwargs]]:
        """A forward pre-hook for the last layer, which then computes one row of each sequence: the row that is read.

        Keys and values are needed of all rows. The layer runs as far as its attention with all rows, to capture them,
        and then once with the chosen rows alone.

        Args:
            last_rows: the row of each sequence. [B]
            queries: skips the layer's query projections in the first run; None to compute them.
        """

        def before(layer: nn.Module, args: _Args, kwargs: _Kwargs) -> tuple[_Args, _Kwargs]:
            capture = partial(self.capture_qkv, layer)
            if queries is None:
                qkv = capture(args, kwargs)
                keys_and_values = None if qkv is None else qkv[1:]
            else:
                keys_and_values = queries.keys_and_values(capture, args, kwargs)
            self._last_rows = _LastRows(last_rows, keys_and_values)
            select = _RowSelection(last_rows, args[0].shape[1])
            return tuple(map(select.of, args)), {name: select.of(value) for name, value in kwargs.items()}

        return before

    def _visibility(self, T: int, first: int, window: int | None, K: Tensor) -> Tensor | None:
        if self._last_rows is not None:
            return self._visible_to_last_rows(self._last_rows.rows.to(K.device), first, window, K)
        key = (T, window, K.device)
        if key not in self._visible:
            self._visible[key] = visibility(self.length, T, first, K.shape[2], window, K.device)
        return self._visible[key]

    def _visible_to_last_rows(self, last_rows: Tensor, first: int, window: int | None, K: Tensor) -> Tensor:
        """[B, 1, N], bool"""
        query = self.length + last_rows[:, None, None]
        key = torch.arange(first, first + K.shape[2], device=K.device)
        visible = key <= query
        return visible if window is None else visible & (key > query - window)


@dataclass
class _QKVCapture:
    """What `SharedPrefixAttention.capture_qkv` waits for."""

    qkv: QKV | None = None


@dataclass(frozen=True)
class _LastRows:
    """What the last layer computes with.

    Attributes:
        rows: the one row of each sequence. [B]
        keys_and_values: of all rows; None where the layer called no attention.
    """

    rows: Tensor
    keys_and_values: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class _RowSelection:
    """One row of each of B sequences.

    Attributes:
        rows: its index in each. [B]
        num_rows: how many each sequence has, T.
    """

    rows: Tensor
    num_rows: int

    def of(self, value: Any) -> Any:  # noqa: ANN401 (any argument of a layer)
        """The rows of tensors that have one per token, in tuples, too. [B, T, ..] or [1, T, ..] -> [B, 1, ..]"""
        if isinstance(value, tuple):
            return tuple(map(self.of, value))
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[1] != self.num_rows:
            return value
        B, rows = len(self.rows), self.rows.to(value.device)
        return value.expand(B, *value.shape[1:])[torch.arange(B, device=value.device), rows][:, None]
