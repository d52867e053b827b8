"""The KV pool: a position belongs to one slot at a time, none is lost, prefixes are what was written."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gradellm_engine.errors import ModelLoadError
from gradellm_engine.kv_cache.pool import MIN_REUSED_TOKENS, KVPool, KVSlot, LayerShape, RotaryShape

CPU = torch.device("cpu")
LAYERS = [LayerShape(2, 3, 4, torch.float32, CPU), LayerShape(1, 2, 2, torch.float64, CPU)]
ROTARIES = [RotaryShape(2, torch.float32, CPU)]


def pool_of(num_tokens: int) -> KVPool:
    return KVPool(LAYERS, ROTARIES, num_tokens)


def allocated(pool: KVPool, capacity: int, ids: Sequence[int] = ()) -> KVSlot:
    slot = pool.allocate(capacity, ids)
    assert slot is not None
    return slot


def fingerprint(ids: Sequence[int], position: int) -> float:
    """What is written for a token: it depends on all tokens up to it, as keys and values do. Exact in float32."""
    return float(hash(tuple(ids[: position + 1])) % 2**20)


def write(slot: KVSlot, ids: Sequence[int]) -> None:
    """Read `ids` into a slot, as a pass through the model does."""
    start, end = slot.length, slot.length + len(ids)
    assert end <= slot.capacity
    all_ids = [*slot.ids, *ids]
    values = torch.tensor([fingerprint(all_ids, position) for position in range(start, end)])
    for layer in range(len(LAYERS)):
        slot.keys(layer, start, end).copy_((values + layer)[None, :, None])
        slot.values(layer, start, end).copy_((values + layer + 0.5)[None, :, None])
    cosines, sines = slot.rotary(0, start, end)
    cosines.copy_(values[:, None] + 0.25)
    sines.copy_(values[:, None] + 0.75)
    slot.ids += ids


def assert_holds(slot: KVSlot) -> None:
    """Every layer's keys and values, and the rotary embedding, are those of the slot's own tokens."""
    values = torch.tensor([fingerprint(slot.ids, position) for position in range(slot.length)])
    for layer in range(len(LAYERS)):
        assert (slot.keys(layer, 0, slot.length) == (values + layer)[None, :, None]).all()
        assert (slot.values(layer, 0, slot.length) == (values + layer + 0.5)[None, :, None]).all()
    cosines, sines = slot.rotary(0, 0, slot.length)
    assert (cosines == values[:, None] + 0.25).all()
    assert (sines == values[:, None] + 0.75).all()


def common(a: Sequence[int], b: Sequence[int]) -> int:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


chosen = st.integers(0, 5)


class Pools(RuleBasedStateMachine):
    """Any order of allocating, writing, retaining, closing and leaking slots, compared with a reference model."""

    @initialize(num_tokens=st.integers(1, 160))
    def begin(self, num_tokens: int) -> None:
        self.pool = pool_of(num_tokens)
        self.live: list[KVSlot] = []
        self.retained: list[KVSlot] = []  # the one not used for longest first

    def slots(self) -> list[tuple[int, int]]:
        return sorted((slot.start, slot.start + slot.capacity) for slot in self.live + self.retained)

    def ranges(self, retained: list[KVSlot]) -> list[int]:
        """Lengths of the free ranges between the live slots and those of `retained`."""
        ranges = sorted((slot.start, slot.start + slot.capacity) for slot in self.live + retained)
        ends = [0, *(end for _, end in ranges)]
        starts = [*(start for start, _ in ranges), self.pool.num_tokens]
        return [start - end for end, start in zip(ends, starts, strict=True)]

    @rule()
    def commit_ahead(self) -> None:
        """While idle; what slots hold is compared after every rule."""
        self.pool.commit_ahead()

    @rule(capacity=st.integers(1, 60), source=st.integers(0, 5), length=st.integers(0, 60), token=st.integers(0, 2))
    def allocate(self, capacity: int, source: int, length: int, token: int) -> None:
        """For the beginning of what some slot holds, going on with other tokens."""
        slots = self.live + self.retained
        ids = [*(slots[source].ids[:length] if source < len(slots) else []), *([token] * (length % 4))][:capacity]
        before, wanted = list(self.retained), ids[:-1]
        shared = max((common(other.ids, wanted) for other in slots), default=0)
        shared = shared if shared >= MIN_REUSED_TOKENS else 0
        sources = [other for other in slots if shared and common(other.ids, wanted) == shared]
        slot = self.pool.allocate(capacity, ids)
        self.retained = list(self.pool.retained)

        if slot is None:  # then nothing was given up for it
            assert max(self.ranges([])) < capacity
            assert self.retained == before
            return
        # One that was used is young now; then as many as needed are given up, the oldest first.
        orders = [[*(k for k in before if k is not used), used] for used in sources if used in before]
        if not orders or any(used in self.live for used in sources):
            orders.append(before)
        num_dropped = len(before) - len(self.retained)
        order = next(order for order in orders if order[num_dropped:] == self.retained)
        if num_dropped:
            assert max(self.ranges(order[num_dropped - 1 :])) < capacity
        assert max(self.ranges(self.retained)) >= capacity
        assert slot.capacity == capacity
        is_left = [other not in before or other in self.retained for other in sources]
        if all(is_left):
            assert slot.length == shared
        assert slot.length in (0, shared if any(is_left) else 0)
        assert slot.ids == ids[: slot.length]
        assert slot.length < max(1, len(ids))  # the last token is always to be read
        self.live.append(slot)

    def one(self, which: int) -> KVSlot:
        return self.live[which % len(self.live)]

    @precondition(lambda self: self.live)
    @rule(which=chosen, token=st.integers(0, 2), count=st.integers(1, 60))
    def read(self, which: int, token: int, count: int) -> None:
        slot = self.one(which)
        write(slot, [token] * min(count, slot.capacity - slot.length))

    @precondition(lambda self: self.live and self.live + self.retained)
    @rule(which=chosen, source=chosen, extra=st.integers(0, 2))
    def extend(self, which: int, source: int, extra: int) -> None:
        slot, others = self.one(which), self.live + self.retained
        ids = [*others[source % len(others)].ids, extra][: slot.capacity]
        if slot.ids != ids[: slot.length] or not ids:
            return
        before, longest = slot.length, max(common(other.ids, ids[:-1]) for other in others)
        expected = longest if longest >= before + MIN_REUSED_TOKENS else before
        assert self.pool.extend(slot, ids) == expected - before
        assert slot.ids == ids[:expected]

    @precondition(lambda self: any(slot.length for slot in self.live))
    @rule(which=chosen)
    def keep(self, which: int) -> None:
        read = [slot for slot in self.live if slot.length]
        slot = read[which % len(read)]
        self.live.remove(slot)
        is_prefix = any(other.ids[: slot.length] == slot.ids for other in self.retained)
        slot.retain()
        if is_prefix:  # of a slot that was retained before
            return
        self.retained = [
            other for other in self.retained if common(other.ids, slot.ids) < other.length
        ]  # without prefixes of this one
        assert slot.capacity == slot.length
        self.retained.append(slot)

    @precondition(lambda self: self.live)
    @rule(which=chosen, times=st.integers(1, 2))
    def close(self, which: int, times: int) -> None:
        slot = self.one(which)
        self.live.remove(slot)
        for _ in range(times):
            slot.close()

    @precondition(lambda self: self.live)
    @rule(which=chosen, in_a_cycle=st.booleans())
    def leak(self, which: int, in_a_cycle: bool) -> None:
        slot = self.one(which)
        self.live.remove(slot)
        if in_a_cycle:
            cycle: list[Any] = [slot]
            cycle.append(cycle)
            del slot, cycle
            gc.collect(0)

    @rule()
    def release_all(self) -> None:
        for slot in self.live:
            slot.close()
        self.live.clear()
        all_slots = allocated(self.pool, self.pool.num_tokens)  # evicts all retained slots
        self.retained.clear()
        all_slots.close()
        assert self.pool.free_ranges == [(0, self.pool.num_tokens)]

    @invariant()
    def places_belong_to_one(self) -> None:
        slots = self.slots()
        assert all(0 <= start <= end <= self.pool.num_tokens for start, end in slots)
        assert all(a[1] <= b[0] for a, b in pairwise(slots))

    @invariant()
    def what_is_free_is_whole(self) -> None:
        num_free = self.pool.num_free_tokens  # takes back what was forgotten
        free = self.pool.free_ranges
        assert all(length > 0 for _, length in free)
        assert all(a[0] + a[1] < b[0] for a, b in pairwise(free))  # ascending, never adjacent
        assert sorted(length for length in self.ranges(self.retained) if length) == sorted(n for _, n in free)
        assert list(self.pool.retained) == self.retained
        assert self.pool.num_retained_tokens == sum(slot.length for slot in self.retained)
        assert num_free == self.pool.num_tokens - sum(slot.capacity for slot in self.live)

    @invariant()
    def nothing_is_overwritten(self) -> None:
        for slot in self.live + self.retained:
            assert_holds(slot)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.release_all()


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_a_prefix_is_copied_but_for_the_last_token() -> None:
    pool = pool_of(200)
    first = allocated(pool, 60)
    write(first, range(40))
    same = allocated(pool, 50, list(range(40)))
    longer = allocated(pool, 50, list(range(45)))
    for slot, count in ((same, 39), (longer, 40)):
        assert slot.ids == list(range(count))
        assert_holds(slot)
    assert first.ids == list(range(40))
    write(same, [39, 99])  # into its own places
    assert_holds(first)


@pytest.mark.parametrize(("shared", "reused"), [(MIN_REUSED_TOKENS - 1, 0), (MIN_REUSED_TOKENS, MIN_REUSED_TOKENS)])
def test_a_short_prefix_is_not_worth_it(shared: int, reused: int) -> None:
    pool = pool_of(100)
    write(allocated(pool, 40), [])
    slot = allocated(pool, 40)
    write(slot, [1] * shared + [2] * 5)
    assert allocated(pool, 40, [1] * shared + [3] * 5).length == reused


def test_the_longest_of_several_prefixes_is_taken() -> None:
    pool = pool_of(400)
    slots = []
    for length in (20, 40, 30):
        slots.append(allocated(pool, 60))
        write(slots[-1], [1] * length + [2] * 5)
    slots[1].retain()
    assert allocated(pool, 60, [1] * 60).length == 40


def test_the_least_recently_used_prefix_is_evicted_first() -> None:
    pool = pool_of(90)
    for token in (1, 2, 3):
        slot = allocated(pool, 30)
        write(slot, [token] * 30)
        slot.retain()
    assert pool.num_free_tokens == 90
    reused = allocated(pool, 20, [1] * 20)  # the oldest, but just used: 2 is given up for it
    assert reused.ids == [1] * 19
    assert [slot.ids[0] for slot in pool.retained] == [3, 1]
    allocated(pool, 30).close()
    assert [slot.ids[0] for slot in pool.retained] == [1]


def test_a_prefix_that_is_evicted_for_room_is_not_copied() -> None:
    pool = pool_of(40)
    slot = allocated(pool, 40)
    write(slot, [1] * 40)
    slot.retain()
    new = allocated(pool, 40, [1] * 40)
    assert new.ids == []
    assert pool.num_free_tokens == 0
    assert pool.allocate(1) is None


def test_a_prefix_of_a_longer_one_is_dropped() -> None:
    pool = pool_of(300)
    for ids in ([1] * 20, [1] * 20 + [2] * 10, [1] * 20 + [3] * 10):
        slot = allocated(pool, 60)
        write(slot, ids)
        slot.retain()
    assert [slot.ids for slot in pool.retained] == [[1] * 20 + [2] * 10, [1] * 20 + [3] * 10]
    assert pool.num_retained_tokens == 60


def test_an_unused_slot_is_freed_completely() -> None:
    """Also where the range before it is free: no empty ranges are left."""
    pool = pool_of(20)
    before, slot, after = (allocated(pool, count) for count in (5, 10, 5))
    before.close()
    slot.retain()
    assert pool.free_ranges == [(0, 15)]
    after.close()
    assert pool.free_ranges == [(0, 20)]


def test_more_than_all_is_refused_and_takes_nothing() -> None:
    pool = pool_of(20)
    assert pool.allocate(21) is None
    assert pool.free_ranges == [(0, 20)]
    slot_of_20 = allocated(pool, 20)
    assert pool.allocate(1) is None
    slot_of_20.close()
    assert pool.num_free_tokens == 20


def test_bytes_are_those_of_the_tensors() -> None:
    pool = pool_of(10)
    tensors = [*pool.keys, *pool.values]
    assert sum(shape.bytes_per_token for shape in LAYERS) * 10 == sum(t.nbytes for t in tensors)
    assert ROTARIES[0].bytes_per_token * 10 == pool.cosines[0].nbytes + pool.sines[0].nbytes


def test_slots_may_be_garbage_collected_at_any_moment() -> None:
    """A slot in a reference cycle is closed when the collector happens to run, perhaps in the midst of `allocate`."""
    pool = pool_of(4000)
    old = gc.get_threshold()
    try:
        for round_ in range(1000):
            gc.set_threshold(1 + round_ % 40, 2, 2)
            slot = allocated(pool, 20 + round_ % 7, [round_ % 3] * 20)
            slot.ids += [round_ % 3] * (19 - slot.length)
            cycle: list[Any] = [slot]
            cycle.append(cycle)
            del slot, cycle
    finally:
        gc.set_threshold(*old)
    gc.collect()
    assert pool.num_free_tokens == 4000
    assert pool.free_ranges == [(0, 4000)]


def test_prefixes_are_reused_within_a_tenant_only() -> None:
    pool = pool_of(400)
    ids = list(range(40))
    for tenant in ("alice", None):
        slot = pool.allocate(50, ids, tenant)
        assert slot is not None
        assert not slot.ids
        slot.ids += ids
        slot.retain()
    for tenant, shared in (("alice", 39), (None, 39), ("bob", 0), ("", 0)):
        slot = pool.allocate(50, ids, tenant)
        assert slot is not None
        assert len(slot.ids) == shared, tenant
        slot.close()


def test_a_slot_is_not_extended_from_another_tenants() -> None:
    pool, ids = pool_of(200), list(range(40))
    source = pool.allocate(60, tenant="one")
    assert source is not None
    write(source, ids)
    for tenant, expected in (("two", 0), ("one", 39)):
        slot = pool.allocate(50, tenant=tenant)
        assert slot is not None
        hits = pool.num_hit_tokens
        assert pool.extend(slot, ids) == pool.num_hit_tokens - hits == slot.length == expected
        assert_holds(slot)
    pool.reuses_prefixes = False
    slot = pool.allocate(50, tenant="one")
    assert slot is not None
    assert pool.extend(slot, ids) == 0


def test_a_running_sequence_is_no_prefix_for_another_tenant() -> None:
    pool = pool_of(200)
    running = pool.allocate(50, list(range(40)), "alice")
    assert running is not None
    running.ids += range(40)
    other, own = (pool.allocate(50, list(range(40)), tenant) for tenant in ("bob", "alice"))
    assert other is not None
    assert own is not None
    assert (len(other.ids), len(own.ids)) == (0, 39)


def test_a_tenant_does_not_evict_prefixes_of_another_tenant() -> None:
    pool = pool_of(400)
    for tenant, length in (("alice", 40), ("bob", 60), ("bob", 40), ("alice", 30)):
        slot = pool.allocate(80, (), tenant)
        assert slot is not None
        slot.ids += range(length)
        slot.retain()
    assert sorted((slot.tenant or "", slot.length) for slot in pool.retained) == [("alice", 40), ("bob", 60)]


def test_more_memory_than_there_is() -> None:
    with pytest.raises(
        ModelLoadError, match=r"keys and values of 1,000,000,000,000,000 tokens take .* GiB.*--kv-memory"
    ):
        pool_of(10**15)


def test_of_equal_prefixes_the_first_is_reused() -> None:
    begin = list(range(MIN_REUSED_TOKENS))
    for _ in range(20):  # objects' addresses differ each time
        pool = pool_of(4 * (MIN_REUSED_TOKENS + 2))
        for last in (91, 92, 93):
            slot = allocated(pool, MIN_REUSED_TOKENS + 1)
            write(slot, [*begin, last])
            slot.retain()
        allocated(
            pool, MIN_REUSED_TOKENS + 2, [*begin, 94, 95]
        )  # uses the first, which is the last to be given up then
        assert [slot.ids[-1] for slot in pool.retained] == [92, 93, 91]


def test_prefix_lookup_does_not_scan_all_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts comparisons for one request with thousands of retained prefixes."""
    pool = KVPool([LayerShape(1, 1, 1, torch.float32, CPU)], [], 200_000)
    begin = list(range(MIN_REUSED_TOKENS))
    for number in range(5_000):
        slot = allocated(pool, 20)
        slot.ids += [*begin, 100 + number]
        slot.retain()
    running = allocated(pool, 20)
    running.ids += [*begin, 7]
    compared: list[int] = []

    def counting(a: Sequence[int], b: Sequence[int]) -> int:
        compared.append(len(a))
        return common(a, b)

    monkeypatch.setattr("gradellm_engine.kv_cache.pool.common_length", counting)
    monkeypatch.setattr("gradellm_engine.kv_cache.prefix_tree.common_length", counting)

    class Unlooked(dict[KVSlot, None]):
        def __iter__(self) -> Any:
            pytest.fail("all retained prefixes were scanned")

    pool.retained = Unlooked(pool.retained)
    assert allocated(pool, 40, [*begin, 4100, 5, 6]).length == MIN_REUSED_TOKENS + 1
    assert len(compared) <= 4
    assert pool.num_running == 2
