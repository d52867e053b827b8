"""A request whose completion another engine writes: its tokens come while it runs.

It is explained in chunks, as a given completion is: when `chunk_size` tokens are there, when the scheduler is told to
explain what there is (`flush`), and at the end. In between the request is idle: it keeps its KV slot, and takes part in
no pass. Its slot grows as tokens come. Methods over whole completions run once the completion is finished.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradellm_engine.core.following.agreement import GivenLogprobs
from gradellm_engine.core.outputs import ChunkAgreement
from gradellm_engine.core.request import Request
from gradellm_engine.core.request_spec import RequestSpec
from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.model.loader import LoadedModel

FIRST_SLOT_TOKENS = 256  # of the completion, for which the first slot has room


class FollowedRequest(Request):
    """A request that follows another engine. It also compares that engine's log-probabilities with the model's."""

    is_followed = True

    def __init__(self, model: LoadedModel, spec: RequestSpec) -> None:
        super().__init__(model, spec)
        self._is_chunked = False  # tokens between selected ones delay no row: it is replayed once it can be
        self.num_slot_tokens = min(self.num_tokens + self._num_forced_left + FIRST_SLOT_TOKENS, self.max_num_tokens)

    def append(self, ids: Sequence[int], logprobs: Sequence[GivenLogprobs]) -> None:
        """Add tokens that the other engine wrote, and its log-probabilities at each.

        Args:
            ids: tokens of the vocabulary.
            logprobs: as many, or none.

        Raises:
            InvalidRequestError: where they are too many, or come after the end.
            BusyError: where the KV cache has no room for them now.
        """
        if not self._given.is_open:
            raise InvalidRequestError("append", "comes after finish: a finished completion has no more tokens")
        count = len(self._given.ids) + len(ids)
        if count > self._sampler.max_new_tokens:
            raise InvalidRequestError(
                "append.ids",
                f"{count:,} tokens in all; at most {self._sampler.max_new_tokens:,} are possible: what max_new_tokens "
                "says, or the context leaves",
            )
        num_tokens = self._num_prompt_tokens + count
        if self.slot is None:
            self.num_slot_tokens = max(self.num_slot_tokens, num_tokens)
        elif num_tokens > self.slot.capacity:
            self.slot = self.slot.grow(min(self.max_num_tokens, max(num_tokens, 2 * self.slot.capacity)))
        self._given.append(ids, logprobs)

    def flush(self) -> None:
        """Explain the tokens that are there, without waiting for a whole chunk."""
        self._given.flush()

    @property
    def num_unread(self) -> int:
        """Tokens that have come and are not read."""
        return self._num_forced_left

    def finish(self) -> None:
        """No more tokens come: what is left is explained, and the request ends.

        Raises:
            InvalidRequestError: where the completion is too long for its method.
        """
        if not self._given.is_open:
            return
        if self._spec.check_post_hoc is not None:
            self._spec.check_post_hoc(len(self._given.ids))
        self._given.close()
        self._is_post_hoc_done |= not self._given.ids
        self._finish_if_ended(self.ids[-1])
        self.emit_tokens()
        self.close_if_done()

    def adapt_chunk_size(self, chunk_size: int, max_followed: int) -> None:
        """See `Request`; where it is behind, it catches up in chunks of up to `max_followed` tokens."""
        super().adapt_chunk_size(chunk_size, max_followed)
        self.max_forced_chunk = max(self.chunk_size, max_followed)

    def emit_tokens(self) -> None:
        """See `Request`; the agreement on a chunk comes after its tokens."""
        super().emit_tokens()
        compared, verdict = self._given.take_agreement(), self._given.verdict
        if compared is not None and verdict is not None:
            self.events.append(ChunkAgreement(*compared, self._given.agreement, verdict))
