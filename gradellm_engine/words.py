r"""Words: which tokens of a prompt or a completion belong together, by Unicode's word boundaries (UAX #29).

A word is a word of UAX #29 that holds a letter, a digit, an ideograph or an emoji, with what stands beside it:

- White space belongs to the word after it; at the end of a speaker's text in a prompt, to the last word.
- Punctuation and symbols belong to the word before them where no white space lies between, else to the word after
  them. Opening brackets, and connectors such as "_" that are not in a word, belong to the word after them. Between
  white space all these are a word of their own.
- A word begins at a token. A boundary inside a token does not count: the words that it would part are one, so that no
  token is in two. After a token that ends in white space, the next one begins a word.
- A special token is a word of its own, and no word goes on from one speaker to another.
- Tokens that are parts of one character are in that character's word.

By UAX #29 every Chinese character, hiragana and Thai cluster is a word. Finer rules need dictionaries; a token of
several such characters keeps them together.

A token's word is decided by the text up to it, and by the whole character where the token is the first part of one: the
words of a stream are those of the finished text. The rules of UAX #29 that look further ahead (WB6, WB7b, WB12) only
join a mark, such as the point of "3.14", to what is before it, which holds for all punctuation here.

The `regex` package has Unicode's properties of characters. Its own boundaries (`\b` with the flag WORD) differ from
UAX #29 beside flags and marks, and take quadratic time over a row of flags; so the rules are one pattern here. Its
quantifiers are possessive: time is linear in the text.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import regex

if TYPE_CHECKING:
    from collections.abc import Hashable

    from gradellm_engine.prompts import Prompt

MAX_PARTS = 4  # tokens of one character at most: its bytes in UTF-8

_IGNORED = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]"
_ALSO = rf"{_IGNORED}*+"  # WB4: marks count as a part of what is before them
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
          | [\p{{Alphabetic}}\p{{Nd}}\p{{Extended_Pictographic}}] {_ALSO}
        )
      | (?P<opener> \p{{Ps}} {_ALSO} | {_CONNECTOR}++ )
      | . {_ALSO}
    )
    (?: (?<= \N{{ZERO WIDTH JOINER}} ) \p{{Extended_Pictographic}} {_ALSO} )*+  # WB3c: emoji of several
    """,
    regex.VERBOSE | regex.DOTALL | regex.VERSION1,
)
_IGNORABLE = regex.compile(_IGNORED, regex.VERSION1)
_JOINER = "\u200d"


class WordCounter:
    """Numbers the words of a growing sequence of tokens: 0 for those of the first word, and so on.

    Attributes:
        words: the word of each token that is decided, in order.
    """

    def __init__(self) -> None:
        self.words: list[int] = []
        self._num_waiting = 0  # tokens without text, which may be parts of the next character
        self._speaker: Hashable = None
        self._begin()

    def _begin(self) -> None:
        """Have the next token begin a word, whatever was before."""
        self._must_start = True
        self._may_start = False  # a boundary was passed, and only white space since
        self._has_text = False  # the text since the last boundary is more than white space
        self._has_word = False  # it holds a word of UAX #29
        self._before = ""  # the last characters, as far as boundaries depend on them

    def push(self, text: str, *, special: bool = False, speaker: Hashable = None, shares: bool = False) -> None:
        """Take the next token.

        Args:
            text: what it adds to the text. Empty for a token without text, and for a part of a character that a later
                token completes: it is decided with the next text, or after `MAX_PARTS` such tokens.
            special: whether it is a special token.
            speaker: whose words it carries.
            shares: whether its text begins with a character that an earlier token had already.
        """
        if special or speaker != self._speaker:
            self.finish()
            self._speaker = speaker
            self._begin()
        if special:
            self._count(starts=True)
            self._must_start = True
        elif text:
            starts = self._must_start
            starts = (self._begins_word(text) and not shares) or starts
            for _ in range(self._num_waiting + 1):
                self._count(starts=starts)
                starts = False
            self._num_waiting = 0
        elif shares:
            self._count(starts=self._must_start)
        else:
            self._num_waiting += 1
            if self._num_waiting == MAX_PARTS:
                self._num_waiting -= 1
                self._count(starts=self._must_start)

    def finish(self) -> None:
        """Decide the tokens that wait: no text follows, so they go with the word before them."""
        for _ in range(self._num_waiting):
            self._count(starts=self._must_start)
        self._num_waiting = 0

    def _count(self, *, starts: bool) -> None:
        self.words.append(self.words[-1] + starts if self.words else 0)
        self._must_start = False

    def _begins_word(self, text: str) -> bool:
        """Read a token's text; whether it begins a word."""
        starts = False
        joint = len(self._before)  # where the token begins
        kind, segment, last_word = None, "", ""
        for found in _SEGMENT.finditer(self._before + text):
            last_word = segment if kind == "word" else ""
            kind, segment = found.lastgroup, found.group()
            if found.end() <= joint:
                continue  # what is before the token
            is_new = found.start() >= joint  # not the rest of what the tokens before began
            if is_new and ((kind == "space" and self._has_text) or (kind in ("word", "opener") and self._has_word)):
                self._may_start, self._has_text, self._has_word = True, False, False
            if found.start() <= joint:
                starts, self._may_start = self._may_start, False
            if kind != "space":
                self._may_start, self._has_text = False, True
                self._has_word = self._has_word or kind == "word"
        if kind == "space":
            self._before = ""
        else:
            self._before = _end(segment, 2) if kind == "word" else _end(last_word, 1) + _end(segment, 1)
        return starts


def _end(segment: str, count: int) -> str:
    """The last characters of a segment, as far as what follows it depends on them."""
    if not segment:
        return ""
    joiner = _JOINER if segment.endswith(_JOINER) else ""
    return (_IGNORABLE.sub("", segment)[-count:] or segment[:1]) + joiner


def prompt_words(prompt: Prompt) -> list[int]:
    """The word of each token of a prompt."""
    counter, end = WordCounter(), 0
    for token in prompt.tokens:
        counter.push(
            prompt.text[end : token.end],
            special=token.special,
            speaker=(token.role, token.message),
            shares=token.start < end,
        )
        end = max(end, token.end)
    counter.finish()
    return _join_last_spaces(prompt, counter.words)


def _join_last_spaces(prompt: Prompt, words: list[int]) -> list[int]:
    """White space at the end of a speaker's text goes with the word before it, as no word comes after it."""
    joined: list[int] = []
    taken = 0  # words that were joined to the one before
    before: tuple[object, ...] | None = None  # whose the word before is
    for word, group in groupby(zip(words, prompt.tokens, strict=True), key=itemgetter(0)):
        tokens = [token for _, token in group]
        whose = None if tokens[0].special else (tokens[0].role, tokens[0].message)
        if whose is not None and whose == before and not "".join(token.text for token in tokens).strip():
            taken += 1
        before = whose
        joined += [word - taken] * len(tokens)
    return joined
