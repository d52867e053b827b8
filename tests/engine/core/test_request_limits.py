"""Limits of prompts and completions, and the message that names each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradellm_engine import Engine, InvalidRequestError, Sampling
from gradellm_engine.core.request_limits import DEFAULT_NEW_TOKENS, RequestLimits


@pytest.fixture
def limits(engine: Engine) -> RequestLimits:
    return RequestLimits.of(engine.model.encoder, context_tokens=100, max_new_tokens=40)


def test_a_prompt_leaves_room_for_a_token(engine: Engine, limits: RequestLimits) -> None:
    assert (limits.prompt.tokens, limits.max_new_tokens) == (99, 40)
    assert RequestLimits.of(engine.model.encoder, context_tokens=8, max_new_tokens=40).max_new_tokens == 7


def test_a_completion_is_refused_by_its_length_before_it_is_tokenised(engine: Engine, limits: RequestLimits) -> None:
    limits.check_completion([1] * 40)
    with pytest.raises(InvalidRequestError, match=r"completion_ids: 41 tokens; the limit of a completion is 40"):
        limits.check_completion([1] * 41)
    characters = 40 * engine.model.encoder.longest_token
    limits.check_completion("x" * characters)
    with pytest.raises(InvalidRequestError, match=f"completion: .* the limit is {characters:,}, which is 40 tokens"):
        limits.check_completion("x" * (characters + 1))


def test_the_length_of_a_completion(engine: Engine, limits: RequestLimits) -> None:
    prompt = engine.tokenize("x" * 79)  # and the first token
    assert limits.resolve_max_new_tokens(Sampling(), prompt) == 20
    assert limits.resolve_max_new_tokens(Sampling(max_new_tokens=7), prompt) == 7
    with pytest.raises(InvalidRequestError, match="max_new_tokens: 21 tokens after a prompt of 80; at most 20"):
        limits.resolve_max_new_tokens(Sampling(max_new_tokens=21), prompt)
    wide = replace(limits, context_tokens=10_000, max_new_tokens=9_000)
    assert wide.resolve_max_new_tokens(Sampling(), prompt) == DEFAULT_NEW_TOKENS
