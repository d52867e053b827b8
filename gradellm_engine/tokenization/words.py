r"""Words: groups of tokens of a prompt or a completion, by Unicode's word boundaries (UAX #29).

A word is a word of UAX #29 that holds a letter, a digit, an ideograph or an emoji, with its neighbouring characters:

- White space belongs to the word after it; at the end of a message, to the last word.
- Punctuation and symbols belong to the word before them, or after white space to the word after them. Opening brackets,
  and connectors such as "_" that are not inside a word, belong to the word after them. Between white space, all these
  are a word of their own.
- A word begins at a token. Boundaries inside a token do not count, so that no token is in two words. After a token that
  ends in white space, the next token begins a word.
- A special token is a word of its own, and no word spans two messages.
- Tokens that are parts of one character are in that character's word.

By UAX #29 every Chinese character, hiragana and Thai cluster is a word. Finer rules would need dictionaries; a token of
several such characters keeps them together.

A token's word depends only on the text up to it, and on the whole character where the token is the first part of one.
So the words of streamed tokens are those of the finished text. The rules of UAX #29 that look further ahead (WB6, WB7b,
WB12) only join a mark, such as the point of "3.14", to the word before it, which all punctuation does here.

The rules are one pattern of the `regex` package, which knows Unicode's character properties. The package's own word
boundaries (`\b` with the flag WORD) differ from UAX #29 at flags and marks, and take quadratic time over rows of flags.
The pattern's quantifiers are possessive: its time is linear in the text.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import regex

MAX_PARTS = 4  # tokens of one character at most: its bytes in UTF-8

_IGNORED = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]"
_ALSO = rf"{_IGNORED}*+"  # WB4: marks belong to the character before them
_HEBREW = rf"\p{{WB=Hebrew_Letter}} {_ALSO}"
_LETTER = rf"[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}] {_ALSO}"
_DIGIT = rf"\p{{WB=Numeric}} {_ALSO}"
_IN_LETTERS = rf"[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}] {_ALSO}"
_IN_DIGITS = rf"[\p{{WB=MidNum}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}] {_ALSO}"
_CONNECTOR = rf"(?: \p{{WB=ExtendNumLet}} {_ALSO} )"  # such as _
_RUN = rf"""(?:
    (?: {_HEBREW} \p{{WB=Double_Quote}} {_ALSO} (?= {_HEBREW} )
      | {_LETTER} (?: {_IN_LETTERS} (?= {_LETTER} ) )?+
      | {_DIGIT} (?: {_IN_DIGITS} (?= {_DIGIT} ) )?+
    )++                                                                         # WB5 to WB12
  | (?: \p{{WB=Katakana}} {_ALSO} )++                                           # WB13
)"""
_SEGMENT = regex.compile(
    rf"""
    (?P<space> \s++ )
  | (?: (?P<word>
            {_CONNECTOR}*+ {_RUN} (?: {_CONNECTOR}++ {_RUN} )*+ {_CONNECTOR}*+  # WB13a, WB13b
          | \p{{RI}} {_ALSO} (?: \p{{RI}} {_ALSO} )?+                           # WB15, WB16: flags
          | [[\p{{Alphabetic}}\p{{Nd}}\p{{Extended_Pictographic}}]--{_IGNORED}] {_ALSO}
        )
      | (?P<opener> \p{{Ps}} {_ALSO} | {_CONNECTOR}++ )
      | . {_ALSO}
    )
    (?: (?<= \N{{ZERO WIDTH JOINER}} ) \p{{Extended_Pictographic}} {_ALSO} )*+  # WB3c: emoji of several
    """,
    regex.VERBOSE | regex.DOTALL | regex.VERSION1,
)
_IGNORABLE = regex.compile(_IGNORED, regex.VERSION1)
_FLAG = regex.compile(r"\p{RI}\p{RI}", regex.VERSION1)
_IDEOGRAPH = regex.compile(r"[\p{Alphabetic}--\P{WB=Other}]", regex.VERSION1)  # no rule joins another character to them
_JOINER = "\u200d"


class _State(NamedTuple):
    """The part of the earlier text that later word boundaries depend on."""

    before: str = ""  # the last characters that boundaries depend on
    has_text: bool = False  # there is more than white space since the last boundary
    has_word: bool = False  # there is a word of UAX #29 since the last boundary
    may_start: bool = False  # only white space follows a boundary


_START = _State()


class WordCounter:
    """Assigns word indexes, from 0, to the tokens of a growing sequence.

    Attributes:
        words: the word index of each decided token, in order.
    """

    def __init__(self) -> None:
        self.words: list[int] = []
        self._num_waiting = 0  # undecided tokens: parts of a character that is incomplete
        self._message: Hashable = None
        self._state = _START
        self._must_start = True  # the next token begins a word
        self._read: dict[tuple[_State, str], tuple[bool, _State]] = {}  # cache: most tokens occur again

    def push(
        self, text: str, *, special: bool = False, message: Hashable = None, shares_character: bool = False
    ) -> None:
        """Add the next token.

        Args:
            text: the text that it adds. Empty for a token without text, and for a part of a character that a later
                token completes: it is decided with the next text, or after `MAX_PARTS` such tokens.
            special: whether it is a special token.
            message: identifies its message; no word spans two messages.
            shares_character: whether its text begins with a character that an earlier token is a part of.
        """
        if special or message != self._message:
            self.finish()
            self._message = message
            self._state, self._must_start = _START, True
        if special:
            self._count(starts=True)
            self._must_start = True
        elif text:
            state = self._state._replace(before="") if text[0].isspace() else self._state
            transition = self._read.get((state, text))
            if transition is None:
                transition = self._read[state, text] = _read(state, text)
            starts, self._state = transition
            starts = (starts and not shares_character) or self._must_start
            for _ in range(self._num_waiting + 1):
                self._count(starts=starts)
                starts = False
            self._num_waiting = 0
        elif shares_character:
            self._count(starts=self._must_start)
        else:
            self._num_waiting += 1
            if self._num_waiting == MAX_PARTS:
                self._num_waiting -= 1
                self._count(starts=self._must_start)

    def finish(self) -> None:
        """Decide the remaining tokens at the end of a message: they belong to the word before them."""
        for _ in range(self._num_waiting):
            self._count(starts=self._must_start)
        self._num_waiting = 0

    def _count(self, *, starts: bool) -> None:
        self.words.append(self.words[-1] + starts if self.words else 0)
        self._must_start = False


def _read(state: _State, text: str) -> tuple[bool, _State]:
    """Whether a token with this text begins a word, and the state after it."""
    before, has_text, has_word, may_start = state
    starts = False
    token_start = len(before)
    kind, segment, last_word = None, "", ""
    for found in _SEGMENT.finditer(before + text):
        last_word = segment if kind == "word" else ""
        kind, segment = found.lastgroup, found.group()
        if found.end() <= token_start:
            continue  # before the token
        is_new = found.start() >= token_start  # not the rest of a match that earlier tokens began
        if is_new and ((kind == "space" and has_text) or (kind in ("word", "opener") and has_word)):
            may_start, has_text, has_word = True, False, False
        if found.start() <= token_start:
            starts, may_start = may_start, False
        if kind != "space":
            may_start, has_text = False, True
            has_word = has_word or kind == "word"
    if kind == "space":
        return starts, _State("", has_text, has_word, may_start)
    before = "" if kind == "word" else _end(last_word)
    return starts, _State(before + _end(segment), has_text, has_word, may_start)


def _end(segment: str) -> str:
    """The last characters of a segment that later boundaries depend on.

    This is one character, or two for a flag. ASCII letters and digits are represented by "a" and "1".
    """
    if not segment:
        return ""
    joiner = _JOINER if segment.endswith(_JOINER) else ""
    bare = _IGNORABLE.sub("", segment) or segment[:1]
    last = bare[-2:] if _FLAG.fullmatch(bare) else bare[-1]
    if last.isascii() and last.isalnum():
        last = "1" if last.isdigit() else "a"
    elif _IDEOGRAPH.fullmatch(last):
        last = ""
    return last + joiner
