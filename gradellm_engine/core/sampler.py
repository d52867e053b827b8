"""Sampling: the next token as a pure function of the logits, the sampling settings and (seed, step)."""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

from gradellm_engine.cpu_kernels.dispatch import kernels_for
from gradellm_engine.errors import ComputationError
from gradellm_engine.params import MAX_SEED, Sampling


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability under the model."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Distribution:
    """The model's next-token distribution at one step, before temperature, top_k and top_p.

    Attributes:
        logits: raw logits, float32 or better. [V]
        logsumexp: of the logits.
        argmax: the most probable token, the first of equals.
        max_logit: its logit.
    """

    logits: Tensor
    logsumexp: float
    argmax: int
    max_logit: float

    @classmethod
    def of(cls, logits: Tensor) -> list[Distribution]:
        """The distribution of each row of logits; one copy brings all their numbers from a GPU. [T, V]"""
        logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        argmax, logsumexp = _best_and_logsumexp(logits)
        columns = (logsumexp, argmax, logits.gather(-1, argmax[:, None])[:, 0])
        numbers = torch.stack([column.double() for column in columns], dim=1).tolist()
        return [
            cls(row, logsumexp, int(best), max_logit)
            for row, (logsumexp, best, max_logit) in zip(logits, numbers, strict=True)
        ]

    def check(self, step: int) -> None:
        """Check that the logits are finite.

        Raises:
            ComputationError: where they are not.
        """
        if not math.isfinite(self.logsumexp):
            raise ComputationError(f"the model returned logits that are not finite at step {step}")

    def logprob(self, token_id: int) -> float:
        """A token's log-probability, natural logarithm."""
        logit = self.max_logit if token_id == self.argmax else self.logits[token_id].item()
        return logit - self.logsumexp

    def masked(self, allowed: Tensor) -> Distribution:
        """The distribution over the allowed tokens alone; the others' logits are minus infinity. [V], bool"""
        logits = self.logits.masked_fill(~allowed.to(self.logits.device), -torch.inf)
        argmax, logsumexp = _best_and_logsumexp(logits[None])
        best = int(argmax.item())
        return Distribution(logits, float(logsumexp.item()), best, float(logits[best].item()))

    @property
    def sum_of_squares(self) -> float:
        """The sum of the squares of all tokens' probabilities."""
        return float((2 * (self.logits - self.logsumexp)).exp().sum().item())

    def top(self, count: int) -> tuple[TokenLogprob, ...]:
        """The `count` most probable tokens, the best first."""
        if count == 0:
            return ()
        values, ids = self.logits.topk(min(count, self.logits.shape[-1]))
        return tuple(TokenLogprob(i, v - self.logsumexp) for i, v in zip(ids.tolist(), values.tolist(), strict=True))

    def runner_up(self, token_id: int) -> int:
        """The most probable token that is not `token_id`."""
        best, second = self.logits.topk(2).indices.tolist()
        return int(second if best == token_id else best)


def _best_and_logsumexp(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each row's largest logit, the first of equals, and the row's logsumexp. [T, V] -> [T], [T]"""
    if (kernels := kernels_for(logits)) is not None:
        best, logsumexp = kernels.best_and_logsumexp(logits)
        return best, logsumexp
    if logits.is_cuda:
        return logits.argmax(-1), torch.logsumexp(logits, dim=-1)
    # Row by row: the order of summation must not depend on the number of rows.
    return logits.argmax(-1), torch.stack([torch.logsumexp(row, dim=-1) for row in logits])


def random_seed() -> int:
    """A random seed in [0, MAX_SEED]."""
    return secrets.randbelow(MAX_SEED + 1)


def uniform_draw(seed: int, step: int) -> float:
    """A number in [0, 1) with 53 random bits: a pure function of its arguments, the same on every machine.

    Draws are counter-based, so that a generation can be resumed at any step on another machine. The generator is
    SHA-256, which every language has.
    """
    digest = hashlib.sha256(b"gradellm sampling" + seed.to_bytes(8, "big") + step.to_bytes(8, "big")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def sampling_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that tokens are drawn from: temperature, then top_k, then top_p. [V], float64, sums to one"""
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
    """The next token: the argmax at temperature 0, else by inverse transform sampling with the step's draw."""
    if sampling.temperature == 0:
        return distribution.argmax
    cumulated = sampling_probs(distribution.logits, sampling).cumsum(-1)
    # The total may differ from 1 by rounding; a draw strictly below it always selects a token with positive mass.
    total = cumulated[-1].item()
    draw = min(uniform_draw(seed, step) * total, math.nextafter(total, 0))
    return int(torch.searchsorted(cumulated, draw, right=True))
