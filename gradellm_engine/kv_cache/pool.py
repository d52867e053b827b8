"""The KV pool: memory for keys and values, allocated once a model, and a contiguous slot in it for each sequence.

A slot is one range of the pool's positions, as long as its sequence can become, so that attention reads plain strided
tensors without a gather, and an admitted request never runs out of memory. Autograd never sees the pool: what a slot
holds is constant for every gradient.

When a sequence ends, its slot is retained as a prefix for later ones. A new sequence copies the longest prefix that
some slot holds (copying reads memory once, where computing reads all weights), and while it is prefilled, what others
have computed of it by then. When room is needed, retained slots are
evicted, the least recently used first.

Only sequences of one tenant share prefixes: otherwise the time to first token would reveal whether another tenant has
sent the same prefix.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from gradellm_engine.errors import BusyError, ModelLoadError
from gradellm_engine.kv_cache.free_list import FreeList
from gradellm_engine.kv_cache.prefix_tree import PrefixTree, common_length
from gradellm_engine.utils.memory import is_out_of_memory

AHEAD_TOKENS = 8192  # whose memory `commit_ahead` commits at most
AHEAD_SHARE = 8  # and at most this fraction, 1 / 8, of the pool
AHEAD_BYTES = 2**22  # that one call of it writes: a few milliseconds
MIN_REUSED_TOKENS = 16  # a shorter prefix is computed about as fast as it is found and copied


@dataclass(frozen=True)
class LayerShape:
    """What one layer stores for a token.

    Attributes:
        num_key_value_heads: G.
        key_width: D.
        value_width: Dv.
        dtype: of keys and values.
        device: where the layer computes.
    """

    num_key_value_heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's key and value."""
        return self.num_key_value_heads * (self.key_width + self.value_width) * self.dtype.itemsize


@dataclass(frozen=True)
class RotaryShape:
    """What one of a model's rotary embeddings stores for a token: cosines and sines, shared by some layers."""

    width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's cosines and sines."""
        return 2 * self.width * self.dtype.itemsize


Namespace = tuple[str | None, bool]


class KVSlot:
    """The keys and values of one sequence of at most `capacity` tokens.

    Attributes:
        pool: the pool.
        start: the slot's first position in the pool.
        capacity: its number of positions.
        tenant: whose sequence it is.
        is_long: whether its keys have the long rotary factors; see `gradellm_engine.layers.rotary_switch`.
        ids: the tokens whose keys and values are stored; positions from `len(ids)` on are free to be written.
    """

    def __init__(
        self, pool: KVPool, start: int, capacity: int, tenant: str | None = None, *, is_long: bool = False
    ) -> None:
        self.pool = pool
        self.start = start
        self.capacity = capacity
        self.tenant = tenant
        self.is_long = is_long
        self.ids: list[int] = []
        self._is_open = True

    @property
    def namespace(self) -> Namespace:
        """Tenant and rotary factors: prefixes are shared only among slots of one namespace."""
        return self.tenant, self.is_long

    @property
    def length(self) -> int:
        """Stored tokens."""
        return len(self.ids)

    def store(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Write keys [G, T, D] and values [G, T, Dv] of the positions from `start` on."""
        positions = slice(self.start + start, self.start + start + keys.shape[1])
        self.pool.keys[layer][:, positions] = keys
        self.pool.values[layer][:, positions] = values

    def keys(self, layer: int, first: int, end: int) -> Tensor:
        """Keys of the positions first..end, after rotation. [G, N, D]"""
        return self.pool.keys[layer][:, self.start + first : self.start + end]

    def values(self, layer: int, first: int, end: int) -> Tensor:
        """Values of the positions first..end. [G, N, Dv]"""
        return self.pool.values[layer][:, self.start + first : self.start + end]

    def rotary(self, table: int, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions first..end in one of the model's rotary embeddings. [N, width] each"""
        positions = slice(self.start + first, self.start + end)
        return self.pool.cosines[table][positions], self.pool.sines[table][positions]

    def close(self) -> None:
        """Free the slot; what it holds is lost. Idempotent."""
        if self._is_open:
            self._is_open = False
            self.pool.release(self)

    def reallocate_long(self, ids: Sequence[int]) -> KVSlot:
        """A slot of the same capacity to read `ids` into with the long rotary factors; this one is retained.

        The new slot may hold a prefix of `ids` that another sequence computed, but never all of them.
        """
        capacity = self.capacity  # retaining shrinks it to what is used
        self.retain()
        slot = self.pool.allocate(capacity, ids, self.tenant, is_long=True)
        if slot is None:
            raise RuntimeError("the KV pool has no room for a slot that was just freed")
        return slot

    def grow(self, capacity: int) -> KVSlot:
        """A slot of a larger capacity with what this one holds; this one is closed.

        Raises:
            BusyError: where there is no room now; this slot stays as it is.
        """
        slot = self.pool.allocate(capacity, tenant=self.tenant, is_long=self.is_long)
        if slot is None:
            raise BusyError(
                f"the KV cache has no room for {capacity} tokens of a followed completion now: give it more memory "
                "(--kv-memory), or follow fewer at a time"
            )
        self.pool.copy(self, slot, self.length)
        self.close()
        return slot

    def retain(self) -> None:
        """End the sequence and leave its keys and values to the pool as a prefix; see `KVPool.retain`."""
        self.pool.retain(self)

    def __del__(self) -> None:
        if self._is_open:  # not closed; the garbage collector may call this at any moment, so only record it
            self.pool.leaked.append((self.start, self.capacity))


class KVPool:
    """Memory for `num_tokens` tokens of all sequences together.

    Attributes:
        num_tokens: positions.
        keys: of each layer. [G, num_tokens, D]
        values: of each layer. [G, num_tokens, Dv]
        cosines: of each rotary embedding. [num_tokens, width]
        sines: of each rotary embedding. [num_tokens, width]
        reuses_prefixes: whether a new sequence copies a prefix that another slot holds.
        num_queried_tokens: tokens of all sequences so far whose prefix was looked up.
        num_hit_tokens: tokens of them that were copied.
        retained: slots of sequences that have ended, the least recently used first.
        leaked: start and capacity of slots that were dropped without being closed.
    """

    def __init__(
        self, layers: Sequence[LayerShape], rotaries: Sequence[RotaryShape], num_tokens: int, alignment: int = 1
    ) -> None:
        """Allocate the memory. Starts and capacities of slots are multiples of `alignment` positions.

        Raises:
            ModelLoadError: where the memory is not available.
        """
        self._alignment = alignment
        shapes: Sequence[LayerShape | RotaryShape] = (*layers, *rotaries)
        self._bytes_per_token = sum(shape.bytes_per_token for shape in shapes)
        self.num_tokens = num_tokens = self._aligned(num_tokens)
        try:
            self.keys = [_empty(s.num_key_value_heads, num_tokens, s.key_width, s) for s in layers]
            self.values = [_empty(s.num_key_value_heads, num_tokens, s.value_width, s) for s in layers]
            self.cosines = [_empty(1, num_tokens, s.width, s)[0] for s in rotaries]
            self.sines = [_empty(1, num_tokens, s.width, s)[0] for s in rotaries]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = num_tokens * self._bytes_per_token / 2**30
            raise ModelLoadError(
                f"keys and values of {num_tokens:,} tokens take {size:,.1f} GiB, more than the model leaves free: "
                "give them less (--kv-memory)"
            ) from None
        self.reuses_prefixes = True
        self.num_queried_tokens = self.num_hit_tokens = 0
        self.leaked: deque[tuple[int, int]] = deque()
        self._num_used = 0  # positions from the first on that slots have had
        self._num_committed = 0  # positions from the first on that were written to, or that slots have had
        self._free = FreeList(num_tokens)
        # Slots of running sequences by start, in order of allocation: ranks that share a model must choose alike.
        self._running: WeakValueDictionary[int, KVSlot] = WeakValueDictionary()
        self._reserved: dict[int, int] = {}  # start -> capacity of slots of running sequences, and of leaked ones
        self.retained: dict[KVSlot, None] = {}
        self._num_retained = 0  # positions of retained slots
        self._prefixes: dict[Namespace, PrefixTree[KVSlot]] = {}  # of retained slots

    @property
    def num_retained_tokens(self) -> int:
        """Positions that hold prefixes of sequences that have ended; evicted when room is needed."""
        return self._num_retained

    @property
    def num_free_tokens(self) -> int:
        """Positions that no running sequence has."""
        self._reclaim_leaked()
        return self._free.num_free + self.num_retained_tokens

    @property
    def num_running(self) -> int:
        """Slots of running sequences."""
        return len(self._reserved)

    @property
    def free_ranges(self) -> list[tuple[int, int]]:
        """Start and length of the ranges that no slot has, ascending."""
        return self._free.ranges

    def touch(self) -> None:
        """Write to all positions, so that a system that commits memory at first use does so now."""
        self._write_zeros(0, self.num_tokens)
        self._num_committed = self.num_tokens

    def commit_ahead(self) -> bool:
        """Write to some positions after those that slots have had; whether there are more to write to.

        A system commits memory at first use, page by page. On a virtual machine that took a tenth of the time of a
        prefill, which an idle server saves by calling this.
        """
        used = self._num_used
        end = min(self.num_tokens, used + min(AHEAD_TOKENS, self.num_tokens // AHEAD_SHARE))
        start = max(used, self._num_committed)
        if start >= end:
            return False
        self._num_committed = min(end, start + max(1, AHEAD_BYTES // self._bytes_per_token))
        self._write_zeros(start, self._num_committed)
        return self._num_committed < end

    def allocate(
        self, capacity: int, ids: Sequence[int] = (), tenant: str | None = None, *, is_long: bool = False
    ) -> KVSlot | None:
        """A slot for `capacity` tokens; None where there is no room now.

        The slot begins with what the pool already holds of `ids` for the same tenant and rotary factors; `KVSlot.ids`
        says how much that is. It never holds all of `ids`: the last token must be read to get its logits.
        """
        self._reclaim_leaked()
        capacity = self._aligned(capacity)
        if not self._fits(capacity):
            return None
        source, num_shared = self._longest_prefix(ids[:-1], (tenant, is_long)) if self.reuses_prefixes else (None, 0)
        if source in self.retained:
            self.retained[source] = self.retained.pop(source)  # now the most recently used
        while (start := self._free.allocate(capacity)) is None:
            next(iter(self.retained)).close()
        self._num_used = max(self._num_used, start + capacity)
        slot = KVSlot(self, start, capacity, tenant, is_long=is_long)
        if source is not None and self._is_allocated(source):  # it may have been evicted to make room
            self.copy(source, slot, num_shared)
        self.num_queried_tokens += len(ids)
        self.num_hit_tokens += slot.length
        self._running[start] = slot
        self._reserved[start] = capacity
        return slot

    def extend(self, slot: KVSlot, ids: Sequence[int]) -> int:
        """Copy to a slot what others hold of its sequence `ids` beyond it, as `allocate` does; the number of tokens."""
        source, num_shared = self._longest_prefix(ids[:-1], slot.namespace) if self.reuses_prefixes else (None, 0)
        if source is None or num_shared < slot.length + MIN_REUSED_TOKENS:
            return 0
        before = slot.length
        self.copy(source, slot, num_shared)
        self.num_hit_tokens += slot.length - before
        return slot.length - before

    def allocate_probe(self, capacity: int, *, is_long: bool = False) -> KVSlot:
        """A slot in a new pool, for a trial at load.

        Raises:
            RuntimeError: where the pool has no room.
        """
        slot = self.allocate(capacity, is_long=is_long)
        if slot is None:
            raise RuntimeError(f"a new KV pool has no room for {capacity} tokens")
        return slot

    def retain(self, slot: KVSlot) -> None:
        """Retain the slot of a sequence that has ended as a prefix for later ones; its unused positions are freed.

        Retained slots that are a prefix of it are closed. It is closed itself where a retained slot begins with it.
        """
        tree = self._prefixes.setdefault(slot.namespace, PrefixTree())
        if not slot.length or tree.longest(slot.ids)[1] == slot.length:
            slot.close()
            return
        for shorter in list(tree.along(slot.ids)):
            shorter.close()
        self._running.pop(slot.start, None)
        self._reserved.pop(slot.start, None)
        if unused := slot.capacity - self._aligned(slot.length):
            slot.capacity -= unused
            self._free.release(slot.start + slot.capacity, unused)
        self.retained[slot] = None
        self._num_retained += slot.capacity
        self._prefixes.setdefault(slot.namespace, tree).add(slot.ids, slot)

    def evict_all(self) -> None:
        """Close all retained slots."""
        for slot in list(self.retained):
            slot.close()

    def release(self, slot: KVSlot) -> None:
        """See `KVSlot.close`."""
        if slot in self.retained:
            del self.retained[slot]
            self._num_retained -= slot.capacity
            self._prefixes[slot.namespace].remove(slot.ids)
            if not self._prefixes[slot.namespace]:
                del self._prefixes[slot.namespace]
        else:
            self._running.pop(slot.start, None)
            self._reserved.pop(slot.start, None)
        self._free.release(slot.start, slot.capacity)

    def _write_zeros(self, start: int, end: int) -> None:
        for tensor in (*self.keys, *self.values):
            tensor[:, start:end].zero_()
        for tensor in (*self.cosines, *self.sines):
            tensor[start:end].zero_()

    def _is_allocated(self, slot: KVSlot) -> bool:
        return slot in self.retained or self._running.get(slot.start) is slot

    def _aligned(self, length: int) -> int:
        """`length`, rounded up to a multiple of the alignment."""
        return -(-length // self._alignment) * self._alignment

    def _reclaim_leaked(self) -> None:
        while self.leaked:
            start, capacity = self.leaked.popleft()
            self._reserved.pop(start, None)
            self._free.release(start, capacity)

    def _longest_prefix(self, ids: Sequence[int], namespace: Namespace) -> tuple[KVSlot | None, int]:
        """The slot with the longest common prefix with `ids`, and its length; None where it is too short to copy."""
        best, longest = self._prefixes.get(namespace, PrefixTree[KVSlot]()).longest(ids)
        for slot in self._running.values():  # few, unlike retained slots
            if slot.namespace == namespace and (shared := common_length(slot.ids, ids)) > longest:
                best, longest = slot, shared
        return (best, longest) if longest >= MIN_REUSED_TOKENS else (None, 0)

    def copy(self, source: KVSlot, slot: KVSlot, count: int) -> None:
        """Copy the first `count` tokens of a slot to another one, as far as that does not hold them."""
        own = slot.length
        old, new = (slice(each.start + own, each.start + count) for each in (source, slot))
        for tensor in (*self.keys, *self.values):
            tensor[:, new] = tensor[:, old]
        for tensor in (*self.cosines, *self.sines):
            tensor[new] = tensor[old]
        slot.ids += source.ids[own:count]

    def _fits(self, length: int) -> bool:
        """Whether `length` contiguous positions are free once all retained slots are evicted."""
        end = 0
        for start, capacity in sorted(self._reserved.items()):
            if start - end >= length:
                return True
            end = start + capacity
        return self.num_tokens - end >= length


@dataclass(frozen=True)
class Sequences:
    """T tokens of each of B sequences over the pool, as kernels read it.

    Attributes:
        keys: of one layer. [G, P, D]
        values: of one layer. [G, P, Dv]
        starts: each sequence's first position in the pool. [B]
        lengths: tokens of each, the T ones included. [B]
        num_tokens: T.
        width: L, the length of the longest sequence or more: columns of maps, the last of which is each sequence's last
            token.
    """

    keys: Tensor
    values: Tensor
    starts: Tensor
    lengths: Tensor
    num_tokens: int
    width: int

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.starts)


def _empty(num_heads: int, num_tokens: int, width: int, shape: LayerShape | RotaryShape) -> Tensor:
    return torch.empty((num_heads, num_tokens, width), dtype=shape.dtype, device=shape.device)
