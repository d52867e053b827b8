"""Switches of random methods: their limits, and generators that depend on seed, purpose and key alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from gradellm_engine import InvalidRequestError
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.methods.sampling_params import MAX_SAMPLES, SampleSwitches, SeedSwitches
from gradellm_engine.sampling_params import MAX_SEED

RANDOM = [method.switches for method in METHODS.values() if issubclass(method.switches, SeedSwitches)]
SAMPLING = [switches for switches in RANDOM if issubclass(switches, SampleSwitches)]


@pytest.mark.parametrize("switches", RANDOM)
def test_seeds_beyond_63_bits_are_refused_by_every_method(switches: Any) -> None:
    for seed in (0, MAX_SEED):
        assert switches(seed=seed).seed == seed
    for seed in (-1, MAX_SEED + 1):
        with pytest.raises(InvalidRequestError, match=f"was {seed}") as caught:
            switches(seed=seed)
        assert caught.value.field == "attribution.seed"


@pytest.mark.parametrize("switches", SAMPLING)
def test_sample_counts_without_an_error_estimate_are_refused(switches: Any) -> None:
    """One sample has no standard error."""
    for samples in (2, MAX_SAMPLES):
        assert switches(samples=samples).samples == samples
    for samples in (0, 1, MAX_SAMPLES + 1):
        with pytest.raises(InvalidRequestError, match=f"was {samples}") as caught:
            switches(samples=samples)
        assert caught.value.field == "attribution.samples"


def test_a_generator_is_a_function_of_seed_purpose_and_key() -> None:
    def draws(seed: int, purpose: str, *key: int) -> tuple[float, ...]:
        return tuple(SeedSwitches(seed=seed).generator(purpose, *key).random(4).tolist())

    streams = list(itertools.product((0, 1, MAX_SEED), ("mask", "random"), (0, 1, 7)))
    assert len({draws(*arguments) for arguments in streams}) == len(streams)
    assert draws(3, "mask", 1, 2) == draws(3, "mask", 1, 2) != draws(3, "mask", 2, 1)
