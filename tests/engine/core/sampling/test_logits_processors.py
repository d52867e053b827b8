"""Changes of logits against a naive reference in Python's floats, and their properties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradellm_engine import Sampling
from gradellm_engine.core.sampling.logits_processors import (
    LogitsProcessors,
    penalize_counted,
    penalize_repeated,
    with_biases,
    without_tokens,
)

Normal = Callable[..., Tensor]
V = 12
token_ids = st.lists(st.integers(0, V - 1), max_size=20)
samplings = st.builds(
    Sampling,
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3, 100.0]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -2.0]),
    presence_penalty=st.sampled_from([0.0, 1.5, -0.3]),
    logit_bias=st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100), max_size=4).map(lambda d: tuple(d.items())),
    min_new_tokens=st.integers(0, 8),
    stop_token_ids=st.lists(st.integers(0, V - 1), max_size=2).map(tuple),
)


def naive(logits: Sequence[float], sampling: Sampling, prompt: list[int], completion: list[int]) -> list[float]:
    """Reference: token by token, in the documented order. The model's own end tokens are 0 and 1."""
    changed = []
    for token_id, logit in enumerate(logits):
        value = logit
        if len(completion) < sampling.min_new_tokens and token_id in {0, 1, *sampling.stop_token_ids}:
            value = float("-inf")
        value += dict(sampling.logit_bias).get(token_id, 0.0)
        if token_id in prompt or token_id in completion:
            value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        value -= sampling.frequency_penalty * completion.count(token_id)
        if token_id in completion:
            value -= sampling.presence_penalty
        changed.append(value)
    return changed


@given(st.integers(0, 2**20), samplings, token_ids, token_ids)
def test_processed_logits_equal_the_naive_reference(
    normal: Normal, seed: int, sampling: Sampling, prompt: list[int], completion: list[int]
) -> None:
    logits = normal(seed, V) * 5
    given_logits = logits.clone()
    processors = LogitsProcessors.of(sampling, prompt, (0, 1))
    if processors is None:
        assert naive(logits.tolist(), sampling, prompt, completion) == logits.tolist()
        return
    expected = torch.tensor(naive(logits.tolist(), sampling, prompt, completion), dtype=torch.float64)
    assert torch.allclose(processors(logits, completion), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(logits, given_logits)  # of the distribution, which reports log-probabilities


@given(st.integers(0, 2**20), samplings, token_ids)
def test_penalties_without_tokens_change_nothing(normal: Normal, seed: int, sampling: Sampling, ids: list[int]) -> None:
    logits, none = normal(seed, V), torch.tensor([], dtype=torch.int64)
    assert torch.equal(penalize_repeated(logits, none, sampling.repetition_penalty), logits)
    assert torch.equal(penalize_counted(logits, none, none.double(), 1.0, 1.0), logits)
    assert torch.equal(without_tokens(logits, none), logits)
    assert torch.equal(with_biases(logits, none, none.double()), logits)
    some = torch.tensor(sorted(set(ids)), dtype=torch.int64)
    assert torch.equal(penalize_repeated(logits, some, 1.0), logits)
    assert torch.equal(penalize_counted(logits, some, torch.ones(len(some)).double(), 0.0, 0.0), logits)


@given(st.integers(0, 2**20), token_ids, st.floats(1.0, 100.0))
def test_a_repetition_penalty_keeps_signs_and_lowers(normal: Normal, seed: int, ids: list[int], penalty: float) -> None:
    logits = normal(seed, V)
    some = torch.tensor(sorted(set(ids)), dtype=torch.int64)
    penalized = penalize_repeated(logits, some, penalty)
    assert torch.equal(penalized.sign(), logits.sign())
    assert bool((penalized <= logits).all())


def test_the_order_of_the_changes() -> None:
    """A bias is penalised; penalties of counts are subtracted after that of repetition."""
    sampling = Sampling(
        logit_bias=((0, 3.0),), repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=1.0, min_new_tokens=3
    )
    processors = LogitsProcessors.of(sampling, [2], [3])
    assert processors is not None
    assert processors(torch.tensor([1.0, -1.0, 4.0, 9.0]), [0, 0]).tolist() == [0.0, -1.0, 2.0, float("-inf")]
    assert processors(torch.tensor([1.0, -1.0, 4.0, 9.0]), [0, 1, 3]).tolist() == [0.5, -3.5, 2.0, 3.0]


@pytest.mark.parametrize("keywords", [{}, {"temperature": 1.0, "min_p": 0.5, "stop_token_ids": (1,)}])
def test_plain_sampling_has_no_processors(keywords: dict[str, Any]) -> None:
    assert LogitsProcessors.of(Sampling(**keywords), [1, 2], [0]) is None


def test_an_end_token_beyond_the_model_s_vocabulary_is_no_logit() -> None:
    processors = LogitsProcessors.of(Sampling(min_new_tokens=1), [], [1, 50])
    assert processors is not None
    assert processors(torch.zeros(3), []).tolist() == [0.0, float("-inf"), 0.0]


def test_half_precision_is_widened() -> None:
    processors = LogitsProcessors.of(Sampling(presence_penalty=0.1), [], [])
    assert processors is not None
    changed = processors(torch.tensor([0.0, 1.0], dtype=torch.bfloat16), [1])
    assert changed.dtype == torch.float64
    assert changed.tolist() == [0.0, 0.9]
