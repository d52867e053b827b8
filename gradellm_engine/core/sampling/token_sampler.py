"""Chooses the tokens of one request, and tells why its completion ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from gradellm_engine.core.outputs import FinishReason
from gradellm_engine.core.request_spec import RequestSpec
from gradellm_engine.core.sampler import Distribution, choose_token
from gradellm_engine.core.sampling.logits_processors import LogitsProcessors


class TokenSampler:
    """Samples by a request's parameters: a pure function of logits, parameters, tokens so far and (seed, step)."""

    def __init__(self, spec: RequestSpec, end_ids: Collection[int]) -> None:
        sampling, prompt_ids = spec.sampling, spec.prompt.ids
        if sampling.seed is None or sampling.max_new_tokens is None:
            raise ValueError("a request spec needs sampling with seed and max_new_tokens set")
        self.max_new_tokens = sampling.max_new_tokens
        self._sampling, self._seed = sampling, sampling.seed
        self._num_prompt_tokens = len(prompt_ids)
        self._grammar = spec.grammar
        # A constrained text ends where it is complete, whatever ignore_eos says.
        self._end_ids = frozenset(() if sampling.ignore_eos and spec.grammar is None else end_ids)
        self._stop_token_ids = frozenset(sampling.stop_token_ids)
        # Forced tokens end nothing before the last of them, and given completions end with their last token.
        self._first_end = max(0, len(spec.forced_ids) - 1)
        self._is_completion = spec.is_completion
        # A given completion is never sampled.
        self._process = None if spec.is_completion else LogitsProcessors.of(sampling, prompt_ids, tuple(end_ids))

    def choose(self, distribution: Distribution, ids: Sequence[int]) -> tuple[int, bool]:
        """The token after `ids`, the prompt's among them, and whether the request's grammar allows no other.

        Raises:
            InvalidRequestError: where the grammar cannot be followed any further.
        """
        if self._grammar is None:
            return self._sample(distribution, ids), False
        allowed = self._grammar.allowed_tokens()
        if (token_id := allowed.only) is None:
            token_id = self._sample(distribution.masked(allowed.mask), ids)
        return token_id, self._grammar.advance(token_id)

    def _sample(self, distribution: Distribution, ids: Sequence[int]) -> int:
        step = len(ids) - self._num_prompt_tokens
        if self._process is None:
            return choose_token(distribution, self._sampling, self._seed, step)
        logits = self._process(distribution.logits, ids[self._num_prompt_tokens :])
        if self._grammar is not None and logits.max() == -torch.inf:
            logits = distribution.logits  # all that the grammar allows would end the text before min_new_tokens
        return choose_token(distribution, self._sampling, self._seed, step, logits)

    def finish_reason(self, index: int, token_id: int) -> FinishReason | None:
        """Why a completion ends with its token `index`, but for stop texts; None where it goes on."""
        if self._is_completion or index < self._first_end:
            return None
        if token_id in self._end_ids:
            return FinishReason.END_OF_TEXT
        if token_id in self._stop_token_ids:
            return FinishReason.STOP_TOKEN
        return FinishReason.MAX_NEW_TOKENS if index + 1 == self.max_new_tokens else None

    def has_text(self, index: int, token_id: int) -> bool:
        """Whether token `index` may have text in the completion: a token that ends it by its id has none.

        An end token is special, and mostly skipped as such.
        """
        reason = self.finish_reason(index, token_id)
        is_end = reason is FinishReason.END_OF_TEXT and not self._sampling.skip_special_tokens
        return not is_end and reason is not FinishReason.STOP_TOKEN
