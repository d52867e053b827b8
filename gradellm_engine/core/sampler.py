"""From logits to a token: pure functions of the logits, the settings and (seed, step)."""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

from gradellm_engine.errors import ComputationError
from gradellm_engine.params import MAX_SEED, Sampling


@dataclass(frozen=True)
class Alternative:
    """A token that could have come, with the natural logarithm of its probability under the model."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Distribution:
    """The model's next-token distribution at one step, before temperature, top_k and top_p.

    Attributes:
        logits: raw logits, float32 or better. [V]
        log_total: logarithm of the sum of their exponentials.
        best: the most probable token, the first of those that are alike.
        best_logit: its logit.
    """

    logits: Tensor
    log_total: float
    best: int
    best_logit: float

    @classmethod
    def of(cls, logits: Tensor) -> list[Distribution]:
        """From the model's logits of several tokens, whose numbers leave a GPU together. [T, V]"""
        logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        bests = logits.argmax(-1)
        columns = (_log_totals(logits), bests, logits.gather(-1, bests[:, None])[:, 0])
        numbers = torch.stack([column.double() for column in columns], dim=1).tolist()
        return [cls(row, total, int(best), high) for row, (total, best, high) in zip(logits, numbers, strict=True)]

    def check(self, step: int) -> None:
        """See that it is one.

        Raises:
            ComputationError: where the logits are not finite.
        """
        if not math.isfinite(self.log_total):
            raise ComputationError(f"the model returned logits that are not finite at step {step}")

    def logprob(self, token_id: int) -> float:
        """Natural logarithm of one token's probability."""
        logit = self.best_logit if token_id == self.best else self.logits[token_id].item()
        return logit - self.log_total

    def top(self, count: int) -> tuple[Alternative, ...]:
        """The `count` most probable tokens, the best first."""
        if count == 0:
            return ()
        values, ids = self.logits.topk(min(count, self.logits.shape[-1]))
        return tuple(Alternative(i, v - self.log_total) for i, v in zip(ids.tolist(), values.tolist(), strict=True))

    def runner_up(self, token_id: int) -> int:
        """The most probable token that is not `token_id`."""
        best, second = self.logits.topk(2).indices.tolist()
        return int(second if best == token_id else best)


def _log_totals(logits: Tensor) -> Tensor:
    """Of each row, the logarithm of the sum of exponentials. [T, V] -> [T]"""
    if logits.is_cuda:
        return torch.logsumexp(logits, dim=-1)
    # A row by itself: beside others it would be summed in another order.
    return torch.stack([torch.logsumexp(row, dim=-1) for row in logits])


def random_seed() -> int:
    """A seed nobody chose."""
    return secrets.randbelow(MAX_SEED + 1)


def uniform_draw(seed: int, step: int) -> float:
    """A number in [0, 1) with 53 random bits: a pure function of its arguments, the same on every machine.

    A counter-based draw lets a stream be resumed elsewhere at any step; SHA-256 is its generator because every
    language has it.
    """
    digest = hashlib.sha256(b"gradellm sampling" + seed.to_bytes(8, "big") + step.to_bytes(8, "big")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def sampling_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that is drawn from: temperature, then top_k, then top_p. [V], float64, sums to one."""
    # Subtracting the maximum first keeps logits / temperature finite however small the temperature.
    scaled = (logits.double() - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[-1], -torch.inf)
    probs = scaled.softmax(-1)
    if sampling.top_p < 1:
        ordered, ids = probs.sort(descending=True, stable=True)
        # A token stays while the mass before it is below top_p, so the first always stays.
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        probs = probs.index_fill(0, ids[outside], 0.0)
        probs = probs / probs.sum()
    return probs


def choose_token(distribution: Distribution, sampling: Sampling, seed: int, step: int) -> int:
    """The next token: the argmax at temperature 0, else the cumulated distribution's inverse at the step's draw."""
    if sampling.temperature == 0:
        return distribution.best
    cumulated = sampling_probs(distribution.logits, sampling).cumsum(-1)
    # The total may differ from 1 by rounding; a draw strictly below it always falls on a token with some mass.
    total = cumulated[-1].item()
    draw = min(uniform_draw(seed, step) * total, math.nextafter(total, 0))
    return int(torch.searchsorted(cumulated, draw, right=True))
