"""The tokens that a request's grammar allows next.

The mask of a token is computed on a worker thread as soon as the token before it is chosen, so beside the model's pass.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.structured.settings import StructuredOutput


@dataclass(frozen=True)
class AllowedTokens:
    """The tokens that may come next.

    Attributes:
        mask: True for each of them, on the CPU. [V], bool
        only: the one token, where there is one: the grammar leaves no choice. Of several that end the text, the
            model's own.
    """

    mask: Tensor
    only: int | None


@dataclass(frozen=True)
class EndTokens:
    """The tokens that end a text.

    Attributes:
        ids: all of them.
        first: the one that a finished grammar chooses.
    """

    ids: Collection[int]
    first: int


class GrammarState:
    """How far a request's completion has come in its grammar; belongs to one request.

    Args:
        settings: the request's settings, for errors.
        matcher: at the grammar's start; not shared.
        end: the tokens that end a text.
        vocab_size: tokens of the model, V.
        workers: threads that compute masks.
        allowed: the tokens that are allowed first, if they are known.
    """

    def __init__(
        self,
        settings: StructuredOutput,
        matcher: LLMatcher,
        end: EndTokens,
        vocab_size: int,
        workers: Executor,
        allowed: AllowedTokens | None = None,
    ) -> None:
        self._settings, self._matcher, self._end = settings, matcher, end
        self._vocab_size, self._workers = vocab_size, workers
        self._num_tokens = 0
        self._is_ended = False
        self._next: Future[AllowedTokens] | AllowedTokens | None = allowed

    def allowed_tokens(self) -> AllowedTokens:
        """The tokens that may come next; waits for the worker that computes them.

        Raises:
            InvalidRequestError: where the grammar cannot be followed any further.
        """
        if self._next is None:
            self._next = self._compute()
        elif isinstance(self._next, Future):
            self._next = self._next.result()
        return self._next

    def advance(self, token_id: int) -> bool:
        """Take the next token, one of those that are allowed; returns whether no other one was."""
        is_forced = self.allowed_tokens().only == token_id
        self._num_tokens += 1
        if token_id in self._end.ids:
            self._is_ended = True
        if not self._is_ended:
            self._next = self._workers.submit(self._take, token_id)
        return is_forced

    def advance_all(self, ids: Collection[int]) -> None:
        """Take the tokens that a resumed completion begins with.

        Raises:
            InvalidRequestError: where the grammar does not allow one of them.
        """
        for index, token_id in enumerate(ids):
            if not self.allowed_tokens().mask[token_id]:
                raise InvalidRequestError(
                    f"forced_ids[{index}]", f"token {token_id} is not allowed here by {self._settings.field}"
                )
            self.advance(token_id)

    def _take(self, token_id: int) -> AllowedTokens:
        """Advance the matcher and compute the next mask; on a worker."""
        if not self._matcher.consume_token(token_id):
            raise self._error(self._matcher.get_error())
        return self._compute()

    def _compute(self) -> AllowedTokens:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise self._error(self._matcher.get_error())
        mask = np.unpackbits(bits, bitorder="little")[: self._vocab_size].view(np.bool_)
        count = int(np.count_nonzero(mask))
        is_end = count <= len(self._end.ids) and all(i in self._end.ids for i in np.flatnonzero(mask).tolist())
        if count == 0 or (is_end and not self._matcher.is_accepting()):
            raise self._error("no text that fits goes on from here")
        only = self._end.first if is_end else int(mask.argmax()) if count == 1 else None
        return AllowedTokens(torch.from_numpy(mask), only)

    def _error(self, message: str) -> InvalidRequestError:
        line = message.split("<state>")[0].strip().split("\n")[0][:200]
        if line.startswith("NoExtension"):
            line = "no text that fits goes on from here"
        where = f"after {self._num_tokens} tokens" if self._num_tokens else "at its start"
        return InvalidRequestError(
            self._settings.field, f"cannot be followed {where}: {line}; simplify it, or take out what contradicts"
        )
