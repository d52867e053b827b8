"""The radix tree against a linear scan of all sequences."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gradellm_engine.kv_cache.prefix_tree import PrefixTree, common_length

sequences = st.lists(st.integers(0, 2), min_size=1, max_size=12)


class Trees(RuleBasedStateMachine):
    """Sequences are added and removed; a lookup finds what a scan finds."""

    @initialize()
    def begin(self) -> None:
        self.tree: PrefixTree[int] = PrefixTree()
        self.lengths: dict[tuple[int, ...], int] = {}

    @rule(ids=sequences)
    def add(self, ids: list[int]) -> None:
        self.lengths[tuple(ids)] = value = len(self.lengths) + 100
        self.tree.add(ids, value)

    @rule(ids=sequences)
    def remove(self, ids: list[int]) -> None:
        self.lengths.pop(tuple(ids), None)
        self.tree.remove(ids)

    @rule(which=st.integers(0, 20))
    def remove_one(self, which: int) -> None:
        if self.lengths:
            ids = list(self.lengths)[which % len(self.lengths)]
            del self.lengths[ids]
            self.tree.remove(ids)

    @rule(ids=sequences)
    def look_up(self, ids: list[int]) -> None:
        longest = max((common_length(other, tuple(ids)) for other in self.lengths), default=0)
        value, count = self.tree.longest(ids)
        assert count == longest
        if count:
            assert value in {v for other, v in self.lengths.items() if common_length(other, tuple(ids)) == longest}
        else:
            assert value is None
        assert list(self.tree.along(ids)) == [
            self.lengths[tuple(ids[:n])] for n in range(1, len(ids) + 1) if tuple(ids[:n]) in self.lengths
        ]

    @invariant()
    def nothing_is_left_of_what_has_gone(self) -> None:
        if hasattr(self, "known"):
            assert bool(self.tree) == bool(self.lengths)


TestTrees = Trees.TestCase
TestTrees.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_of_equal_beginnings_the_first_is_found() -> None:
    tree: PrefixTree[str] = PrefixTree()
    for last in (7, 8, 9):
        tree.add([1, 2, 3, last], f"ends in {last}")
    assert tree.longest([1, 2, 3, 4]) == ("ends in 7", 3)
    tree.remove([1, 2, 3, 7])
    assert tree.longest([1, 2, 3, 4]) == ("ends in 8", 3)


def test_lookup_does_not_scan_sequences_with_a_common_prefix() -> None:
    """Counts the nodes that a lookup visits."""
    tree: PrefixTree[int] = PrefixTree()
    begin = list(range(16))
    for number in range(20_000):
        tree.add([*begin, 100 + number], number)
    looked_up: list[int] = []

    class Counted(dict[int, object]):
        def get(self, key: int, default: object = None) -> object:
            looked_up.append(key)
            return super().get(key, default)

    tree._root.children = Counted(tree._root.children)  # type: ignore[assignment]
    (shared,) = tree._root.children.values()
    shared.children = Counted(shared.children)  # type: ignore[assignment]
    assert tree.longest([*begin, 5000]) == (4900, 17)
    assert len(looked_up) == 2
