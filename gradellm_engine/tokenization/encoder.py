"""Text to token ids and offsets, bounded, interruptible, and without the interpreter's lock.

`TextEncoder` calls the tokenizer's Rust core directly, by `encode_batch`, which releases the GIL (`encode` does not),
and never changes its settings, so that one thread may encode while another decodes.

A long text is encoded in pieces where that is the same: between a letter and a space before another letter, if no token
of the vocabulary spans such a place and a set of samples reads alike both ways. Between two pieces the caller's
`interruption_point` may end the work. Of text that is much longer than the limit's tokens usually are, some pieces
are counted first, cut anywhere: what has far too many tokens is refused before its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from gradellm_engine.errors import TokenizerError

PIECE_CHARACTERS = 1 << 15
USUAL_BYTES = 8  # of a token in UTF-8, at most: a longer text is counted before it is encoded
COUNTED_PIECES = 10  # one in so many, so that a text that is taken costs a tenth more
CUT_TOKENS = 64  # that a cut anywhere may add to a text, at most
MIN_LONGEST_TOKEN = 8  # characters; a vocabulary of single characters still takes decomposed text

Array = NDArray[np.int64]

# Called between stages and pieces of reading a request; what it raises ends that work. A server sets it, so that a
# caller's deadline and cancel end the work on its request.
interruption_point: ContextVar[Callable[[], None]] = ContextVar("gradellm_interruption_point", default=lambda: None)

_BOUNDARY = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")
_SPANNING = re.compile(r"[^\W\d_] [^\W\d_]")
_SAMPLES = (
    "The quick brown fox jumps over the lazy dog and doesn't look back at all",
    "Grüße aus München wo man gerne Äpfel isst",
    "a b c de fgh ijkl mnopq rstuvw xyz A B C De Fgh",
    "x = foo (bar) if not baz else qux\n\tdef quux of course",
    "日本語 です ね and שלום עולם and مرحبا بالعالم",
    "e\u0301 a\u0308\u0323 o and  two  spaces 12 34 here",
)


@dataclass(frozen=True)
class Encoding:
    """Tokens of a text.

    Attributes:
        ids: their ids. [T]
        starts: each token's first code point. [T]
        ends: one past its last. [T]
    """

    ids: Array
    starts: Array
    ends: Array

    def shifted(self, by: int) -> Encoding:
        """The same tokens, so many code points later."""
        return Encoding(self.ids, self.starts + by, self.ends + by)


class TooManyTokensError(Exception):
    """A text has more tokens than the limit.

    Attributes:
        count: how many, as far as it was read.
        is_all: whether it was read to its end.
    """

    def __init__(self, count: int, *, is_all: bool) -> None:
        super().__init__(count)
        self.count, self.is_all = count, is_all


class TextEncoder:
    """A tokenizer's text side.

    Attributes:
        tokenizer: whose ids they are. Its Rust core neither truncates nor pads from now on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._core: Any = tokenizer.backend_tokenizer
        self._core.no_truncation()
        self._core.no_padding()
        self._alone: dict[int, str] = {}

    def prepare(self) -> None:
        """Find out now what the first long text would have to wait for."""
        for name in ("special_ids", "longest_token", "can_split"):
            getattr(self, name)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are no text: those with a task of their own (BOS, EOS), and those that are only marked so.

        Templates' headers are often among the latter alone.
        """
        marked = (token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special)
        return frozenset([*self.tokenizer.all_special_ids, *marked])

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token, as its vocabulary writes it: never fewer than it stands for."""
        return max(MIN_LONGEST_TOKEN, *(len(token) for token in self._core.get_vocab(with_added_tokens=True)))

    @cached_property
    def can_split(self) -> bool:
        """Whether text may be encoded in pieces: see the module."""
        ids = [[token_id] for token_id in self._core.get_vocab(with_added_tokens=True).values()]
        if any(map(_SPANNING.search, self._core.decode_batch(ids, skip_special_tokens=False))):
            return False
        try:
            return all(
                [token_id for piece in _pieces(sample, 1) for token_id in self._encode(piece, False).ids.tolist()]
                == self._encode(sample, False).ids.tolist()
                for sample in _SAMPLES
            )
        except TokenizerError:  # it does not take every text
            return False

    @cached_property
    def _added(self) -> tuple[Encoding, Encoding]:
        """What the tokenizer adds before and after a text (BOS, EOS), without a length."""
        plain, added = (self._encode("a", add_special_tokens).ids for add_special_tokens in (False, True))
        for before in range(len(added) - len(plain) + 1):
            if np.array_equal(added[before : before + len(plain)], plain):
                return tuple(  # type: ignore[return-value]
                    Encoding(ids, np.zeros_like(ids), np.zeros_like(ids))
                    for ids in (added[:before], added[before + len(plain) :])
                )
        raise TokenizerError("adds tokens within a text")

    def encode(self, text: str, *, add_special_tokens: bool, max_tokens: int | None = None) -> Encoding:
        """A text's tokens.

        Raises:
            TooManyTokensError: where they are more than `max_tokens`; for a long text, found out before its end.
            TokenizerError: where the tokenizer itself fails on the text.
        """
        if max_tokens is not None and len(text.encode(errors="replace")) > max(
            PIECE_CHARACTERS, USUAL_BYTES * max_tokens
        ):
            self._check_about(text, max_tokens)
        if len(text) <= PIECE_CHARACTERS or not self.can_split:
            raw = self._raw(text, add_special_tokens)
            if max_tokens is not None and len(raw) > max_tokens:
                raise TooManyTokensError(len(raw), is_all=True)
            encoded = [_encoding_of(raw)]
        else:
            encoded = self._encode_in_pieces(text, max_tokens)
            if add_special_tokens:
                before, after = self._added
                encoded = [before, *encoded, after.shifted(len(text))]
        interruption_point.get()()
        joined = Encoding(*(np.concatenate([getattr(e, name) for e in encoded]) for name in ("ids", "starts", "ends")))
        if max_tokens is not None and len(joined.ids) > max_tokens:
            raise TooManyTokensError(len(joined.ids), is_all=True)
        return joined

    def _check_about(self, text: str, max_tokens: int) -> None:
        """Refuse a text with far too many tokens, by counting them in pieces that are cut anywhere.

        A few of the pieces tell whether all of them should be counted.
        """
        limit, size = max_tokens + max_tokens // 4, max(1 << 12, len(text) // 40)
        for step, enough in ((COUNTED_PIECES * size, limit // COUNTED_PIECES), (size, limit)):
            count = 0
            for start in range(0, len(text), step):
                interruption_point.get()()
                count += len(self._raw(text[start : start + size], False)) - CUT_TOKENS
                if count > limit:
                    raise TooManyTokensError(max_tokens, is_all=False)
            if count <= enough:
                return

    def _encode_in_pieces(self, text: str, max_tokens: int | None) -> list[Encoding]:
        encoded: list[Encoding] = []
        start = count = 0
        for piece in _pieces(text, PIECE_CHARACTERS):
            interruption_point.get()()
            raw = self._raw(piece, False)
            count += len(raw)
            if max_tokens is not None and count > max_tokens:
                raise TooManyTokensError(count, is_all=start + len(piece) == len(text))
            encoded.append(_encoding_of(raw).shifted(start))
            start += len(piece)
        return encoded

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Token ids as text, without the tokenizer's cosmetic clean-up of spaces."""
        try:
            text: str = self._core.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            raise _named(error) from None
        return text

    def decode_alone(self, token_id: int) -> str:
        """One token's text, special or not; kept, for it is asked for again and again."""
        if (text := self._alone.get(token_id)) is None:
            text = self._alone[token_id] = self.decode([token_id], skip_special_tokens=False)
        return text

    def _encode(self, text: str, add_special_tokens: bool) -> Encoding:
        return _encoding_of(self._raw(text, add_special_tokens))

    def _raw(self, text: str, add_special_tokens: bool) -> Any:  # noqa: ANN401 (of Tokenizers' own type)
        try:
            (encoded,) = self._core.encode_batch([text], add_special_tokens=add_special_tokens)
        except BaseException as error:
            raise _named(error) from None
        return encoded


def _encoding_of(raw: Any) -> Encoding:  # noqa: ANN401
    offsets = np.asarray(raw.offsets, np.int64).reshape(-1, 2)
    return Encoding(np.asarray(raw.ids, np.int64), offsets[:, 0], offsets[:, 1])


def _pieces(text: str, least: int) -> list[str]:
    """A text cut at the first boundaries that leave pieces of at least so many characters."""
    cuts = [0]
    while len(text) - cuts[-1] > least and (found := _BOUNDARY.search(text, cuts[-1] + least)):
        cuts.append(found.start())
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _named(error: BaseException) -> BaseException:
    """A tokenizer that panics, or refuses a text, as an error of this project's own.

    A panic of its Rust core is no `Exception`, and what it says may quote the text: it goes no further.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return error
    return TokenizerError(f"fails on this text ({type(error).__name__})")
