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

from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import regex

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from gradellm_engine.tokenization.prompts import Prompt, PromptToken

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
_IDEOGRAPH = regex.compile(r"[\p{Alphabetic}--\P{WB=Other}]", regex.VERSION1)  # no rule joins anything to them
_JOINER = "\u200d"


class _State(NamedTuple):
    """What the words of later text depend on, of the text before it."""

    before: str = ""  # the last characters, as far as boundaries depend on them
    has_text: bool = False  # the text since the last boundary is more than white space
    has_word: bool = False  # it holds a word of UAX #29
    may_start: bool = False  # a boundary was passed, and only white space since


_START = _State()


class WordCounter:
    """Numbers the words of a growing sequence of tokens: 0 for those of the first word, and so on.

    Attributes:
        words: the word of each token that is decided, in order.
    """

    def __init__(self) -> None:
        self.words: list[int] = []
        self._num_waiting = 0  # tokens without text, which may be parts of the next character
        self._speaker: Hashable = None
        self._state = _START
        self._must_start = True  # the next token begins a word, whatever was before
        self._read: dict[tuple[_State, str], tuple[bool, _State]] = {}  # what came of it: most tokens come again

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
            self._state, self._must_start = _START, True
        if special:
            self._count(starts=True)
            self._must_start = True
        elif text:
            state = self._state._replace(before="") if text[0].isspace() else self._state
            read = self._read.get((state, text))
            if read is None:
                read = self._read[state, text] = _read(state, text)
            starts, self._state = read
            starts = (starts and not shares) or self._must_start
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


def _read(state: _State, text: str) -> tuple[bool, _State]:
    """Whether a token with this text begins a word, and the state after it."""
    before, has_text, has_word, may_start = state
    starts = False
    joint = len(before)  # where the token begins
    kind, segment, last_word = None, "", ""
    for found in _SEGMENT.finditer(before + text):
        last_word = segment if kind == "word" else ""
        kind, segment = found.lastgroup, found.group()
        if found.end() <= joint:
            continue  # what is before the token
        is_new = found.start() >= joint  # not the rest of what the tokens before began
        if is_new and ((kind == "space" and has_text) or (kind in ("word", "opener") and has_word)):
            may_start, has_text, has_word = True, False, False
        if found.start() <= joint:
            starts, may_start = may_start, False
        if kind != "space":
            may_start, has_text = False, True
            has_word = has_word or kind == "word"
    if kind == "space":
        return starts, _State("", has_text, has_word, may_start)
    before = "" if kind == "word" else _end(last_word)
    return starts, _State(before + _end(segment), has_text, has_word, may_start)


def _end(segment: str) -> str:
    """The last characters of a segment, as far as what follows it depends on them.

    That is one, but for flags, which are two; and for letters and digits any of their kind.
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
    return _join_last_spaces(prompt.tokens, counter.words)


def _join_last_spaces(tokens: Sequence[PromptToken], words: list[int]) -> list[int]:
    """White space at the end of a speaker's text goes with the word before it, as no word comes after it."""
    joined = set()
    for last, token in enumerate(tokens):
        if token.text.strip():
            continue
        if last + 1 < len(tokens) and _go_on(token, tokens[last + 1]):
            continue
        first = last  # of the last word, as long as that is white space
        while first > 0 and words[first - 1] == words[last] and not tokens[first].text.strip():
            first -= 1
        if first > 0 and not tokens[first].text.strip() and _go_on(tokens[first - 1], tokens[first]):
            joined.add(words[last])
    if not joined:
        return words
    taken = list(accumulate(number in joined for number in range(words[-1] + 1)))
    return [word - taken[word] for word in words]


def _go_on(before: PromptToken, after: PromptToken) -> bool:
    """Whether two tokens are of one speaker's text."""
    return not (before.special or after.special) and (before.role, before.message) == (after.role, after.message)
