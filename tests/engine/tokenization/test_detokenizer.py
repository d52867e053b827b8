"""Incremental detokenisation: pieces join to the whole text, only complete characters, and no stop texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from gradellm_engine.tokenization.detokenizer import (
    MAX_PENDING_TOKENS,
    REPLACEMENT,
    CompletionText,
    Decode,
    IncrementalDetokenizer,
    StopMatcher,
)
from gradellm_engine.tokenization.encoder import TextEncoder

Tokenizers = Callable[[str], PreTrainedTokenizerBase]
BYTE_FALLBACK = "stories260K"
FIRST_BYTE = 3  # id of <0x00>, the first byte token of the stories tokenizer
BYTE_LEVEL = ["llama", "demo"]


def pieces_of(decoded: Decode, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    detokenizer = IncrementalDetokenizer(decoded, context)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


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
def test_a_completion_decodes_as_after_its_prompt(
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
    """The window must not begin inside a character."""
    decoded = partial(TextEncoder(tokenizers(BYTE_FALLBACK)).decode, skip_special_tokens=True)
    assert "".join(pieces_of(decoded, byte_tokens("😀é"), [1, *byte_tokens(before)])) == "😀é"


def test_an_invalid_byte_does_not_change_emitted_text(tokenizers: Tokenizers) -> None:
    """A byte-fallback decoder then decodes the whole run of bytes to replacement characters; emitted text stays."""
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
    """A vocabulary in which each id is its piece, in any context."""
    return lambda ids: "".join(pieces[i] for i in ids)


def completion(pieces: Sequence[str], stop: Sequence[str]) -> CompletionText:
    """A completion of these pieces, up to a stop text."""
    text = CompletionText(joined(pieces), (), stop)
    for i in range(len(pieces)):
        text.push(i)
        if text.stop is not None:
            break
    text.finish()
    return text


def stopped(pieces: Sequence[str], stop: Sequence[str]) -> tuple[str, str | None]:
    """The naive way: search the whole text after every piece."""
    text = ""
    for text_piece in pieces:
        text += text_piece
        found = [(text.index(s), s) for s in stop if s in text]
        if found:
            position, stop_text = min(found)
            return text[:position], stop_text
    return text, None


some_pieces = st.lists(st.text("abc", max_size=3), min_size=1, max_size=12)
some_stops = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


@given(some_pieces, some_stops)
def test_stop_texts_truncate_as_a_naive_search_does(pieces: list[str], stop: list[str]) -> None:
    text = completion(pieces, stop)
    assert (text.text, text.stop) == stopped(pieces, stop)
    assert not any(s in text.text for s in stop)


@given(some_pieces, some_stops)
def test_spans_tile_the_text(pieces: list[str], stop: list[str]) -> None:
    text = completion(pieces, stop)
    assert len(text.spans) <= len(pieces)
    assert [a for a, _ in text.spans] == [0, *(b for _, b in text.spans[:-1])]
    assert text.spans[-1][1] == len(text.text)
    for (a, b), text_piece in zip(text.spans, pieces, strict=False):
        assert text_piece.startswith(text.text[a:b])


@given(some_pieces, some_stops)
def test_emitted_text_never_changes_and_is_complete(pieces: list[str], stop: list[str]) -> None:
    text = CompletionText(joined(pieces), (), stop)
    emitted: list[tuple[int, int, str]] = []

    def tell() -> None:
        count = text.num_safe_tokens
        assert count >= len(emitted)
        emitted.extend((a, b, text.text[a:b]) for a, b in text.spans[len(emitted) : count])

    for i in range(len(pieces)):
        text.push(i)
        tell()
        # Only what may begin a stop text is held back.
        held = text.text[emitted[-1][1] if emitted else 0 :]
        assert text.stop is not None or not held or any(s.startswith(held[n:]) for s in stop for n in range(len(held)))
        if text.stop is not None:
            break
    text.finish()
    tell()
    assert emitted == [(a, b, text.text[a:b]) for a, b in text.spans]


@given(some_pieces)
def test_without_stop_texts_nothing_is_held_back(pieces: list[str]) -> None:
    text = CompletionText(joined(pieces), ())
    for i in range(len(pieces)):
        text.push(i)
        assert text.num_safe_tokens == i + 1


def test_a_stop_text_over_three_tokens() -> None:
    pieces = ["Hi", " E", "N", "D!"]
    text = CompletionText(joined(pieces), (), ["END", "Z"])
    counts = []
    for i in range(4):
        text.push(i)
        counts.append(text.num_safe_tokens)
    assert counts == [1, 1, 1, 4]  # a token with the beginning of a stop text is held back as a whole
    assert (text.text, text.stop, text.spans) == ("Hi ", "END", [(0, 2), (2, 3), (3, 3), (3, 3)])


def test_a_stop_text_at_once() -> None:
    text = completion(["END of it"], ["END"])
    assert (text.text, text.stop, text.spans) == ("", "END", [(0, 0)])


def test_the_text_before_the_completion_is_no_part_of_a_stop_text() -> None:
    text = CompletionText(joined(["EN", "D"]), [0], ["END"])
    text.push(1)
    assert text.stop is None


def test_tokens_after_a_stop_text_have_no_text() -> None:
    """Forced tokens may follow a stop text."""
    pieces = ["a", "STOP", "b", "STOP", "c"]
    text = CompletionText(joined(pieces), (), ["STOP"])
    for i in range(len(pieces)):
        text.push(i)
    text.finish()
    assert (text.text, text.spans) == ("a", [(0, 1), (1, 1), (1, 1), (1, 1), (1, 1)])


def test_half_a_stop_text_at_the_end_is_emitted() -> None:
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
    assert text.num_safe_tokens == 2  # no stop text so far
    text.finish()
    assert (text.text, text.stop, text.spans) == ("a", REPLACEMENT, [(0, 1), (1, 1)])


def test_finishing_an_empty_completion() -> None:
    text = CompletionText(joined([]), ())
    text.finish()
    assert (text.text, text.spans, text.num_safe_tokens) == ("", [], 0)


# Bounded work --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [*BYTE_LEVEL, BYTE_FALLBACK])
@pytest.mark.parametrize("byte", [0xE4, 0xFF, 0x80, 0xF0])
@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_bytes_that_are_no_character_do_not_widen_the_window(
    tokenizers: Tokenizers, model: str, byte: int, skip_special_tokens: bool
) -> None:
    tokenizer = tokenizers(model)
    token_id = (
        FIRST_BYTE + byte if model == BYTE_FALLBACK else tokenizer.convert_tokens_to_ids(bytes_to_unicode()[byte])
    )
    decoded = partial(TextEncoder(tokenizer).decode, skip_special_tokens=skip_special_tokens)
    lengths: list[int] = []

    def counted(ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return decoded(ids)

    pieces = pieces_of(counted, [token_id] * 500)
    assert "".join(pieces) == REPLACEMENT * 500
    assert sum(map(bool, pieces)) > 100  # they are emitted one by one, not all at the end
    assert max(lengths) <= 2 * MAX_PENDING_TOKENS
    assert sum(lengths) <= 500 * 40


def test_tokens_without_text_do_not_widen_the_window(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers("llama")
    lengths: list[int] = []

    def counted(ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return TextEncoder(tokenizer).decode(ids, skip_special_tokens=True)

    a = tokenizer.convert_tokens_to_ids("a")
    assert "".join(pieces_of(counted, [*[256] * 500, a])) == "a"
    assert max(lengths) <= 2 * MAX_PENDING_TOKENS


@given(st.lists(st.integers(0, 255), max_size=60))
@pytest.mark.parametrize("model", BYTE_LEVEL)
def test_any_bytes_decode_as_a_whole(tokenizers: Tokenizers, model: str, content: list[int]) -> None:
    """Runs of invalid bytes, and characters that are cut in two."""
    tokenizer = tokenizers(model)
    ids = tokenizer.convert_tokens_to_ids([bytes_to_unicode()[byte] for byte in content])
    decoded = partial(TextEncoder(tokenizer).decode, skip_special_tokens=True)
    assert "".join(pieces_of(decoded, ids)) == bytes(content).decode(errors="replace")


@given(text=st.text("ab", max_size=60), stop=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4))
def test_held_back_text_equals_the_naive_search(text: str, stop: list[str]) -> None:
    matcher = StopMatcher(stop)
    for end in range(1, len(text) + 1):
        met = matcher.push(text[end - 1])
        assert sorted(met) == sorted(s for s in stop if text[:end].endswith(s))
        longest = max(
            (n for s in stop for n in range(1, min(len(s), end + 1)) if text[:end].endswith(s[:n])), default=0
        )
        assert matcher.held == longest


def test_searching_long_stop_texts_takes_constant_time_a_character() -> None:
    """On texts that almost match, each comparison extends a match or ends one."""
    compared = 0

    class Counting(str):
        __slots__ = ()

        def __getitem__(self, index: Any) -> str:
            nonlocal compared
            compared += 1
            return super().__getitem__(index)

    stop = ["a" * 999 + chr(0x100 + number) for number in range(16)]
    matcher = StopMatcher(stop)
    matcher._texts = tuple(Counting(text) for text in stop)
    for _ in range(3000):
        assert not matcher.push("a")
    assert compared <= 16 * 3000 * 4
    assert matcher.held == 999


SPECIAL = {0: "<|user|>", 1: "<|end|>"}


def with_specials(pieces: Sequence[str]) -> CompletionText:
    """Ids below 2 are special tokens, which have no text; all other ids are pieces."""
    stops = ["<|user|>", "x<|end|>y", "\n<|"]
    return CompletionText(
        lambda ids: "".join("" if i in SPECIAL else pieces[i - 2] for i in ids), (), stops, lambda i: SPECIAL.get(i, "")
    )


@pytest.mark.parametrize(
    ("ids", "text", "stop", "spans"),
    [
        ([2, 0], "ab", "<|user|>", [(0, 2), (2, 2)]),  # the stop text is a special token
        ([2, 3, 1, 4], "ab", "x<|end|>y", [(0, 2), (2, 2), (2, 2), (2, 2)]),  # it contains one
        ([2, 3, 1, 2], "abxab", None, [(0, 2), (2, 3), (3, 3), (3, 5)]),  # it begins with one, and does not match
        ([2, 5, 0], "ab", "\n<|", [(0, 2), (2, 2), (2, 2)]),  # it ends inside one
        ([2, 1, 2], "abab", None, [(0, 2), (2, 2), (2, 4)]),
    ],
)
def test_stop_texts_of_special_tokens(
    ids: list[int], text: str, stop: str | None, spans: list[tuple[int, int]]
) -> None:
    completion = with_specials(["ab", "x", "y", "\n"])
    for token_id in ids:
        completion.push(token_id)
    completion.finish()
    assert (completion.text, completion.stop, completion.spans) == (text, stop, spans)


def test_text_that_a_special_token_may_end_is_held_back() -> None:
    completion = with_specials(["ab", "x", "y"])
    counts = []
    for token_id in (2, 3, 1, 2):
        completion.push(token_id)
        counts.append(completion.num_safe_tokens)
    assert counts == [1, 1, 1, 4]


def test_a_text_that_may_end_later_holds_back_a_token_within_a_character() -> None:
    """Its text is a replacement character if nothing follows, and empty if the rest of the character does."""
    pieces = [b"a", b"\xc3", b"\xa9", b"\xe2", b"\x82"]

    def decode(ids: Sequence[int]) -> str:
        return b"".join(pieces[index] for index in ids).decode(errors="replace")

    text = CompletionText(decode, (), may_end_later=True)
    counts = []
    for index in range(len(pieces)):
        text.push(index)
        counts.append(text.num_safe_tokens)
    assert counts == [1, 1, 3, 3, 4]
    text.finish()
    assert text.num_safe_tokens == 5
    assert text.text == "aé\ufffd"
    assert [text.text[start:end] for start, end in text.spans] == ["a", "", "é", "", "\ufffd"]


def test_stop_texts_within_the_first_tokens_pass() -> None:
    for num_unstopped, expected in [(0, ("", "ab")), (2, ("ab", "ab")), (3, ("ab", "ab")), (4, ("abab", None))]:
        pieces = ["a", "b", "a", "b"]
        text = CompletionText(joined(pieces), (), ["ab"], num_unstopped=num_unstopped)
        for index in range(len(pieces)):
            text.push(index)
        text.finish()
        assert (text.text, text.stop) == expected


def test_a_token_without_text_leaves_the_text_as_it_is() -> None:
    text = CompletionText(joined(["a", "b"]), ())
    text.push(0)
    text.push(1, has_text=False)
    text.finish()
    assert (text.text, text.spans) == ("a", [(0, 1), (1, 1)])
