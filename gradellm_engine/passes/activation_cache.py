"""Cached outputs of linear layers, for tokens that are replayed once to be explained.

With chunked delivery a token goes through the model twice: in its decode step, and again in a chunk, to be explained.
The replay would read all weights forward and backward. With the linear layers' outputs cached in the decode step, its
forward pass reads none: a chunk of C tokens reads the weights 1 + 1/C times a token instead of 1 + 2/C, and the numbers
are the same.

The cache is limited to a share of the model's own size. A chunk that does not fit is computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.layers.linear import FrozenLinear, current_output_cache
from gradellm_engine.passes.base import SequenceChunk

SHARE_OF_WEIGHTS = 4  # the cache takes at most a fourth of the model's memory


@dataclass
class _Recording:
    """Outputs of one pass, as layers compute them.

    Attributes:
        layers: the layers whose outputs are cached.
        chunks: the chunks whose tokens are replayed later.
        rows: their rows among the pass's tokens; None for all.
        num_tokens: tokens of the pass.
        outputs: each layer's output with its version then; None for a layer that was called twice or on other rows.
        all_outputs: all layers' outputs for `rows`, where they were put at once.
    """

    layers: frozenset[nn.Module]
    chunks: Sequence[SequenceChunk]
    rows: list[int] | None
    num_tokens: int
    outputs: dict[nn.Module, tuple[Tensor, int] | None] = field(default_factory=dict)
    all_outputs: Mapping[nn.Module, Tensor] | None = None

    def get(self, layer: nn.Module) -> Tensor | None:
        return None

    def put(self, layer: nn.Module, output: Tensor) -> None:
        if layer not in self.layers:
            return
        if layer in self.outputs or output.shape[:-1] != (1, self.num_tokens):
            self.outputs[layer] = None
            return
        own = self._own_rows(output.detach())
        self.outputs[layer] = own, own._version

    def put_all(self, outputs: Mapping[nn.Module, Tensor]) -> None:
        if self.rows is not None:
            outputs = {layer: self._own_rows(output) for layer, output in outputs.items()}
        self.all_outputs = outputs

    def final(self) -> Mapping[nn.Module, Tensor]:
        """After the pass: the outputs that were not written to since. [1, rows, out] each"""
        if self.all_outputs is not None:
            return self.all_outputs
        recorded = {layer: entry for layer, entry in self.outputs.items() if entry is not None}
        return {layer: output for layer, (output, version) in recorded.items() if output._version == version}

    def _own_rows(self, output: Tensor) -> Tensor:
        """The rows of tokens that are replayed later: of a prefill only a few. [1, T, out] -> [1, rows, out]"""
        return output if self.rows is None else output[:, self.rows]


@dataclass(frozen=True)
class _Row:
    """One token's rows in the outputs of a recorded pass.

    Attributes:
        outputs: the layers' outputs for all recorded tokens of the pass. [1, rows, out] each
        index: the token's row; None for the only one.
    """

    outputs: Mapping[nn.Module, Tensor]
    index: int | None

    def output(self, layer: nn.Module) -> Tensor | None:
        """A layer's output for the token; None where it is not cached. [1, 1, out]"""
        output = self.outputs.get(layer)
        return output if output is None or self.index is None else output[:, self.index : self.index + 1]


@dataclass
class _ReplayBuffer:
    """Cached tokens of a sequence that are replayed together.

    Attributes:
        capacity: tokens that it may hold; 0 where the cache had no room for all of them.
        rows: the cached tokens, by position.
    """

    capacity: int
    rows: dict[int, _Row] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cached:
    """Cached outputs of all tokens of a pass, in its order."""

    rows: Sequence[_Row]

    def get(self, layer: nn.Module) -> Tensor | None:
        # Runs dozens of layers times dozens of rows a chunk, hence without a call for the usual row.
        rows = [row.outputs.get(layer) if row.index is None else row.output(layer) for row in self.rows]
        return None if any(row is None for row in rows) else torch.cat(rows, dim=1)  # type: ignore[arg-type]

    def put(self, layer: nn.Module, output: Tensor) -> None:
        pass

    def put_all(self, outputs: Mapping[nn.Module, Tensor]) -> None:
        pass


class ActivationCache:
    """Cached linear outputs of all sequences.

    Attributes:
        bytes_per_token: of all layers' outputs.
        max_tokens: tokens that it may hold at a time.
    """

    def __init__(self, body: nn.Module) -> None:
        """Size the cache for `body`, the model without its head: replays need few of the head's logits."""
        self._layers = frozenset(module for module in body.modules() if type(module) is FrozenLinear)
        self.bytes_per_token = sum(layer.out_features * layer.weight.itemsize for layer in self._layers)
        nbytes = sum(parameter.nbytes for parameter in body.parameters())
        self.max_tokens = nbytes // SHARE_OF_WEIGHTS // self.bytes_per_token if self._layers else 0
        self._buffers: WeakKeyDictionary[KVSlot, _ReplayBuffer] = WeakKeyDictionary()

    @property
    def num_tokens(self) -> int:
        """Tokens for which room is reserved."""
        return sum(buffer.capacity for buffer in self._buffers.values())

    @property
    def num_sequences(self) -> int:
        """Sequences that have a buffer, of any capacity."""
        return len(self._buffers)

    @contextmanager
    def during(self, chunks: Sequence[SequenceChunk]) -> Iterator[None]:
        """Around a pass: record outputs of tokens that are replayed later, or use the cached outputs of a replay."""
        recording, cached = self._recording_of(chunks), self._take(chunks)
        token = current_output_cache.set(recording or cached)
        try:
            yield
        finally:
            current_output_cache.reset(token)
        if recording is not None:
            outputs = recording.final()
            for row, chunk in enumerate(recording.chunks):
                index = row if len(recording.chunks) > 1 else None
                self._buffers[chunk.slot].rows[chunk.end - 1] = _Row(outputs, index)

    def is_cached(self, chunks: Sequence[SequenceChunk]) -> bool:
        """Whether the outputs of every layer are cached for all tokens of a pass."""
        cached = self._lookup(chunks)
        return cached is not None and all(len(row.outputs) == len(self._layers) for row in cached.rows)

    def _recording_of(self, chunks: Sequence[SequenceChunk]) -> _Recording | None:
        is_wanted = [chunk.replay_length > 0 and self._has_room(chunk) for chunk in chunks]
        if not any(is_wanted):
            return None
        ends = list(accumulate(len(chunk.ids) for chunk in chunks))
        rows = [end - 1 for end, wanted in zip(ends, is_wanted, strict=True) if wanted]
        recorded = [chunk for chunk, wanted in zip(chunks, is_wanted, strict=True) if wanted]
        return _Recording(self._layers, recorded, None if len(rows) == ends[-1] else rows, ends[-1])

    def _has_room(self, chunk: SequenceChunk) -> bool:
        """Whether the tokens that are replayed with this one are cached; decided at the first of them."""
        buffer = self._buffers.get(chunk.slot)
        if buffer is None:
            fits = self.num_tokens + chunk.replay_length <= self.max_tokens
            self._buffers[chunk.slot] = buffer = _ReplayBuffer(chunk.replay_length if fits else 0)
        elif len(buffer.rows) == buffer.capacity:  # more tokens came than were announced
            self._buffers[chunk.slot] = buffer = _ReplayBuffer(0)
        return buffer.capacity > 0

    def _take(self, chunks: Sequence[SequenceChunk]) -> _Cached | None:
        """The cached outputs of a replay, whose buffers are freed."""
        cached = self._lookup(chunks)
        for chunk in chunks:
            if not chunk.is_new:
                self._buffers.pop(chunk.slot, None)
        return cached

    def _lookup(self, chunks: Sequence[SequenceChunk]) -> _Cached | None:
        """The cached outputs of all tokens of a pass; None where some token has none."""
        rows: list[_Row | None] = []
        for chunk in chunks:
            buffer = None if chunk.is_new else self._buffers.get(chunk.slot)
            rows += [buffer.rows.get(position) for position in range(chunk.start, chunk.end)] if buffer else [None]
        cached = [row for row in rows if row is not None]
        return _Cached(cached) if len(cached) == len(rows) else None
