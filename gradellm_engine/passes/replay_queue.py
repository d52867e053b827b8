"""Tokens of one sequence that wait for a replay which explains them."""

from __future__ import annotations

from collections import deque
from itertools import islice

from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk, Target


class ReplayQueue:
    """Completion tokens that wait for their scores, in order, each with its target.

    Tokens that are not explained are not in the queue: a replay reads only what the explained ones need.
    """

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._waiting: deque[tuple[int, Target]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest(self) -> int:
        """Index in the completion of the token that waits longest.

        Raises:
            IndexError: where none waits.
        """
        return self._waiting[0][0]

    def push(self, index: int, target: Target) -> None:
        """Add a token by its index in the completion, higher than all before."""
        self._waiting.append((index, target))

    def pop(self, count: int) -> list[tuple[int, Target]]:
        """Take the `count` oldest tokens, which are explained now: their indexes and targets."""
        return [self._waiting.popleft() for _ in range(count)]

    def chunks(self, slot: KVSlot, explain: ExplainSpec, count: int) -> tuple[list[SequenceChunk], list[Target]]:
        """The replay of the `count` oldest tokens: a chunk for each run of consecutive ones, and all targets."""
        oldest = list(islice(self._waiting, count))
        chunks: list[SequenceChunk] = []
        for index, _ in oldest:
            position = self._num_prompt_tokens + index - 1  # whose logits gave the token
            follows = bool(chunks) and chunks[-1].end == position
            start = chunks.pop().start if follows else position
            chunks.append(SequenceChunk.replay(slot, start, position + 1, explain))
        return chunks, [target for _, target in oldest]
