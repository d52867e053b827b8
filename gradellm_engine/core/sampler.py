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
from gradellm_engine.sampling_params import MAX_SEED, Sampling

FIRST_CANDIDATES = 256  # tokens among which those of top_p are looked for first
MASS_ROUNDING = 1e-9  # more than sums of probabilities in another order differ


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability under the model."""

    id: int
    logprob: float


@dataclass(frozen=True)
class ComparedLogprobs:
    """The model's log-probabilities at a token that another engine chose.

    Attributes:
        chosen: the token's.
        alternatives: those of the most probable other tokens, the largest first.
        sum_of_squares: of the probabilities of all tokens.
    """

    chosen: float
    alternatives: tuple[float, ...]
    sum_of_squares: float


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

    def compared(self, token_id: int, num_alternatives: int) -> ComparedLogprobs:
        """What another engine's log-probabilities at `token_id` are compared with; one copy brings it from a GPU."""
        values, ids = self.logits.topk(min(num_alternatives + 1, self.logits.shape[-1]))
        squares = (2 * (self.logits - self.logsumexp)).exp().sum()
        numbers = torch.cat([column.double() for column in (squares[None], self.logits[token_id, None], values, ids)])
        sum_of_squares, chosen, *best = numbers.tolist()
        top = zip(best[: len(values)], best[len(values) :], strict=True)
        others = [logit - self.logsumexp for logit, index in top if index != token_id]
        return ComparedLogprobs(chosen - self.logsumexp, tuple(others[:num_alternatives]), sum_of_squares)

    def masked(self, allowed: Tensor) -> Distribution:
        """The distribution over the allowed tokens alone; the others' logits are minus infinity. [V], bool"""
        logits = self.logits.masked_fill(~allowed.to(self.logits.device), -torch.inf)
        argmax, logsumexp = _best_and_logsumexp(logits[None])
        best = int(argmax.item())
        return Distribution(logits, float(logsumexp.item()), best, float(logits[best].item()))

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
    """The distribution that tokens are drawn from: temperature, min_p, top_k, then top_p. [V], float64, sums to one"""
    # Subtracting the maximum first keeps logits / temperature finite however small the temperature.
    scaled = (logits.double() - logits.max()) / sampling.temperature
    if sampling.min_p > 0:  # of the largest probability, whose logarithm is 0 here but for the common total
        scaled = scaled.masked_fill(scaled < math.log(sampling.min_p), -torch.inf)
    if 0 < sampling.top_k < scaled.shape[-1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[-1], -torch.inf)
    probs = scaled.softmax(-1)
    return probs if sampling.top_p == 1 else _nucleus(probs, sampling.top_p)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """The smallest set of most probable tokens that holds `top_p`, renormalised; of equals, the first. [V] -> [V]

    Sorting a vocabulary of 49,152 tokens takes 16 times as long, so only candidates are sorted: the tokens that are no
    less probable than the last of those which hold `top_p`.
    """
    candidates = _candidates(probs, top_p)
    ordered, order = probs[candidates].sort(descending=True, stable=True)
    # A token stays while the mass before it is below top_p, so the first always stays.
    kept = candidates[order[ordered.cumsum(-1) - ordered < top_p]]
    probs = torch.zeros_like(probs).index_copy(0, kept, probs[kept])
    return probs / probs.sum()


def _candidates(probs: Tensor, top_p: float) -> Tensor:
    """Tokens among which are the most probable ones that hold more than `top_p`, ascending. [V] -> [C]"""
    count = FIRST_CANDIDATES
    while count < len(probs):
        best = probs.topk(count).values
        if best.cumsum(-1)[-1] > top_p + MASS_ROUNDING:
            return (probs >= best[-1]).nonzero()[:, 0]
        count *= 8
    return torch.arange(len(probs), device=probs.device)


def choose_token(
    distribution: Distribution, sampling: Sampling, seed: int, step: int, logits: Tensor | None = None
) -> int:
    """The next token: the argmax at temperature 0, else by inverse transform sampling with the step's draw.

    `logits` are those that logits processors have made of the distribution's; None where there are none. [V]
    """
    if sampling.temperature == 0:
        return distribution.argmax if logits is None else int(logits.argmax())
    cumulated = sampling_probs(distribution.logits if logits is None else logits, sampling).cumsum(-1)
    # The total may differ from 1 by rounding; a draw strictly below it always selects a token with positive mass.
    total = cumulated[-1].item()
    draw = min(uniform_draw(seed, step) * total, math.nextafter(total, 0))
    return int(torch.searchsorted(cumulated, draw, right=True))
