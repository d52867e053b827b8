"""A radix tree over token sequences: longest-common-prefix lookup.

Edges carry runs of tokens, nodes the value of the sequence that ends there. Looking up, adding and removing a sequence
cost its own length, however many sequences the tree has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

Value = TypeVar("Value")


class _Node(Generic[Value]):
    """A node: the tokens on the edge from its parent, the value of the sequence that ends here, and its children."""

    __slots__ = ("children", "tokens", "value")

    def __init__(self, tokens: tuple[int, ...], value: Value | None = None) -> None:
        self.tokens = tokens
        self.value = value
        self.children: dict[int, _Node[Value]] = {}  # by the first token of their edge


class PrefixTree(Generic[Value]):
    """A map from token sequences to values."""

    def __init__(self) -> None:
        self._root: _Node[Value] = _Node(())

    def __bool__(self) -> bool:
        return bool(self._root.children)

    def longest(self, ids: Sequence[int]) -> tuple[Value | None, int]:
        """The value whose sequence has the longest common prefix with `ids`, and its length; (None, 0) without one.

        Of several, the one that was added first.
        """
        wanted, node, count = tuple(ids), self._root, 0
        while child := node.children.get(wanted[count]) if count < len(wanted) else None:
            shared = common_length(child.tokens, wanted[count : count + len(child.tokens)])
            node, count = child, count + shared
            if shared < len(child.tokens):
                break
        return (self._first(node), count) if count else (None, 0)

    def along(self, ids: Sequence[int]) -> Iterator[Value]:
        """Values of the sequences that are a prefix of `ids`, or equal to it, shortest first."""
        wanted, node, count = tuple(ids), self._root, 0
        while child := node.children.get(wanted[count]) if count < len(wanted) else None:
            if child.tokens != wanted[count : count + len(child.tokens)]:
                return
            node, count = child, count + len(child.tokens)
            if node.value is not None:
                yield node.value

    def add(self, ids: Sequence[int], value: Value) -> None:
        """Add a sequence of at least one token; an equal one is replaced."""
        rest, node = tuple(ids), self._root
        while rest:
            child = node.children.get(rest[0])
            if child is None:
                node.children[rest[0]] = _Node(rest, value)
                return
            shared = common_length(child.tokens, rest)
            if shared < len(child.tokens):  # split the edge
                upper: _Node[Value] = _Node(child.tokens[:shared])
                child.tokens = child.tokens[shared:]
                upper.children[child.tokens[0]] = child
                node.children[rest[0]] = upper
                child = upper
            node, rest = child, rest[shared:]
        node.value = value

    def remove(self, ids: Sequence[int]) -> None:
        """Remove a sequence; no effect where the tree does not have it."""
        rest, path = tuple(ids), [self._root]
        while rest:
            child = path[-1].children.get(rest[0])
            if child is None or child.tokens != rest[: len(child.tokens)]:
                return
            path.append(child)
            rest = rest[len(child.tokens) :]
        path[-1].value = None
        while len(path) > 1 and path[-1].value is None:
            node = path.pop()
            if len(node.children) > 1:
                return
            if node.children:  # merge with the only child
                (child,) = node.children.values()
                child.tokens = node.tokens + child.tokens
                path[-1].children[node.tokens[0]] = child
                return
            del path[-1].children[node.tokens[0]]

    @staticmethod
    def _first(node: _Node[Value]) -> Value | None:
        """The value of a node, or the first below it."""
        while node.value is None and node.children:
            node = next(iter(node.children.values()))
        return node.value


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common prefix, by bisection."""
    low, high = 0, min(len(a), len(b))  # prefixes of `low` tokens are equal, those of more than `high` are not
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
