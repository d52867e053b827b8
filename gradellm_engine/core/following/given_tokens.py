"""The tokens of a completion that are given rather than chosen by the model; of a followed one, more come later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradellm_engine.core.following.agreement import Agreement, GivenLogprobs, NumberFormat, Verdict
from gradellm_engine.core.sampler import Distribution
from gradellm_engine.errors import InvalidRequestError


@dataclass(frozen=True)
class Following:
    """How a completion is followed that another engine writes.

    Attributes:
        theirs: the other engine's number format.
        ours: this engine's.
        agreement: on tokens that were compared before this request: of a resumed one.
    """

    theirs: NumberFormat
    ours: NumberFormat
    agreement: Agreement = Agreement()


@dataclass(frozen=True)
class FollowSettings:
    """Settings of a request that follows another engine.

    Attributes:
        max_new_tokens: the most tokens of the completion; None for as many as the context leaves.
        upstream_dtype: the other engine's number format.
        num_alternatives: the most probable tokens that are returned beside each.
        ids: tokens that the completion begins with, of a resumed request: they are context, and neither emitted,
            compared nor explained.
        agreement: on these tokens.
    """

    max_new_tokens: int | None = None
    upstream_dtype: NumberFormat = NumberFormat.BFLOAT16
    num_alternatives: int = 0
    ids: tuple[int, ...] = ()
    agreement: Agreement = Agreement()

    def check(self, max_new_tokens: int) -> None:
        """Refuse more `ids` than the completion may have tokens.

        Raises:
            InvalidRequestError: naming the field.
        """
        if len(self.ids) > max_new_tokens:
            raise InvalidRequestError(
                "completion_ids", f"are {len(self.ids)} tokens; max_new_tokens allows {max_new_tokens} in all"
            )


class GivenTokens:
    """Given tokens, from the completion's first on.

    Attributes:
        ids: those that are known.
        is_open: whether more may come.
        agreement: on all tokens that have been compared.
    """

    def __init__(self, ids: Sequence[int], following: Following | None, *, num_read: int) -> None:
        """`num_read` of the `ids` are context: they are not compared, and need no chunk."""
        self.ids = list(ids)
        self.is_open = following is not None
        self._following = following
        self._logprobs: dict[int, GivenLogprobs] = {}  # of tokens that are to be compared
        self.agreement = following.agreement if following else Agreement()
        self._since, self._first = Agreement(), 0  # the last chunk, from this token on
        self._num_flushed = num_read

    def append(self, ids: Sequence[int], logprobs: Sequence[GivenLogprobs]) -> None:
        """Add tokens, with the other engine's log-probabilities at each, or without."""
        given = enumerate(logprobs, start=len(self.ids))
        self._logprobs.update((index, each) for index, each in given if each.is_known)
        self.ids += ids

    def flush(self) -> None:
        """Explain what is there, without waiting for a whole chunk."""
        self._num_flushed = len(self.ids)

    def close(self) -> None:
        """No more tokens come."""
        self.is_open = False

    def is_due(self, done: int, chunk_size: int) -> bool:
        """Whether the tokens after the first `done` are enough for a chunk."""
        left = len(self.ids) - done
        return left > 0 and (not self.is_open or left >= chunk_size or done < self._num_flushed)

    def compare(self, index: int, distribution: Distribution) -> None:
        """Compare the log-probabilities that were given at a token with the model's own; nothing where none were."""
        if (given := self._logprobs.pop(index, None)) is None:
            return
        if not self._since.num_tokens:
            self._first = index
        self._since += Agreement.of(given, distribution.compared(self.ids[index], len(given.alternatives)))

    def take_agreement(self) -> tuple[int, Agreement] | None:
        """The agreement since the last call, with its first token's index; None where nothing was compared."""
        chunk, self._since = self._since, Agreement()
        self.agreement += chunk
        return (self._first, chunk) if chunk.num_tokens else None

    @property
    def verdict(self) -> Verdict | None:
        """Whether the engine that wrote the tokens runs the same model; None for tokens that are not followed."""
        if self._following is None:
            return None
        return self.agreement.verdict(self._following.theirs, self._following.ours)
