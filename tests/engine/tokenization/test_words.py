"""Words: Unicode's boundaries, equal for a finished text and for streamed tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from gradellm_engine.tokenization.words import MAX_PARTS, WordCounter

Tokenizers = Callable[[str], PreTrainedTokenizerBase]


def numbered(pieces: Sequence[str]) -> list[int]:
    """The word index of each token; a token in angle brackets is special."""
    counter = WordCounter()
    for piece in pieces:
        counter.push(piece, special=piece.startswith("<|"))
    counter.finish()
    return counter.words


def grouped(pieces: Sequence[str]) -> list[str]:
    """The text of each word, without surrounding white space."""
    pairs = zip(numbered(pieces), pieces, strict=True)
    return ["".join(piece for _, piece in group).strip() for _, group in groupby(pairs, key=lambda pair: pair[0])]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, world.", "Hello,|world."),
        ("他说你好。今天天气很好", "他|说|你|好。|今|天|天|气|很|好"),
        ("「好」（一）", "「好」|（一）"),
        ("カタカナとひらがな", "カタカナ|と|ひ|ら|が|な"),
        ("สวัสดีครับ", "ส|วั|ส|ดี|ค|รั|บ"),
        ("مرحبا بالعالم، كيف؟", "مرحبا|بالعالم،|كيف؟"),
        ("צה\"ל ג'ירפה שלום!", "צה\"ל|ג'ירפה|שלום!"),
        ("안녕하세요 세계", "안녕하세요|세계"),
        ("ক্ষেত্র নমস্তে", "ক্ষেত্র|নমস্তে"),
        ("👩‍👩‍👧🇫🇷🇩🇪👍🏽 1️⃣x", "👩‍👩‍👧|🇫🇷|🇩🇪|👍🏽|1️⃣x"),
        ("can't you’re rock ’n’ roll", "can't|you’re|rock|’n’|roll"),
        ("3.14 1,000.5 $5 50% C++ 2024-01-02", "3.14|1,000.5|$5|50%|C++|2024-|01-|02"),
        ("foo_bar.baz(x) __init__ a=b", "foo_bar.baz|(x)|__init__|a=|b"),
        ("well-known “quoted” (in brackets) – dash", "well-|known|“quoted”|(in|brackets)|–|dash"),
        ("cafe\u0301.\u0301b e\u0301\u200bx", "cafe\u0301.\u0301b|e\u0301\u200b|x"),
        ("  two  spaces\r\n\nthen * a list", "two|spaces|then|*|a|list"),
        ("?! ...", "?!|..."),
        ("„Hallo“, sagte er", "„Hallo“,|sagte|er"),
        ("", ""),
    ],
)
def test_words_of_a_text_a_token_a_character(text: str, words: str) -> None:
    assert "|".join(grouped(list(text))) == words


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ((" On", "ce", " up", "on"), "Once|upon"),
        (("中国", "人", "。"), "中国|人。"),  # a boundary in a token does not count
        (("a", " b c", "d", " e"), "a|b cd|e"),
        (("a(", "b", " c"), "a(b|c"),
        (("End.\n", "\n", "The", " end"), "End.|The|end"),
        (("a ", "b", "\n"), "a|b|"),
        (("x", "<|end|>", "y", "<|end|>"), "x|<|end|>|y|<|end|>"),
        (("中", "", "", "国", "", "é"), "中|国|é"),  # parts of a character are in its word
        (("caf", "", "é", "s"), "cafés"),
        (("caf", "", ""), "caf"),  # the character stays incomplete
        (("caf", "", "<|end|>"), "caf|<|end|>"),
        (("", ""), ""),
    ],
)
def test_words_of_tokens(pieces: Sequence[str], words: str) -> None:
    assert "|".join(grouped(pieces)) == words


# --- UAX #29 ----------------------------------------------------------------------------------------------------------

# A character of each value of the property Word_Break that the rules distinguish.
KINDS = {
    "a": "ALetter", "é": "ALetter", "한": "ALetter", "א": "Hebrew_Letter", "1": "Numeric", "٣": "Numeric",
    "カ": "Katakana", "_": "ExtendNumLet", "'": "Single_Quote", '"': "Double_Quote", ".": "MidNumLet",
    "’": "MidNumLet", ":": "MidLetter", ",": "MidNum", "\u0301": "Extend", "\u00ad": "Format", "\u200d": "ZWJ",
    "🇫": "Regional_Indicator", "中": "Other", "の": "Other", "!": "Other", "(": "Other", "😀": "Other", "ส": "Other",
}  # fmt: skip
IGNORED = {"Extend", "Format", "ZWJ"}
AH_LETTER = {"ALetter", "Hebrew_Letter"}


def test_character_kinds_assumed_by_these_tests() -> None:
    for char, kind in KINDS.items():
        assert regex.fullmatch(rf"\p{{Word_Break={kind}}}", char), char


def is_boundary(text: str, position: int) -> bool:
    """The rules of UAX #29, one by one, as the standard's text has them (without white space)."""
    if position == 0:
        return True
    if text[position - 1] == "\u200d" and text[position] == "😀":  # WB3c
        return False
    if KINDS[text[position]] in IGNORED:  # WB4
        return False
    left = [KINDS[char] for char in text[:position] if KINDS[char] not in IGNORED]
    right = [KINDS[text[position]], *(KINDS[char] for char in text[position + 1 :] if KINDS[char] not in IGNORED), ""]
    before, earlier, after, later = (["", "", *left])[-1], (["", "", *left])[-2], right[0], right[1]
    in_letters, in_digits = {"MidLetter", "MidNumLet", "Single_Quote"}, {"MidNum", "MidNumLet", "Single_Quote"}
    flags = 0
    for kind in reversed(left):
        if kind != "Regional_Indicator":
            break
        flags += 1
    joined = (
        (before in AH_LETTER and after in AH_LETTER)  # WB5
        or (before in AH_LETTER and after in in_letters and later in AH_LETTER)  # WB6
        or (earlier in AH_LETTER and before in in_letters and after in AH_LETTER)  # WB7
        or (before == "Hebrew_Letter" and after == "Single_Quote")  # WB7a
        or (before == "Hebrew_Letter" and after == "Double_Quote" and later == "Hebrew_Letter")  # WB7b
        or (earlier == "Hebrew_Letter" and before == "Double_Quote" and after == "Hebrew_Letter")  # WB7c
        or (before == "Numeric" and after == "Numeric")  # WB8
        or (before in AH_LETTER and after == "Numeric")  # WB9
        or (before == "Numeric" and after in AH_LETTER)  # WB10
        or (earlier == "Numeric" and before in in_digits and after == "Numeric")  # WB11
        or (before == "Numeric" and after in in_digits and later == "Numeric")  # WB12
        or (before == "Katakana" and after == "Katakana")  # WB13
        or (before in {*AH_LETTER, "Numeric", "Katakana", "ExtendNumLet"} and after == "ExtendNumLet")  # WB13a
        or (before == "ExtendNumLet" and after in {*AH_LETTER, "Numeric", "Katakana"})  # WB13b
        or (before == after == "Regional_Indicator" and flags % 2 == 1)  # WB15, WB16
    )
    return not joined


def is_word(segment: str) -> bool:
    return any(char.isalnum() or char in "🇫😀" for char in segment)


def expected_words(text: str) -> list[str]:
    """The words of one message by the rules, over its whole text."""
    ends = [position for position in range(len(text)) if is_boundary(text, position)] + [len(text)]
    words: list[str] = []
    has_word = False
    for start, end in pairwise(ends):
        segment = text[start:end]
        if not words or (has_word and (is_word(segment) or segment[0] in "(_")):
            words.append("")
            has_word = False
        words[-1] += segment
        has_word = has_word or is_word(segment)
    return words


texts = st.text(st.sampled_from("".join(KINDS)), min_size=1, max_size=12)


@given(texts)
def test_words_follow_the_standard(text: str) -> None:
    # Not a text that begins with marks: WB4 has a special case for the beginning of a text.
    assert grouped(list(text)) == expected_words(text)


@given(st.lists(texts, min_size=1, max_size=6), st.lists(st.booleans(), min_size=80, max_size=80))
def test_streamed_words_equal_those_of_the_text(words: list[str], cuts: list[bool]) -> None:
    """For any tokenisation, a token begins a word where the text does; boundaries inside a token do not count."""
    text = " ".join(words)
    single = numbered(list(text))
    ends = [position for position in range(1, len(text)) if cuts[position]] + [len(text)]
    starts = [0, *ends[:-1]]
    found = numbered([text[start:end] for start, end in zip(starts, ends, strict=True)])
    for before, (start, end) in enumerate(zip(starts[1:], ends[1:], strict=True)):
        # A boundary is at the white space before a word, which may be in the token before.
        first = next((position for position in range(start, end) if not text[position].isspace()), end - 1)
        last = next((position for position in range(start - 1, -1, -1) if not text[position].isspace()), -1)
        is_at_boundary = single[start] != single[start - 1] or (
            text[start - 1].isspace() and last >= 0 and single[first] != single[last]
        )
        tail = text[starts[before] : start]
        already = tail.isspace() and found[before] != ([-1, *found])[before]  # the word began with the white space
        assert (found[before + 1] != found[before]) == (is_at_boundary and not already), (start, found)


@given(st.lists(st.sampled_from(["a", " b", "", ".", "<|e|>", "中", " ", "é"]), max_size=20))
def test_decided_words_do_not_change(pieces: list[str]) -> None:
    counter = WordCounter()
    before: list[int] = []
    for index, piece in enumerate(pieces):
        counter.push(piece, special=piece.startswith("<|"))
        assert counter.words[: len(before)] == before
        assert len(counter.words) > index + 1 - MAX_PARTS  # incomplete characters are decided after MAX_PARTS tokens
        before = list(counter.words)
    counter.finish()
    assert len(counter.words) == len(pieces)
    assert all(b - a in (0, 1) for a, b in pairwise(counter.words))


@pytest.mark.parametrize(
    "unit", ["a", "🇫", "\u0301", "_", "カ_", ".", "a.", 'א"', "1,", "\u200d", "😀\u200d", " ", "("]
)
def test_the_pattern_never_reads_far_back(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a few characters of the text before a token are read again."""
    counter = WordCounter()
    for _ in range(3):
        counter.push(unit * 50)
        assert len(counter._state.before) <= 3
    counter.push(unit * 20_000)  # in one token: takes seconds unless linear
