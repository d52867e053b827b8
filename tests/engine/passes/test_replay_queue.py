"""Tokens that wait for a replay: one chunk for each run of consecutive ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm_engine import GradEllm
from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.passes.base import ExplainSpec, Target
from gradellm_engine.passes.replay_queue import ReplayQueue

NUM_PROMPT_TOKENS = 5
EXPLAIN = ExplainSpec(GradEllm(layers=(0,)))


class Slot:
    """The part of a KV slot that a replay reads: the ids of its tokens."""

    ids = tuple(range(100, 200))


def queue_of(indexes: list[int]) -> ReplayQueue:
    queue = ReplayQueue(NUM_PROMPT_TOKENS)
    for index in indexes:
        queue.push(index, Target(index))
    return queue


def chunks_of(queue: ReplayQueue, count: int) -> tuple[Any, list[Target]]:
    return queue.chunks(cast("KVSlot", Slot()), EXPLAIN, count)


def test_consecutive_tokens_are_one_chunk() -> None:
    """Token 0 is predicted at position 4, the prompt's last."""
    queue = queue_of([0, 1, 2, 7, 9, 10])
    chunks, targets = chunks_of(queue, 5)
    assert [(chunk.start, chunk.end) for chunk in chunks] == [(4, 7), (11, 12), (13, 14)]
    assert [list(chunk.ids) for chunk in chunks] == [[104, 105, 106], [111], [113]]
    assert not any(chunk.is_new for chunk in chunks)
    assert [target.token_id for target in targets] == [0, 1, 2, 7, 9]
    assert len(queue) == 6  # they wait until their scores are there
    assert queue.pop(5) == [(index, Target(index)) for index in (0, 1, 2, 7, 9)]
    assert (len(queue), queue.oldest) == (1, 10)


def test_an_empty_queue_has_no_oldest_token() -> None:
    queue = queue_of([])
    assert not queue
    with pytest.raises(IndexError):
        _ = queue.oldest


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(1, 70))
def test_a_replay_reads_only_the_positions_of_the_tokens(indexes: set[int], count: int) -> None:
    ordered = sorted(indexes)
    count = min(count, len(ordered))
    chunks, targets = chunks_of(queue_of(ordered), count)
    positions = [position for chunk in chunks for position in range(chunk.start, chunk.end)]
    assert positions == [NUM_PROMPT_TOKENS + index - 1 for index in ordered[:count]]
    assert [target.token_id for target in targets] == ordered[:count]
    assert all(before.end < after.start for before, after in pairwise(chunks))
