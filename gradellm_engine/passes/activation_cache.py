"""Cached outputs of linear layers, for tokens that are replayed once to be explained.

With chunked delivery a token goes through the model twice: in its decode step, and again in a chunk, to be explained.
The replay would read all weights forward and backward. With the linear layers' outputs cached in the decode step, its
forward pass reads none: a chunk of C tokens reads the weights 1 + 1/C times a token instead of 1 + 2/C, and the numbers
are the same.

The cache is a pool: for each layer a tensor with a row for each token, and each cached token has a row in all of them.
Rows are reserved for a whole chunk at its first token. The pool is limited to a share of the model's own size; a chunk
that does not fit is computed again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradellm_engine.cpu_kernels.dispatch import kernels_for
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.layers.linear import FrozenLinear, current_output_cache
from gradellm_engine.passes.base import SequenceChunk

# The cache takes at most this part of the model's memory. On a CPU memory is taken as it is used.
SHARE_OF_WEIGHTS = {"cpu": 1 / 2, "cuda": 1 / 4}


@dataclass
class _ReplayBuffer:
    """Rows of a sequence's tokens that are replayed together.

    Attributes:
        reserved: the rows that it may fill; none where the pool had no room for all of them.
        rows: those of cached tokens, by position.
    """

    reserved: Sequence[int]
    rows: dict[int, int] = field(default_factory=dict)


class _Stores:
    """Puts outputs of one pass into the pool.

    Attributes:
        pools: the layers' tensors.
        rows: of the pool. [n]
        own_rows: which of the pass's tokens they are; None for all.
        num_tokens: of the pass.
        calls: how often each layer gave an output, of the right shape.
    """

    def __init__(self, pools: _Pools, rows: Tensor, own_rows: Sequence[int] | None, num_tokens: int) -> None:
        self.pools, self.rows, self.num_tokens = pools, rows, num_tokens
        self.own_rows = None if own_rows is None else torch.tensor(own_rows, device=rows.device)
        self.calls: dict[nn.Module, int] = {}

    def get(self, layer: nn.Module) -> Tensor | None:
        return None

    def put(self, layer: nn.Module, output: Tensor) -> None:
        if layer not in self.pools.layers:
            return
        if output.shape[:-1] != (1, self.num_tokens):
            self.calls[layer] = 2  # of other rows, as experts have
            return
        self.calls[layer] = self.calls.get(layer, 0) + 1
        output = output.detach()[0]
        self.pools.store(layer, self.rows, output if self.own_rows is None else output[self.own_rows])

    def put_all(self, outputs: Mapping[nn.Module, Tensor]) -> None:
        for layer, output in outputs.items():
            self.put(layer, output)

    def keep_last(self, num_tokens: int) -> None:
        left_out, self.num_tokens = self.num_tokens - num_tokens, num_tokens
        if self.own_rows is not None:
            self.own_rows = self.own_rows - left_out


class _Loads:
    """Gives cached outputs of all tokens of a pass, in its order."""

    def __init__(self, pools: _Pools, rows: Tensor) -> None:
        self._pools, self._rows = pools, rows

    def get(self, layer: nn.Module) -> Tensor | None:
        return self._pools.load(layer, self._rows)

    def put(self, layer: nn.Module, output: Tensor) -> None:
        pass

    def put_all(self, outputs: Mapping[nn.Module, Tensor]) -> None:
        pass

    def keep_last(self, num_tokens: int) -> None:
        raise RuntimeError("a replay reads all of its tokens")


class _Pools:
    """A tensor for each layer, with a row for each token.

    Attributes:
        layers: whose outputs are cached; one that a pass calls twice, or for other rows than its tokens, is left out.
    """

    def __init__(self, layers: Collection[FrozenLinear], num_rows: int) -> None:
        self.layers: frozenset[nn.Module] = frozenset(layers)
        self._specs = {layer: (layer.out_features, layer.output_dtype, layer.weight.device) for layer in layers}
        self._num_rows = num_rows
        self._tensors: dict[nn.Module, Tensor] = {}

    def allocate(self) -> None:
        """Allocate the tensors, if they are not there yet; on a CPU, memory is taken as rows are written."""
        if self._tensors:
            return
        for layer, (width, dtype, device) in self._specs.items():
            self._tensors[layer] = torch.empty((self._num_rows, width), dtype=dtype, device=device)

    def store(self, layer: nn.Module, rows: Tensor, outputs: Tensor) -> None:
        """Write outputs [n, out] to rows [n]."""
        pool, kernels = self._tensors[layer], kernels_for(outputs)
        if kernels is not None and outputs.stride(-1) == 1:
            kernels.store_rows(outputs, pool, rows)
        else:
            pool.index_copy_(0, rows.to(pool.device), outputs)

    def load(self, layer: nn.Module, rows: Tensor) -> Tensor | None:
        """The outputs of rows [n]; None of a layer that is left out. [1, n, out]"""
        pool = self._tensors.get(layer) if layer in self.layers else None
        if pool is None:
            return None
        kernels = kernels_for(pool)
        if kernels is None:
            return pool[None].index_select(1, rows.to(pool.device))
        loaded: Tensor = kernels.load_rows(pool, rows)
        return loaded


class ActivationCache:
    """Cached linear outputs of all sequences.

    Attributes:
        bytes_per_token: of all layers' outputs.
        max_tokens: tokens that it may hold at a time.
    """

    def __init__(self, body: nn.Module, max_tokens: int | None = None) -> None:
        """A cache for `body`, the model without its head, as replays need few of the head's logits.

        By default it holds as many tokens as a share of the model's memory does.
        """
        layers = [module for module in body.modules() if type(module) is FrozenLinear]
        self.bytes_per_token = sum(layer.out_features * layer.output_dtype.itemsize for layer in layers)
        if max_tokens is None:
            share = sum(SHARE_OF_WEIGHTS.get(p.device.type, 0) * p.nbytes for p in body.parameters())
            max_tokens = int(share) // max(1, self.bytes_per_token)
        self.max_tokens = max_tokens if layers else 0
        self._num_layers = len(layers)
        self._spare_row = self.max_tokens  # of tokens that are not replayed
        self._pools = _Pools(layers, self.max_tokens + 1)
        self._buffers: WeakKeyDictionary[KVSlot, _ReplayBuffer] = WeakKeyDictionary()

    @property
    def num_tokens(self) -> int:
        """Tokens for which room is reserved."""
        return sum(len(buffer.reserved) for buffer in self._buffers.values())

    @property
    def num_sequences(self) -> int:
        """Sequences that have a buffer, of any capacity."""
        return len(self._buffers)

    @contextmanager
    def during(self, chunks: Sequence[SequenceChunk]) -> Iterator[None]:
        """Around a pass: cache outputs of tokens that are replayed later, or use the cached outputs of a replay."""
        ends = list(accumulate(len(chunk.ids) for chunk in chunks))
        rows = self.rows_to_fill(chunks)
        stores: _Stores | None = None
        if rows is not None:
            own = [(row, end - 1) for row, end in zip(rows, ends, strict=True) if row != self._spare_row]
            own_rows = None if len(own) == ends[-1] else [index for _, index in own]
            stores = _Stores(self._pools, torch.tensor([row for row, _ in own]), own_rows, ends[-1])
        cached = None if rows is not None else self.cached_rows(chunks)
        loads = None if cached is None else _Loads(self._pools, torch.tensor(cached))
        with _set_cache(stores or loads):
            yield
        if stores is not None:
            called_once = frozenset(layer for layer, count in stores.calls.items() if count == 1)
            self._pools.layers = self._pools.layers & called_once
        self.end_pass(chunks, rows)

    @contextmanager
    def storing(self, rows: Tensor) -> Iterator[None]:
        """Around a pass of one token a row that a graph records: store its outputs in what `rows` will be."""
        with _set_cache(_Stores(self._pools, rows, None, len(rows))):
            yield

    @contextmanager
    def loading(self, rows: Tensor) -> Iterator[None]:
        """Around a pass that a graph records: use the outputs in what `rows` will be."""
        with _set_cache(_Loads(self._pools, rows)):
            yield

    def is_cached(self, chunks: Sequence[SequenceChunk]) -> bool:
        """Whether the outputs of every layer are cached for all tokens of a pass."""
        return self.caches_all_layers and self.cached_rows(chunks) is not None

    @property
    def caches_all_layers(self) -> bool:
        """Whether outputs of every layer can be cached, as far as is known."""
        return len(self._pools.layers) == self._num_layers

    def rows_to_fill(self, chunks: Sequence[SequenceChunk]) -> list[int] | None:
        """The row of each chunk's last token, a spare one where it is not cached; None where no token is."""
        rows = [self._row_to_fill(chunk) if chunk.replay_length > 0 else None for chunk in chunks]
        if all(row is None for row in rows):
            return None
        self._pools.allocate()
        return [self._spare_row if row is None else row for row in rows]

    def end_pass(self, chunks: Sequence[SequenceChunk], rows: Sequence[int] | None) -> None:
        """After a pass: rows that `rows_to_fill` gave hold the chunks' tokens; those of replayed tokens are free."""
        for i, chunk in enumerate(chunks):
            if not chunk.is_new:
                self._buffers.pop(chunk.slot, None)
            elif rows is not None and rows[i] != self._spare_row:
                self._buffers[chunk.slot].rows[chunk.end - 1] = rows[i]

    def cached_rows(self, chunks: Sequence[SequenceChunk]) -> list[int] | None:
        """The row of each token of a replay; None where some token has none."""
        rows: list[int] = []
        for chunk in chunks:
            buffer = None if chunk.is_new else self._buffers.get(chunk.slot)
            if buffer is None or not all(position in buffer.rows for position in range(chunk.start, chunk.end)):
                return None
            rows += [buffer.rows[position] for position in range(chunk.start, chunk.end)]
        return rows

    def _row_to_fill(self, chunk: SequenceChunk) -> int | None:
        """The row for a token; whether the tokens that are replayed with it have rows is decided at the first one."""
        buffer = self._buffers.get(chunk.slot)
        if buffer is None:
            self._buffers[chunk.slot] = buffer = _ReplayBuffer(self._reserve(chunk.replay_length))
        elif (
            len(buffer.rows) == len(buffer.reserved) and chunk.end - 1 not in buffer.rows
        ):  # more tokens came than were announced
            self._buffers[chunk.slot] = buffer = _ReplayBuffer([])
        if not buffer.reserved:
            return None
        # A token that is decoded again, after its pass failed, has its row already.
        return buffer.rows.get(chunk.end - 1, buffer.reserved[min(len(buffer.rows), len(buffer.reserved) - 1)])

    def _reserve(self, count: int) -> list[int]:
        """Free rows; none where there are fewer."""
        taken = {row for buffer in self._buffers.values() for row in buffer.reserved}
        free = [row for row in range(self.max_tokens) if row not in taken]
        return free[:count] if len(free) >= count else []


@contextmanager
def _set_cache(outputs: _Stores | _Loads | None) -> Iterator[None]:
    token = current_output_cache.set(outputs)
    try:
        yield
    finally:
        current_output_cache.reset(token)
