"""Changes of a token's logits before it is chosen: pure functions [V] -> [V], in vLLM's order.

    1. `without_tokens`       before min_new_tokens, no token that would end the completion
    2. `with_biases`          logit_bias
    3. `penalize_repeated`    repetition_penalty, of tokens of the prompt and the completion
    4. `penalize_counted`     frequency_penalty and presence_penalty, of tokens of the completion
    5.                        temperature, min_p, top_k and top_p: `gradellm_engine.core.sampler.sampling_probs`

Greedy decoding takes the argmax after 4. Log-probabilities that are reported are the model's own, before 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradellm_engine.sampling_params import Sampling


def without_tokens(logits: Tensor, ids: Tensor) -> Tensor:
    """The logits with those of some tokens at minus infinity. [V], [K] -> [V]"""
    return logits.index_fill(0, ids, -torch.inf)


def with_biases(logits: Tensor, ids: Tensor, biases: Tensor) -> Tensor:
    """The logits with a bias added to those of some tokens, each once. [V], [K], [K] -> [V]"""
    return logits.index_add(0, ids, biases)


def penalize_repeated(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """The logits with those of some tokens divided by the penalty where positive, else multiplied. [V], [K] -> [V]"""
    repeated = logits[ids]
    return logits.index_copy(0, ids, torch.where(repeated > 0, repeated / penalty, repeated * penalty))


def penalize_counted(logits: Tensor, ids: Tensor, counts: Tensor, frequency: float, presence: float) -> Tensor:
    """The logits less a penalty for each time that a token was generated, and one for its presence. [V], [K] -> [V]"""
    return logits.index_add(0, ids, -(frequency * counts + presence))


@dataclass(frozen=True)
class LogitsProcessors:
    """The changes of one request's logits, a pure function of logits, settings and the tokens so far.

    Attributes:
        sampling: its sampling parameters.
        prompt_ids: the prompt's tokens, each once; empty where no penalty needs them. [P], int64
        end_ids: tokens that end the completion once it is long enough. [E], int64
    """

    sampling: Sampling
    prompt_ids: Tensor
    end_ids: Tensor

    @classmethod
    def of(cls, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Sequence[int]) -> LogitsProcessors | None:
        """The processors that the parameters ask for; None for none."""
        if not sampling.changes_logits:
            return None
        repeated = prompt_ids if sampling.repetition_penalty != 1 else ()
        ends = {*end_ids, *sampling.stop_token_ids}
        return cls(sampling, *(torch.tensor(sorted(ids), dtype=torch.int64) for ids in (set(repeated), ends)))

    def __call__(self, logits: Tensor, completion_ids: Sequence[int]) -> Tensor:
        """The logits of the token after `completion_ids`, in float64. [V] -> [V]"""
        sampling, device = self.sampling, logits.device
        logits = logits.double()
        if len(completion_ids) < sampling.min_new_tokens:
            ends = self.end_ids[self.end_ids < len(logits)]  # a tokenizer may have more tokens than its model
            logits = without_tokens(logits, ends.to(device))
        if sampling.logit_bias:
            ids, biases = zip(*sampling.logit_bias, strict=True)
            bias = torch.tensor(biases, dtype=logits.dtype, device=device)
            logits = with_biases(logits, torch.tensor(ids, device=device), bias)
        repetition, frequency, presence = (
            sampling.repetition_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )
        if repetition == 1 and not (frequency or presence):
            return logits
        generated, counts = torch.unique(torch.tensor(completion_ids, dtype=torch.int64), return_counts=True)
        if repetition != 1:
            seen = torch.unique(torch.cat([self.prompt_ids, generated]))
            logits = penalize_repeated(logits, seen.to(device), repetition)
        if frequency or presence:
            counts = counts.to(device, logits.dtype)
            logits = penalize_counted(logits, generated.to(device), counts, frequency, presence)
        return logits
