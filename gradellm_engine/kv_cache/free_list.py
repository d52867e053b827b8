"""Free ranges of a one-dimensional memory: best-fit allocation, adjacent ranges coalesced."""

from __future__ import annotations

from bisect import bisect, bisect_left, insort


class FreeList:
    """The free ranges of `size` positions.

    Attributes:
        ranges: start and length of each, ascending; none empty, no two adjacent.
    """

    def __init__(self, size: int) -> None:
        self.ranges = [(0, size)]
        self._by_length = [(size, 0)]  # the same as (length, start), ascending

    @property
    def num_free(self) -> int:
        """Positions in all ranges."""
        return sum(length for _, length in self.ranges)

    def allocate(self, length: int) -> int | None:
        """Take `length` positions from the smallest range that has them: their start; None where no range has."""
        index = bisect_left(self._by_length, (length, 0))
        if index == len(self._by_length):
            return None
        available, start = self._by_length[index]
        self._remove(start, available)
        if available > length:
            self._add(start + length, available - length)
        return start

    def release(self, start: int, length: int) -> None:
        """Give positions back."""
        index = bisect(self.ranges, (start, length))
        if index < len(self.ranges) and self.ranges[index][0] == start + length:
            _, length_after = self.ranges[index]
            self._remove(start + length, length_after)
            length += length_after
        if index and sum(self.ranges[index - 1]) == start:
            start_before, length_before = self.ranges[index - 1]
            self._remove(start_before, length_before)
            start, length = start_before, length_before + length
        self._add(start, length)

    def _add(self, start: int, length: int) -> None:
        insort(self.ranges, (start, length))
        insort(self._by_length, (length, start))

    def _remove(self, start: int, length: int) -> None:
        del self.ranges[bisect_left(self.ranges, (start, length))]
        del self._by_length[bisect_left(self._by_length, (length, start))]
