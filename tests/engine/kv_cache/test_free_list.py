"""Free ranges against a set of free positions."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gradellm_engine.kv_cache.free_list import FreeList

SIZE = 40


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=40))
def test_positions_are_allocated_once_and_ranges_coalesce(steps: list[tuple[bool, int]]) -> None:
    free, ranges = set(range(SIZE)), FreeList(SIZE)
    allocated: list[tuple[int, int]] = []
    for allocates, number in steps:
        if allocates:
            before = list(ranges.ranges)
            start = ranges.allocate(number)
            fitting = sorted(length for _, length in before if length >= number)
            if start is None:
                assert not fitting
                continue
            assert dict(before)[start] == fitting[0]  # the smallest range that has room
            allocated.append((start, number))
            assert set(range(start, start + number)) <= free
            free -= set(range(start, start + number))
        elif allocated:
            start, length = allocated.pop(number % len(allocated))
            ranges.release(start, length)
            free |= set(range(start, start + length))
        assert {p for start, length in ranges.ranges for p in range(start, start + length)} == free
        assert ranges.num_free == len(free)
        assert all(length > 0 for _, length in ranges.ranges)
        assert all(a[0] + a[1] < b[0] for a, b in pairwise(ranges.ranges))


def test_ranges_on_both_sides_are_joined() -> None:
    ranges = FreeList(SIZE)
    starts = [ranges.allocate(10) for _ in range(4)]
    assert starts == [0, 10, 20, 30]
    assert ranges.allocate(1) is None
    ranges.release(0, 10)
    ranges.release(20, 10)
    assert ranges.ranges == [(0, 10), (20, 10)]
    ranges.release(10, 10)
    assert ranges.ranges == [(0, 30)]
