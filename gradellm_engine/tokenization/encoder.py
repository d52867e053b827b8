"""Text to token ids and offsets: bounded, interruptible, and without holding the GIL.

`TextEncoder` calls the tokenizer's Rust core directly, by `encode_batch`, which releases the GIL (`encode` does not),
and never changes its settings, so one thread may encode while another decodes.

A long text is encoded in pieces, cut between a letter and a space before another letter, if that gives the same tokens:
no token of the vocabulary may span such a boundary, and a set of samples must encode equally both ways. Between pieces
the caller's `interruption_point` may end the work. Of a text that is much longer than the token limit's usual number of
characters, some pieces are counted first, cut anywhere, so that a text with far too many tokens is refused early.
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
USUAL_BYTES = 8  # UTF-8 bytes of a token; a text with more bytes a token of the limit is counted first
COUNTED_PIECES = 10  # every tenth piece is counted first, which costs an accepted text a tenth more
CUT_TOKENS = 64  # the most tokens that a cut at an arbitrary position may add
MIN_LONGEST_TOKEN = 8  # characters; a vocabulary of single characters still takes decomposed text

Array = NDArray[np.int64]

# Called between stages and pieces of reading a request; an exception ends that work. The server sets it so that a
# request's deadline or cancellation ends the reading.
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
        ids: token ids. [T]
        starts: first code point of each token. [T]
        ends: one past its last code point. [T]
    """

    ids: Array
    starts: Array
    ends: Array

    def shifted(self, by: int) -> Encoding:
        """The same tokens, `by` code points later in a text."""
        return Encoding(self.ids, self.starts + by, self.ends + by)


class TooManyTokensError(Exception):
    """A text has more tokens than the limit.

    Attributes:
        count: tokens counted so far.
        is_all: whether the whole text was counted.
    """

    def __init__(self, count: int, *, is_all: bool) -> None:
        super().__init__(count)
        self.count, self.is_all = count, is_all


class TextEncoder:
    """Encodes and decodes with a tokenizer's Rust core.

    Attributes:
        tokenizer: the tokenizer.
        core: its Rust core, a `tokenizers.Tokenizer`; truncation and padding are switched off.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.core: Any = tokenizer.backend_tokenizer
        self.core.no_truncation()
        self.core.no_padding()
        self._texts: dict[int, str] = {}

    def prepare(self) -> None:
        """Compute the cached properties now, so that the first long text does not wait for them."""
        for name in ("special_ids", "longest_token", "can_split"):
            getattr(self, name)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Special tokens: those with a role (BOS, EOS), and added tokens marked special, such as template headers."""
        marked = (token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special)
        return frozenset([*self.tokenizer.all_special_ids, *marked])

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest vocabulary entry, an upper bound of the characters of a token's text."""
        return max(MIN_LONGEST_TOKEN, *(len(token) for token in self.core.get_vocab(with_added_tokens=True)))

    @cached_property
    def can_split(self) -> bool:
        """Whether a text encodes equally in pieces and as a whole; False where the tokenizer fails on this check."""
        try:
            if any(map(_SPANNING.search, self._vocabulary_texts())):
                return False
            return all(
                [token_id for piece in _split(sample, 1) for token_id in self._encode(piece, False).ids.tolist()]
                == self._encode(sample, False).ids.tolist()
                for sample in _SAMPLES
            )
        except TokenizerError:
            return False

    def _vocabulary_texts(self) -> list[str]:
        """The text of every token."""
        ids = [[token_id] for token_id in self.core.get_vocab(with_added_tokens=True).values()]
        try:
            texts: list[str] = self.core.decode_batch(ids, skip_special_tokens=False)
        except BaseException as error:
            raise _tokenizer_error(error) from None
        return texts

    @cached_property
    def _added(self) -> tuple[Encoding, Encoding]:
        """The tokens that the tokenizer adds before and after a text (BOS, EOS), with empty spans."""
        plain, added = (self._encode("a", add_special_tokens).ids for add_special_tokens in (False, True))
        for before in range(len(added) - len(plain) + 1):
            if np.array_equal(added[before : before + len(plain)], plain):
                return tuple(  # type: ignore[return-value]
                    Encoding(ids, np.zeros_like(ids), np.zeros_like(ids))
                    for ids in (added[:before], added[before + len(plain) :])
                )
        raise TokenizerError("adds special tokens within a text")

    def encode(self, text: str, *, add_special_tokens: bool, max_tokens: int | None = None) -> Encoding:
        """The tokens of a text.

        Raises:
            TooManyTokensError: where there are more than `max_tokens`; a long text is not encoded to its end.
            TokenizerError: where the tokenizer fails on the text.
        """
        if max_tokens is not None and len(text.encode(errors="replace")) > max(
            PIECE_CHARACTERS, USUAL_BYTES * max_tokens
        ):
            self._check_count(text, max_tokens)
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

    def _check_count(self, text: str, max_tokens: int) -> None:
        """Refuse a text with far too many tokens, by counting the tokens of pieces that are cut anywhere.

        First a sample of the pieces is counted; all of them only if the sample is near the limit.
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
        for piece in _split(text, PIECE_CHARACTERS):
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
            text: str = self.core.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            raise _tokenizer_error(error) from None
        return text

    def decode_alone(self, token_id: int) -> str:
        """The text of a single token, special or not; cached."""
        if (text := self._texts.get(token_id)) is None:
            text = self._texts[token_id] = self.decode([token_id], skip_special_tokens=False)
        return text

    def _encode(self, text: str, add_special_tokens: bool) -> Encoding:
        return _encoding_of(self._raw(text, add_special_tokens))

    def _raw(self, text: str, add_special_tokens: bool) -> Any:  # noqa: ANN401 (of Tokenizers' own type)
        try:
            (encoded,) = self.core.encode_batch([text], add_special_tokens=add_special_tokens)
        except BaseException as error:
            raise _tokenizer_error(error) from None
        return encoded


def _encoding_of(raw: Any) -> Encoding:  # noqa: ANN401
    offsets = np.asarray(raw.offsets, np.int64).reshape(-1, 2)
    return Encoding(np.asarray(raw.ids, np.int64), offsets[:, 0], offsets[:, 1])


def _split(text: str, least: int) -> list[str]:
    """A text cut at boundaries into pieces of at least `least` characters."""
    cuts = [0]
    while len(text) - cuts[-1] > least and (found := _BOUNDARY.search(text, cuts[-1] + least)):
        cuts.append(found.start())
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _tokenizer_error(error: BaseException) -> BaseException:
    """A panic or an error of the tokenizer as a `TokenizerError`.

    A panic of the Rust core is not an `Exception`. Its message may quote the user's text, so it is dropped.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return error
    return TokenizerError(f"fails on this text ({type(error).__name__})")
