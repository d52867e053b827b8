"""Streams on the engine's scheduler: when they decode, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from types import SimpleNamespace

import pytest

from gradellm_bench import timeline as timeline_module
from gradellm_bench.models import BenchModel
from gradellm_bench.served.streams import (
    STREAM_MODES,
    new_requests,
    record_events,
    run_in_turns,
    run_streams,
)
from gradellm_bench.timeline import Stopwatch, Timeline
from gradellm_engine.core.request import Request
from gradellm_engine.engine import Engine


@pytest.fixture
def engine(tiny: BenchModel) -> Engine:
    return tiny.engine(max_running=3, num_tokens=3 * 1500)


def requests(engine: Engine, tiny: BenchModel, lengths: Sequence[int], mode: str = "plain") -> list[Request]:
    prompts = [tiny.prompt(Random(length), length) for length in lengths]
    return new_requests(engine, prompts, 8, STREAM_MODES[mode])


@pytest.mark.parametrize("mode", STREAM_MODES)
def test_a_timeline_has_the_end_of_the_prefill_all_tokens_and_rows(tiny: BenchModel, engine: Engine, mode: str) -> None:
    (timeline,) = run_streams(engine, requests(engine, tiny, [20], mode))
    assert timeline.read is not None
    assert timeline.read <= timeline.tokens[0]
    assert len(timeline.ids) == len(timeline.tokens) == 8
    assert len(timeline.vectors) == (0 if mode == "plain" else 8)
    assert timeline.finished is not None
    if mode == "chunked(16)":
        assert len(set(timeline.vectors)) == 1


def test_streams_decode_together_only_after_all_prefills(tiny: BenchModel, engine: Engine) -> None:
    lengths = [8, 1400]  # two prefill chunks or more
    apart = run_streams(engine, requests(engine, tiny, lengths))
    tiny.loaded.runner.pool.evict_all()
    together = run_streams(engine, requests(engine, tiny, lengths), decode_together=True)
    last_read = [max(timeline.read or 0.0 for timeline in timelines) for timelines in (apart, together)]
    assert apart[0].tokens[1] < last_read[0]
    assert together[0].tokens[1] >= last_read[1]
    assert [timeline.ids for timeline in together] == [timeline.ids for timeline in apart]


def test_a_stream_can_be_submitted_after_a_step(tiny: BenchModel, engine: Engine) -> None:
    first, late = requests(engine, tiny, [10, 12])
    submitted: list[float] = []

    def submit(watch: Stopwatch, timelines: Sequence[Timeline]) -> None:
        if len(timelines[0].tokens) >= 4 and not submitted:
            engine.scheduler.submit(late)
            submitted.append(watch())

    timelines = run_streams(engine, [first, late], submit, submitted=1)
    assert timelines[0].tokens[3] <= submitted[0] <= (timelines[1].read or 0.0)
    assert len(timelines[1].tokens) == 8


def test_turns_count_for_the_stream_that_has_them(
    tiny: BenchModel, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that ticks with every reading, both streams together take at most all ticks."""
    ticks = 0

    def tick() -> float:
        nonlocal ticks
        ticks += 1
        return float(ticks)

    expected = run_streams(engine, requests(engine, tiny, [10, 12], "per_token"))
    tiny.loaded.runner.pool.evict_all()
    monkeypatch.setattr(timeline_module, "time", SimpleNamespace(perf_counter=tick))
    timelines = run_in_turns(engine, requests(engine, tiny, [10, 12], "per_token"), tokens_per_turn=2)
    assert [timeline.ids for timeline in timelines] == [timeline.ids for timeline in expected]
    assert sum(timeline.end for timeline in timelines) <= ticks
    assert max(timeline.end for timeline in timelines) < 0.75 * ticks


def test_the_error_of_a_stream_is_raised(tiny: BenchModel, engine: Engine) -> None:
    (request,) = requests(engine, tiny, [10])
    request.fail(MemoryError("no room"))
    with pytest.raises(MemoryError, match="no room"):
        record_events(Timeline(), request, 0.0)
