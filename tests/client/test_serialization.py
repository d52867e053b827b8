"""JSON of dataclasses: it restores equal ones, and refuses everything else with the path to it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradellm.serialization import (
    MalformedError,
    from_document,
    from_json,
    from_plain,
    short_repr,
    to_document,
    to_plain,
)


@dataclass(frozen=True)
class Leaf:
    """A value of each plain type; the last field was added later."""

    text: str
    count: int
    share: float
    flag: bool
    kind: Literal["a", "b"] | None = None


@dataclass(frozen=True)
class Tree:
    """Values of each compound type."""

    leaves: tuple[Leaf, ...]
    by_name: Mapping[str, float]
    layers: Literal["all"] | int | tuple[int, ...] | None
    best: Leaf | None


LEAF = Leaf("x", 1, 0.5, flag=True)
TREE = Tree((LEAF,), {"pi": 0.25}, (1, 2), None)
PLAIN = to_plain(TREE)

LEAVES = st.builds(Leaf, count=st.integers(-(2**63), 2**63 - 1), share=st.floats())
LAYERS: list[Any] = [None, "all", 0, 9, (), (3, 1)]


@settings(max_examples=50)
@given(
    st.builds(
        Tree,
        leaves=st.lists(LEAVES, max_size=3).map(tuple),
        by_name=st.dictionaries(st.text(), st.floats(), max_size=3),
        layers=st.sampled_from(LAYERS),
        best=st.none() | LEAVES,
    )
)
def test_a_document_restores_an_equal_value(tree: Tree) -> None:
    text = to_document(tree, "tree", 1)
    again = from_document(Tree, text, "tree", 1, "a tree")
    assert repr(again) == repr(tree)  # NaN does not equal itself
    json.loads(text, parse_constant=pytest.fail)  # strict JSON
    assert "\n" not in text


@pytest.mark.parametrize(("value", "text"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_numbers_that_json_does_not_have_are_texts(value: float, text: str) -> None:
    assert to_plain(value) == text
    assert repr(from_plain(float, text)) == repr(value)
    with pytest.raises(MalformedError, match="must be an integer, not"):
        from_plain(int, text)


def changed(**changes: Any) -> dict[str, Any]:
    return {**PLAIN, **changes}


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ([], "value: must be an object, not []"),
        (changed(more=1), "more: is unknown"),
        ({"leaves": [], "by_name": {}, "layers": None}, "best: is missing"),
        (changed(leaves={}), "leaves: must be a list, not {}"),
        (changed(leaves=[{}]), "leaves[0].text: is missing"),
        (changed(leaves=[PLAIN["leaves"][0], None]), "leaves[1]: must be an object, not None"),
        (changed(by_name=[]), "by_name: must be an object, not []"),
        (changed(by_name={"pi": "x"}), "by_name.pi: must be a number, not 'x'"),
        (changed(best={**PLAIN["leaves"][0], "flag": 1}), "best.flag: must be true or false, not 1"),
        (changed(best={**PLAIN["leaves"][0], "count": True}), "best.count: must be an integer, not True"),
        (changed(best={**PLAIN["leaves"][0], "count": 1.0}), "best.count: must be an integer, not 1.0"),
        (changed(best={**PLAIN["leaves"][0], "share": True}), "best.share: must be a number, not True"),
        (changed(best={**PLAIN["leaves"][0], "share": 10**400}), "best.share: is larger than a float can be"),
        (changed(best={**PLAIN["leaves"][0], "count": 2**63}), "best.count: must be an integer of 64 bits, not"),
        (changed(best={**PLAIN["leaves"][0], "kind": "c"}), "best.kind: must be"),
        (changed(layers="some"), "layers: must be"),
        (changed(layers=[2**63]), "layers: must be"),
    ],
)
def test_other_values_are_refused_with_their_path(plain: Any, message: str) -> None:
    with pytest.raises(MalformedError) as refused:
        from_plain(Tree, plain)
    assert str(refused.value).startswith(message)


def test_values_of_other_languages_and_older_files_are_read() -> None:
    """JavaScript writes 1.0 as 1; a field with a default is missing in older files."""
    leaf = {"text": "x", "count": 1, "share": 1, "flag": True}
    read = from_plain(Tree, changed(leaves=[leaf]))
    assert read.leaves == (Leaf("x", 1, 1.0, flag=True, kind=None),)
    assert type(read.leaves[0].share) is float
    assert from_plain(tuple[float, ...], [1, 2.5, "NaN"])[:2] == (1.0, 2.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", 'this is not a tree: it has no "format": "tree"'),
        ('{"format": "leaf", "version": 1}', "this is not a tree"),
        ('{"format": "tree"}', "the tree has version None; this gradellm reads version 1 only"),
        ('{"format": "tree", "version": 2}', "the tree has version 2"),
        ('{"format": "tree", "version": true}', "the tree has version True"),
        ('{"format": "tree", "version": 1.0}', "the tree has version 1.0"),
        ('{"format": "tree", "version": 1}', "the tree is malformed: leaves: is missing"),
    ],
)
def test_documents_of_another_format_are_refused(text: str, message: str) -> None:
    with pytest.raises(MalformedError) as refused:
        from_document(Tree, text, "tree", 1, "a tree")
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "value", ["x" * 10**6, [[[[["x"] * 99] * 99]]], 10**5000, -(2**300), {"a": {"b": {"c": {}}}}], ids=type
)
def test_values_of_any_size_are_shortened_in_messages(value: object) -> None:
    assert len(short_repr(value)) <= 63


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff", "not UTF-8, at byte 0"),
        (b'{"a": 1, "a": 2}', "has the name 'a' twice"),
        (b'{"a": {"b": 1, "b": 1}}', "has the name 'b' twice"),
        (b"[1e400]", "larger than a float"),
        (b"[-Infinity]", "not a JSON number"),
        (b'["\\ud800"]', "a lone surrogate"),
        (b"[" * 33 + b"]" * 33, "nested deeper than 32"),
        (b"1" * 5000, "a number has 5,000 characters"),
        (b"", "not JSON"),
    ],
)
def test_json_that_is_not_read(text: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        from_json(text)


def test_json_that_is_read() -> None:
    assert from_json('{"a": ["\\ud83d\\ude00", 1e308, 12345678901234567890]}') == {
        "a": ["😀", 1e308, 12345678901234567890]
    }
    assert from_json("[" * 32 + "]" * 32) is not None


def test_lone_surrogates_may_be_allowed() -> None:
    """Prompts of data files may have them; then they are refused where they would be encoded."""
    assert from_json('["\\ud800"]', lone_surrogates=True) == ["\ud800"]
    for text in ('{"\\ud800": 1}', '{"a": [{"b": "\\udfff"}]}'):
        with pytest.raises(MalformedError, match="a lone surrogate at position 0"):
            from_json(text)
