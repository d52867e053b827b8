"""Many requests on a tiny model: throughput, admission of a long prompt, prefix reuse, memory."""

from __future__ import annotations

import pytest

from gradellm_bench.backends import BACKENDS
from gradellm_bench.models import BenchModel
from gradellm_bench.served.throughput import (
    Admission,
    admission,
    memory,
    reuse,
    throughputs,
    tokens_per_second,
)
from gradellm_bench.timeline import Timeline


def test_a_long_prompt_is_admitted_during_decoding(tiny: BenchModel) -> None:
    result = admission(tiny, streams=2, new_tokens=64, rounds=1)
    assert result.median_gap > 0
    assert result.first_token >= result.largest_gap / 2 > 0  # its prefill runs between their tokens
    with pytest.raises(RuntimeError, match="end before"):
        admission(tiny, streams=2, new_tokens=17, rounds=1)


def test_throughput_is_that_of_streams_which_all_decode(tiny: BenchModel) -> None:
    backends = [BACKENDS[name] for name in ("plain", "chunked(16)", "generate", "recompute")]
    short, long = throughputs(
        tiny,
        backends,
        prompt_lengths=[20, 40],
        concurrency=[1, 4],
        new_tokens=32,
        rounds=1,
        bandwidth=1e9,
        progress=lambda stage: None,
    )
    expected = [(n, backend.name) for n in (1, 4) for backend in backends[:3]]  # the slow one is left out
    for results, length in ((short, 20), (long, 40)):
        assert [(result.streams, result.backend) for result in results] == expected
        assert {result.prompt_tokens for result in results} == {length}
    assert short[0].floor > long[0].floor  # keys and values are read, too
    assert short[1].floor < short[0].floor == short[2].floor
    assert short[0].floor < short[3].floor < 4 * short[0].floor  # weights are read once for all


def test_tokens_per_second_count_from_the_last_prefill() -> None:
    first = Timeline(ids=[1, 2], read=1.0, tokens=[2.0, 4.0])
    second = Timeline(ids=[1, 2], read=2.0, tokens=[3.0, 4.0], vectors=[3.0, 6.0])
    assert tokens_per_second([first, second]) == 4 / (6 - 2)
    unknown_prefill = Timeline(ids=[1, 2, 3], tokens=[1.0, 2.0, 3.0])
    assert tokens_per_second([unknown_prefill]) == 2 / (3 - 1)


def test_memory_is_counted_from_pools_that_are_in_use(tiny: BenchModel) -> None:
    used = memory(tiny, prompt_tokens=64, new_tokens=32, requests=32, progress=lambda stage: None)
    pool = tiny.loaded.runner.pool
    assert used.idle > pool.num_tokens * tiny.loaded.runner.bytes_per_token
    assert all(peak >= 0.9 * used.idle for peak in used.peak.values())
    assert abs(used.after - used.before) < 2**26


def test_a_second_turn_prefills_only_new_tokens(tiny: BenchModel) -> None:
    turns = reuse(tiny, new_tokens=8, rounds=1)
    assert turns.reused_tokens == turns.first_tokens + 8 - 1  # the answer's last token was never read
    assert turns.second_tokens - turns.reused_tokens < 40


def test_stretch_is_the_largest_gap_in_median_gaps() -> None:
    assert Admission(4, 1500, median_gap=20.0, largest_gap=50.0, first_token=90.0).stretch == 2.5
