"""Backends do the same work: the same tokens, each with its time, and rows of attribution where they explain."""

from __future__ import annotations

from random import Random

import pytest

from bench.conftest import OWN_BACKENDS
from gradellm_bench.backends import BACKENDS, Backend, decode_in_turns
from gradellm_bench.models import BenchModel
from gradellm_bench.timeline import Timeline


@pytest.mark.parametrize("name", OWN_BACKENDS)
def test_backends_time_every_token_and_attribution_row(tiny: BenchModel, name: str) -> None:
    prompt = tiny.prompt(Random(0), 20)
    expected = BACKENDS["generate"].decode(tiny, prompt, 6).ids
    timeline = BACKENDS[name].decode(tiny, prompt, 6)
    assert timeline.ids == expected
    assert timeline.tokens == sorted(timeline.tokens)
    assert len(timeline.vectors) == (0 if name in ("plain", "generate") else 6)
    assert all(vector >= token for token, vector in zip(timeline.tokens, timeline.vectors, strict=False))
    assert 0 < timeline.per_token < timeline.end


def test_alternating_backends_decode_the_same_tokens(tiny: BenchModel) -> None:
    """Each has its own KV cache slot: none reuses the prefix of another."""
    backends = [backend for backend in BACKENDS.values() if backend.mode is not None]
    prompt = tiny.prompt(Random(3), 40)
    together = decode_in_turns(tiny, backends, prompt, 32)
    for backend in backends:
        timeline, alone = together[backend.name], backend.decode(tiny, prompt, 32)
        assert timeline.ids == alone.ids
        assert len(timeline.tokens) == 32
        assert len(timeline.vectors) == (0 if backend.name == "plain" else 32)
        assert timeline.tokens == sorted(timeline.tokens)
        assert timeline.finished is not None
        assert timeline.finished.num_reused_tokens == 0
    assert tiny.loaded.runner.pool.reuses_prefixes


def test_a_library_that_explains_a_given_completion_times_all_tokens_at_its_end(tiny: BenchModel) -> None:
    pytest.importorskip("captum")
    prompt = tiny.prompt(Random(0), 8)
    timeline = BACKENDS["captum"].decode(tiny, prompt, 2)
    assert timeline.ids == BACKENDS["generate"].decode(tiny, prompt, 2).ids
    assert timeline.read == 0.0
    assert timeline.tokens == [timeline.end] * 2
    assert timeline.vectors == []
    assert not any(parameter.requires_grad for parameter in tiny.reference.parameters())


def test_the_lower_bound_counts_keys_and_values_of_all_streams(tiny: BenchModel) -> None:
    per_token = BACKENDS["per_token"]
    alone, eight = (per_token.floor(tiny, 100, streams, 1e6) for streams in (1, 8))
    assert alone is not None
    assert eight is not None
    bytes_per_token = 2 * 2 * (8 + 8) * 4  # layers x groups x widths x bytes
    assert eight - alone == pytest.approx(2 * 7 * 100 * bytes_per_token / 1e6)  # read forward and backward
    assert BACKENDS["recompute"].floor(tiny, 100, 1, 1e6) is None


def test_a_backend_without_its_package_is_not_installed() -> None:
    def run(bench_model: BenchModel, prompts: object, count: int) -> list[Timeline]:
        return []

    needs = {None: True, "torch": True, "no_such_package": False}
    assert {package: Backend("a", "", run, None, needs=package).is_installed for package in needs} == needs
