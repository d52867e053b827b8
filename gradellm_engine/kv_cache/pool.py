"""Memory for keys and values: one pool a model, allocated once, and a slot in it for each sequence.

A slot is one stretch of the pool's token places, as long as its sequence can become, so that attention reads plain
strided tensors and nothing is gathered, and a request that was admitted never runs out of memory. Autograd never sees
the pool: what a slot holds is constant for every gradient that is taken.

A sequence that has ended leaves its slot to the pool as a prefix for later ones. A new sequence copies the longest
beginning that a slot holds already (copying reads memory once where computing reads all weights), and when room is
needed, those that were not used for longest are dropped first.

Only sequences of the same tenant share beginnings: a prompt that is read faster because another has begun with the same
words would tell its sender that somebody asked so.
"""

from __future__ import annotations

from bisect import bisect, bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from gradellm_engine.errors import ModelLoadError
from gradellm_engine.kv_cache.prefix_tree import PrefixTree, common_length
from gradellm_engine.utils.memory import is_out_of_memory

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
    """One of a model's rotary embeddings: cosines and sines by position, shared by some layers."""

    width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's cosines and sines."""
        return 2 * self.width * self.dtype.itemsize


Namespace = tuple[str | None, bool]


class KVSlot:
    """The places of one sequence of at most `capacity` tokens.

    Attributes:
        start: the first of them in the pool.
        capacity: how many there are.
        tenant: whose sequence it is.
        is_long: whether its keys are made with the long rotary factors; see `gradellm_engine.layers.rotary_switch`.
        ids: the tokens whose keys and values are there; places from `len(ids)` on are free to be written.
    """

    def __init__(
        self, pool: KVPool, start: int, capacity: int, tenant: str | None = None, *, is_long: bool = False
    ) -> None:
        self._pool = pool
        self.start = start
        self.capacity = capacity
        self.tenant = tenant
        self.is_long = is_long
        self.ids: list[int] = []
        self._is_open = True

    @property
    def namespace(self) -> Namespace:
        """Its keys and values serve only sequences of the same tenant and with the same rotary factors."""
        return self.tenant, self.is_long

    @property
    def length(self) -> int:
        """Tokens that it holds."""
        return len(self.ids)

    def store(self, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Write keys [G, T, D] and values [G, T, Dv] of the positions from `start` on."""
        places = slice(self.start + start, self.start + start + keys.shape[1])
        self._pool.keys[layer][:, places] = keys
        self._pool.values[layer][:, places] = values

    def keys(self, layer: int, first: int, end: int) -> Tensor:
        """Keys of the positions first..end, as attention multiplies them. [G, N, D]"""
        return self._pool.keys[layer][:, self.start + first : self.start + end]

    def values(self, layer: int, first: int, end: int) -> Tensor:
        """Values of the positions first..end. [G, N, Dv]"""
        return self._pool.values[layer][:, self.start + first : self.start + end]

    def rotary(self, table: int, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions first..end in one of the model's rotary embeddings. [N, width] each"""
        places = slice(self.start + first, self.start + end)
        return self._pool.cosines[table][places], self._pool.sines[table][places]

    def close(self) -> None:
        """Give the places back; what they hold is lost."""
        if self._is_open:
            self._is_open = False
            self._pool.release(self)

    def made_long(self, ids: Sequence[int]) -> KVSlot:
        """A slot of its size to read `ids` into, with the long rotary factors; this one becomes a prefix in the pool.

        The new one may hold some of them, of another sequence, but never all.
        """
        capacity = self.capacity  # of which it keeps what it used
        self.keep()
        slot = self._pool.allocate(capacity, ids, self.tenant, is_long=True)
        if slot is None:
            raise RuntimeError("a pool has room for what was just given back")
        return slot

    def keep(self) -> None:
        """Leave what it holds to the pool, as a prefix for others; see `KVPool.keep`."""
        self._pool.keep(self)

    def __del__(self) -> None:
        if self._is_open:  # nobody closed it; this may be called in the middle of anything
            self._pool.abandoned.append((self.start, self.capacity))


class KVPool:
    """Places for `num_tokens` tokens of all sequences together.

    Attributes:
        num_tokens: places.
        keys: a layer each, [G, num_tokens, D].
        values: a layer each, [G, num_tokens, Dv].
        cosines: a rotary embedding each, [num_tokens, width].
        sines: likewise.
        reuses_prefixes: whether a sequence copies a beginning that another holds.
        num_asked_tokens: of all sequences so far whose beginning was looked for.
        num_found_tokens: of them, tokens that were copied.
    """

    def __init__(
        self, layers: Sequence[LayerShape], rotaries: Sequence[RotaryShape], num_tokens: int, aligned: int = 1
    ) -> None:
        """Take the memory. Slots have a multiple of `aligned` places, and so begin at one.

        Raises:
            ModelLoadError: where there is not so much.
        """
        self._aligned = aligned
        self.num_tokens = num_tokens = self._rounded(num_tokens)
        try:
            self.keys = [_places(s.num_key_value_heads, num_tokens, s.key_width, s) for s in layers]
            self.values = [_places(s.num_key_value_heads, num_tokens, s.value_width, s) for s in layers]
            self.cosines = [_places(1, num_tokens, s.width, s)[0] for s in rotaries]
            self.sines = [_places(1, num_tokens, s.width, s)[0] for s in rotaries]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            shapes: Sequence[LayerShape | RotaryShape] = (*layers, *rotaries)
            size = num_tokens * sum(shape.bytes_per_token for shape in shapes) / 2**30
            raise ModelLoadError(
                f"keys and values of {num_tokens:,} tokens take {size:,.1f} GiB, more than is free beside the model: "
                "give them less (--kv-memory)"
            ) from None
        self.reuses_prefixes = True
        self.num_asked_tokens = self.num_found_tokens = 0
        self.abandoned: deque[tuple[int, int]] = deque()  # stretches of slots that nobody has any more
        self._free = [(0, num_tokens)]  # stretches (start, length), ascending, never adjacent
        self._free_by_length = [(num_tokens, 0)]  # the same (length, start), ascending
        # Those that are open, by where they begin, in the order of their coming: ranks that share a model choose alike.
        self._open: WeakValueDictionary[int, KVSlot] = WeakValueDictionary()
        self._taken: dict[int, int] = {}  # where they begin, and how many places they have
        self._kept: dict[KVSlot, None] = {}  # of sequences that have ended, the one not used for longest first
        self._num_kept = 0  # places of them
        self._prefixes: dict[Namespace, PrefixTree[KVSlot]] = {}  # what is kept

    @property
    def num_kept_tokens(self) -> int:
        """Places that hold prefixes of sequences that have ended; they are given up when room is needed."""
        return self._num_kept

    @property
    def num_free_tokens(self) -> int:
        """Places that no running sequence has."""
        self._take_back_abandoned()
        return sum(length for _, length in self._free) + self.num_kept_tokens

    def touch(self) -> None:
        """Write to all places, so that a system that gives memory at its first use gives it now."""
        for places in (*self.keys, *self.values, *self.cosines, *self.sines):
            places.zero_()

    def allocate(
        self, capacity: int, ids: Sequence[int] = (), tenant: str | None = None, *, is_long: bool = False
    ) -> KVSlot | None:
        """A slot for `capacity` tokens; None where there is no room now.

        It begins with what the pool holds already of `ids` for the same tenant and the same rotary factors, and never
        with all of them: the last one's keys and values may be there, but what the model makes of it is not.
        `KVSlot.ids` says how much it is.
        """
        self._take_back_abandoned()
        capacity = self._rounded(capacity)
        if not self._can_take(capacity):
            return None
        source, num_shared = self._longest_prefix(ids[:-1], (tenant, is_long)) if self.reuses_prefixes else (None, 0)
        if source in self._kept:
            self._kept[source] = self._kept.pop(source)  # just used: the last to be given up
        while (start := self._take(capacity)) is None:
            next(iter(self._kept)).close()
        slot = KVSlot(self, start, capacity, tenant, is_long=is_long)
        if source is not None and self._is_there(source):  # it may have been given up for the room
            self._copy(source, slot, num_shared)
        self.num_asked_tokens += len(ids)
        self.num_found_tokens += slot.length
        self._open[start] = slot
        self._taken[start] = capacity
        return slot

    def allocate_first(self, capacity: int, *, is_long: bool = False) -> KVSlot:
        """A slot of a pool that nobody else uses yet, to try something with.

        Raises:
            RuntimeError: where it has no room, which a new one has.
        """
        slot = self.allocate(capacity, is_long=is_long)
        if slot is None:
            raise RuntimeError("a new pool has room")
        return slot

    def keep(self, slot: KVSlot) -> None:
        """Keep what a sequence that has ended holds, as a prefix for others; places that it never used are freed."""
        its = self._prefixes.setdefault(slot.namespace, PrefixTree())
        if not slot.length or its.longest(slot.ids)[1] == slot.length:
            slot.close()  # nothing, or one that is kept tells all of it
            return
        for other in list(its.along(slot.ids)):
            other.close()  # told by the new one, too
        self._open.pop(slot.start, None)
        self._taken.pop(slot.start, None)
        if unused := slot.capacity - self._rounded(slot.length):
            slot.capacity -= unused
            self._give_back(slot.start + slot.capacity, unused)
        self._kept[slot] = None
        self._num_kept += slot.capacity
        self._prefixes.setdefault(slot.namespace, its).add(slot.ids, slot)

    def forget(self) -> None:
        """Give up all that is kept of sequences that have ended."""
        for slot in list(self._kept):
            slot.close()

    def release(self, slot: KVSlot) -> None:
        """See `KVSlot.close`."""
        if slot in self._kept:
            del self._kept[slot]
            self._num_kept -= slot.capacity
            self._prefixes[slot.namespace].remove(slot.ids)
            if not self._prefixes[slot.namespace]:
                del self._prefixes[slot.namespace]
        else:
            self._open.pop(slot.start, None)
            self._taken.pop(slot.start, None)
        self._give_back(slot.start, slot.capacity)

    def _is_there(self, slot: KVSlot) -> bool:
        return slot in self._kept or self._open.get(slot.start) is slot

    def _rounded(self, length: int) -> int:
        """So many places, and as many more as make whole ones of what is aligned."""
        return -(-length // self._aligned) * self._aligned

    def _take_back_abandoned(self) -> None:
        while self.abandoned:
            start, capacity = self.abandoned.popleft()
            self._taken.pop(start, None)
            self._give_back(start, capacity)

    def _longest_prefix(self, ids: Sequence[int], namespace: Namespace) -> tuple[KVSlot | None, int]:
        """The slot that begins with most of `ids`, and how many; None where it is too few to be worth it."""
        best, longest = self._prefixes.get(namespace, PrefixTree[KVSlot]()).longest(ids)
        for slot in self._open.values():  # few: those that run
            if slot.namespace == namespace and (shared := common_length(slot.ids, ids)) > longest:
                best, longest = slot, shared
        return (best, longest) if longest >= MIN_REUSED_TOKENS else (None, 0)

    def _copy(self, source: KVSlot, slot: KVSlot, count: int) -> None:
        old, new = slice(source.start, source.start + count), slice(slot.start, slot.start + count)
        for places in (*self.keys, *self.values):
            places[:, new] = places[:, old]
        for places in (*self.cosines, *self.sines):
            places[new] = places[old]
        slot.ids += source.ids[:count]

    def _can_take(self, length: int) -> bool:
        """Whether so many places stand together once every kept prefix is given up."""
        end = 0
        for start, taken in sorted(self._taken.items()):
            if start - end >= length:
                return True
            end = start + taken
        return self.num_tokens - end >= length

    def _take(self, length: int) -> int | None:
        """The start of so many places, from the smallest stretch that has them."""
        index = bisect_left(self._free_by_length, (length, 0))
        if index == len(self._free_by_length):
            return None
        available, start = self._free_by_length[index]
        self._remove_free(start, available)
        if available > length:
            self._add_free(start + length, available - length)
        return start

    def _give_back(self, start: int, length: int) -> None:
        index = bisect(self._free, (start, length))
        if index < len(self._free) and self._free[index][0] == start + length:
            _, behind = self._free[index]
            self._remove_free(start + length, behind)
            length += behind
        if index and sum(self._free[index - 1]) == start:
            before, its_length = self._free[index - 1]
            self._remove_free(before, its_length)
            start, length = before, its_length + length
        self._add_free(start, length)

    def _add_free(self, start: int, length: int) -> None:
        insort(self._free, (start, length))
        insort(self._free_by_length, (length, start))

    def _remove_free(self, start: int, length: int) -> None:
        del self._free[bisect_left(self._free, (start, length))]
        del self._free_by_length[bisect_left(self._free_by_length, (length, start))]


@dataclass(frozen=True)
class Sequences:
    """T tokens of each of B sequences over the pool, and how they are shared out.

    Attributes:
        keys: of one layer. [G, P, D]
        values: likewise. [G, P, Dv]
        starts: where each sequence begins in the pool. [B]
        lengths: tokens of each, the T ones included. [B]
        num_tokens: T.
        width: L, tokens of the longest at most: the columns of maps, whose last is each sequence's last token.
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


def _places(num_heads: int, num_tokens: int, width: int, shape: LayerShape | RotaryShape) -> Tensor:
    return torch.empty((num_heads, num_tokens, width), dtype=shape.dtype, device=shape.device)
