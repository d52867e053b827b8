"""The keyword `tokens`: indexes, ranges, words, spans, texts and regular expressions."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm import InvalidRequestError
from gradellm.explanation.words import Word
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire.requests import attribute_request, generate_request
from gradellm.wire.token_selection import token_selection

TEXT = "Paris, not paris, is Paris."
WORD = Word("Paris", 0, 5, (2, 3))


def spans(*pairs: tuple[int, int]) -> list[pb.TextSpan]:
    return [pb.TextSpan(start=start, end=end) for start, end in pairs]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (0, pb.TokenSelection(indexes=[0])),
        (np.int64(7), pb.TokenSelection(indexes=[7])),
        ((3, 5), pb.TokenSelection(indexes=[3, 5])),
        ({4}, pb.TokenSelection(indexes=[4])),
        (range(2, 5), pb.TokenSelection(indexes=[2, 3, 4])),
        (WORD, pb.TokenSelection(indexes=[2, 3])),
        ("Paris", pb.TokenSelection(spans=spans((0, 5)))),
        (re.compile("paris", re.IGNORECASE), pb.TokenSelection(spans=spans((0, 5), (11, 16), (21, 26)))),
        (re.compile("a*"), pb.TokenSelection(spans=spans((1, 2), (12, 13), (22, 23)))),
        ([(0, 5), [18, 20]], pb.TokenSelection(spans=spans((0, 5), (18, 20)))),
        ([9, range(2), WORD, "is", (0, 1)], pb.TokenSelection(indexes=[9, 0, 1, 2, 3], spans=spans((3, 5), (0, 1)))),
    ],
)
def test_forms(tokens: Any, expected: pb.TokenSelection) -> None:
    assert token_selection(tokens, TEXT, "") == expected
    assert attribute_request("Q", {"completion": TEXT, "tokens": tokens}).attribution.tokens == expected


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "tokens: is empty; leave it out"),
        ("", "tokens: the completion does not have the text ''"),
        ("Rome", "tokens: the completion does not have the text 'Rome'"),
        ([0, re.compile("x|^")], r"tokens\[1\]: the completion does not have a match of 'x\|\^'"),
        (re.compile(b"a"), "tokens: must be a regular expression of texts, not of bytes"),
        ([(1, 2, 3)], r"tokens\[0\]: must be a span \(start, end\)"),
        (True, "tokens: must be an index, a range, a word"),
        (1.5, "tokens: must be an index"),
        ({"a": 1}, "tokens: must be an index"),
        (2**31, "tokens: must be a signed 32-bit integer"),
        (range(0), "which holds no index"),
        (range(2**40), "tokens: must be a signed 32-bit integer"),
        ("\ud800", "tokens: has a lone surrogate"),
    ],
)
def test_what_selects_nothing_is_refused(tokens: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        token_selection(tokens, TEXT, "")


@pytest.mark.parametrize("tokens", ["Paris", re.compile("P"), [1, "Paris"]])
def test_a_text_needs_a_completion_to_look_in(tokens: Any) -> None:
    with pytest.raises(InvalidRequestError, match="this one is not written yet: give indexes; or generate with"):
        generate_request("Q", {"tokens": tokens})
    with pytest.raises(InvalidRequestError, match="give it instead of completion_ids"):
        attribute_request("Q", {"completion_ids": [1], "tokens": tokens})
    ids = attribute_request("Q", {"completion_ids": [1], "tokens": [0, (0, 2)]})
    assert ids.attribution.tokens == pb.TokenSelection(indexes=[0], spans=spans((0, 2)))


def test_off_without_attribution() -> None:
    with pytest.raises(InvalidRequestError, match="tokens: has no meaning with attribution=None"):
        generate_request("Q", {"attribution": None, "tokens": 1})
    assert not generate_request("Q", {}).attribution.HasField("tokens")


@given(st.text(st.sampled_from("ab é"), min_size=1), st.text(st.sampled_from("ab é"), min_size=1))
def test_a_text_is_selected_at_its_first_place(text: str, wanted: str) -> None:
    if wanted in text:
        (span,) = token_selection(wanted, text, "").spans
        assert text[span.start : span.end] == wanted
        assert wanted not in text[: span.end - 1]
