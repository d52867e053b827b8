"""What the tests of generations share: a prompt, samplings, settings, and views of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from torch import Tensor

from gradellm_engine import (
    Attribution,
    AttributionSettings,
    Delivery,
    Engine,
    FinishReason,
    GenerationIterator,
    Sampling,
    Sources,
    Step,
)
from support.oracle import relative_error

PROMPT = "Once upon a time, a small red fox did not like rain."
GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, temperature=1.2, top_k=80, top_p=0.95, seed=5)
PREFIX = AttributionSettings(sources=Sources.PREFIX)

# Scores with each token, or for several tokens at once: the outputs are the same.
deliveries = pytest.mark.parametrize("chunk_size", [None, 1, 3, 16], ids=["per_token", "by 1", "by 3", "by 16"])


def delivered(settings: AttributionSettings, chunk_size: int | None) -> AttributionSettings:
    if chunk_size is None:
        return settings
    return replace(settings, delivery=Delivery.CHUNKED, chunk_size=chunk_size)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether scores are equal up to rounding, which differs between passes and replays."""
    return relative_error(a, b.double()) <= 1e-5


def clear_kv_cache(engine: Engine) -> None:
    """Empty the KV cache, cached prefixes included."""
    engine.model.runner.allocate_pool(engine.kv_tokens)


def row(step: Step) -> Tensor:
    assert step.attribution is not None
    return step.attribution.scores


def attribution(step: Step) -> Attribution:
    assert step.attribution is not None
    return step.attribution


def fields(steps: Sequence[Step]) -> list[tuple[int | str | None, ...]]:
    """The fields of steps that do not depend on rounding."""
    return [(s.index, s.id, s.text, s.start, s.end, s.source_index, s.word) for s in steps]


def reason(generation: GenerationIterator) -> FinishReason:
    assert generation.finished is not None
    return generation.finished.reason


def completion(generation: GenerationIterator) -> str:
    list(generation)
    assert generation.finished is not None
    return generation.finished.text
