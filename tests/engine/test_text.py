"""From ids to text: pieces rejoin the whole, only whole characters come out, and stop texts never do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from gradellm_engine.encoding import TextEncoder
from gradellm_engine.text import REPLACEMENT, CompletionText, Decode, IncrementalText

Tokenizers = Callable[[str], PreTrainedTokenizerBase]
BYTE_FALLBACK = "stories260K"
FIRST_BYTE = 3  # of the stories tokenizer's byte tokens, <0x00>
BYTE_LEVEL = ["llama", "demo"]


def pieces_of(decoded: Decode, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    incremental = IncrementalText(decoded, context)
    return [*(incremental.push(i) for i in ids), incremental.flush()]


def byte_tokens(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.encode()]


def ids_below(limit: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, limit - 1), max_size=30)


# For the byte-fallback tokenizer: pieces and characters written as bytes, as its model would write them.
fallback_ids = st.lists(
    st.one_of(
        st.sampled_from([0, 1, 2]),
        st.integers(FIRST_BYTE + 256, 511),
        st.characters(codec="utf-8").filter(lambda c: c != REPLACEMENT),
    ),
    max_size=12,
).map(lambda items: [i for item in items for i in (byte_tokens(item) if isinstance(item, str) else [item])])


@pytest.mark.parametrize("skip_special_tokens", [True, False])
@pytest.mark.parametrize("model", BYTE_LEVEL)
@given(data=st.data())
def test_pieces_rejoin_the_text_of_any_ids(
    tokenizers: Tokenizers, model: str, skip_special_tokens: bool, data: st.DataObject
) -> None:
    tokenizer = tokenizers(model)
    decoded = partial(TextEncoder(tokenizer).decode, skip_special_tokens=skip_special_tokens)
    ids = data.draw(ids_below(len(tokenizer)))
    assert "".join(pieces_of(decoded, ids)) == decoded(ids)


@pytest.mark.parametrize("skip_special_tokens", [True, False])
@given(ids=fallback_ids)
def test_pieces_rejoin_the_text_with_byte_fallback(
    tokenizers: Tokenizers, skip_special_tokens: bool, ids: list[int]
) -> None:
    decoded = partial(TextEncoder(tokenizers(BYTE_FALLBACK)).decode, skip_special_tokens=skip_special_tokens)
    assert "".join(pieces_of(decoded, ids)) == decoded(ids)


@pytest.mark.parametrize("model", [*BYTE_LEVEL, BYTE_FALLBACK])
@given(before=st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), data=st.data())
def test_a_completion_reads_as_it_does_after_its_prompt(
    tokenizers: Tokenizers, model: str, before: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers(model)
    decoded = partial(TextEncoder(tokenizer).decode, skip_special_tokens=True)
    context = tokenizer(before)["input_ids"]
    ids = data.draw(fallback_ids if model == BYTE_FALLBACK else ids_below(len(tokenizer)))
    assert decoded(context) + "".join(pieces_of(decoded, ids, context)) == decoded([*context, *ids])


def test_a_leading_space_is_lost_at_the_very_beginning_alone(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers(BYTE_FALLBACK)
    decoded = partial(TextEncoder(tokenizer).decode, skip_special_tokens=True)
    bos, upon = tokenizer("upon")["input_ids"][0], tokenizer.convert_tokens_to_ids("▁upon")
    once = tokenizer("Once")["input_ids"]
    assert pieces_of(decoded, [upon, upon], once)[:2] == [" upon", " upon"]
    assert pieces_of(decoded, [upon, upon], [bos])[:2] == ["upon", " upon"]


@given(text=st.text(st.characters(codec="utf-8").filter(lambda c: c != REPLACEMENT), max_size=12))
@pytest.mark.parametrize("model", BYTE_LEVEL)
def test_no_half_characters(tokenizers: Tokenizers, model: str, text: str) -> None:
    tokenizer = tokenizers(model)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    *pieces, rest = pieces_of(partial(TextEncoder(tokenizer).decode, skip_special_tokens=False), ids)
    assert all(REPLACEMENT not in piece for piece in pieces)
    assert "".join(pieces) == text
    assert rest == ""


@pytest.mark.parametrize("before", ["😀😀", "a😀é😀", "日本語日本語"])
def test_a_context_that_ends_in_byte_tokens(tokenizers: Tokenizers, before: str) -> None:
    """Its last few tokens alone may begin inside a character."""
    decoded = partial(TextEncoder(tokenizers(BYTE_FALLBACK)).decode, skip_special_tokens=True)
    assert "".join(pieces_of(decoded, byte_tokens("😀é"), [1, *byte_tokens(before)])) == "😀é"


def test_a_bad_byte_does_not_take_back_what_was_said(tokenizers: Tokenizers) -> None:
    """A byte-fallback decoder reads the whole run of bytes as replacement characters; what was said stays said."""
    tokenizer = tokenizers(BYTE_FALLBACK)
    decoded = partial(TextEncoder(tokenizer).decode, skip_special_tokens=True)
    bad = FIRST_BYTE + 0xFF
    c = tokenizer.convert_tokens_to_ids("▁c")
    assert pieces_of(decoded, [*byte_tokens("é"), bad, c]) == ["", "é", "", REPLACEMENT + " c", ""]


def test_an_unfinished_character_comes_with_the_flush(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers("llama")
    ids = tokenizer("a😀", add_special_tokens=False)["input_ids"][:-1]
    assert pieces_of(partial(TextEncoder(tokenizer).decode, skip_special_tokens=True), ids) == [
        "a",
        "",
        "",
        "",
        REPLACEMENT,
    ]


def joined(pieces: Sequence[str]) -> Decode:
    """A vocabulary in which every id is its piece, whatever stands before."""
    return lambda ids: "".join(pieces[i] for i in ids)


def completion(pieces: Sequence[str], stop: Sequence[str]) -> CompletionText:
    """All pieces pushed, as far as a stop text."""
    text = CompletionText(joined(pieces), (), stop)
    for i in range(len(pieces)):
        text.push(i)
        if text.stop is not None:
            break
    text.finish()
    return text


def stopped(pieces: Sequence[str], stop: Sequence[str]) -> tuple[str, str | None]:
    """The naive way: look through everything after every piece."""
    text = ""
    for piece in pieces:
        text += piece
        found = [(text.index(s), s) for s in stop if s in text]
        if found:
            at, met = min(found)
            return text[:at], met
    return text, None


some_pieces = st.lists(st.text("abc", max_size=3), min_size=1, max_size=12)
some_stops = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


@given(some_pieces, some_stops)
def test_stop_texts_cut_as_a_naive_search_does(pieces: list[str], stop: list[str]) -> None:
    text = completion(pieces, stop)
    assert (text.text, text.stop) == stopped(pieces, stop)
    assert not any(s in text.text for s in stop)


@given(some_pieces, some_stops)
def test_spans_tile_the_text(pieces: list[str], stop: list[str]) -> None:
    text = completion(pieces, stop)
    assert len(text.spans) <= len(pieces)
    assert [a for a, _ in text.spans] == [0, *(b for _, b in text.spans[:-1])]
    assert text.spans[-1][1] == len(text.text)
    for (a, b), piece in zip(text.spans, pieces, strict=False):
        assert piece.startswith(text.text[a:b])


@given(some_pieces, some_stops)
def test_what_was_told_never_changes_and_all_is_told(pieces: list[str], stop: list[str]) -> None:
    text = CompletionText(joined(pieces), (), stop)
    told: list[tuple[int, int, str]] = []

    def tell() -> None:
        count = text.num_safe_tokens
        assert count >= len(told)
        told.extend((a, b, text.text[a:b]) for a, b in text.spans[len(told) : count])

    for i in range(len(pieces)):
        text.push(i)
        tell()
        # No more is held back than could begin a stop text.
        held = text.text[told[-1][1] if told else 0 :]
        assert text.stop is not None or not held or any(s.startswith(held[n:]) for s in stop for n in range(len(held)))
        if text.stop is not None:
            break
    text.finish()
    tell()
    assert told == [(a, b, text.text[a:b]) for a, b in text.spans]


@given(some_pieces)
def test_without_stop_texts_nothing_is_held_back(pieces: list[str]) -> None:
    text = CompletionText(joined(pieces), ())
    for i in range(len(pieces)):
        text.push(i)
        assert text.num_safe_tokens == i + 1


def test_a_stop_text_over_three_tokens() -> None:
    pieces = ["Hi", " E", "N", "D!"]
    text = CompletionText(joined(pieces), (), ["END", "Z"])
    told = []
    for i in range(4):
        text.push(i)
        told.append(text.num_safe_tokens)
    assert told == [1, 1, 1, 4]  # a token that holds more than the stop text's beginning waits as a whole
    assert (text.text, text.stop, text.spans) == ("Hi ", "END", [(0, 2), (2, 3), (3, 3), (3, 3)])


def test_a_stop_text_at_once() -> None:
    text = completion(["END of it"], ["END"])
    assert (text.text, text.stop, text.spans) == ("", "END", [(0, 0)])


def test_the_text_before_the_completion_is_no_part_of_a_stop_text() -> None:
    text = CompletionText(joined(["EN", "D"]), [0], ["END"])
    text.push(1)
    assert text.stop is None


def test_tokens_behind_a_stop_text_say_nothing() -> None:
    """A caller's forced tokens may go on behind it."""
    pieces = ["a", "STOP", "b", "STOP", "c"]
    text = CompletionText(joined(pieces), (), ["STOP"])
    for i in range(len(pieces)):
        text.push(i)
    text.finish()
    assert (text.text, text.spans) == ("a", [(0, 1), (1, 1), (1, 1), (1, 1), (1, 1)])


def test_a_half_stop_text_at_the_end_is_told() -> None:
    text = CompletionText(joined(["a", "ST"]), (), ["STOP"])
    text.push(0)
    text.push(1)
    assert text.num_safe_tokens == 1
    text.finish()
    assert text.num_safe_tokens == 2
    assert text.text == "aST"


def test_a_stop_text_may_be_met_in_an_unfinished_character(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers("llama")
    text = CompletionText(partial(TextEncoder(tokenizer).decode, skip_special_tokens=True), (), [REPLACEMENT])
    for i in tokenizer("aé", add_special_tokens=False)["input_ids"][:-1]:
        text.push(i)
    assert text.num_safe_tokens == 2  # nothing is met so far
    text.finish()
    assert (text.text, text.stop, text.spans) == ("a", REPLACEMENT, [(0, 1), (1, 1)])


def test_finishing_nothing() -> None:
    text = CompletionText(joined([]), ())
    text.finish()
    assert (text.text, text.spans, text.num_safe_tokens) == ("", [], 0)
