"""Figures of a timeline, and a stopwatch that can be stopped."""

from __future__ import annotations

import pytest

from gradellm_bench.timeline import Stopwatch, Timeline


def test_figures_of_a_timeline() -> None:
    explained = Timeline(ids=[1, 2, 3], read=1.0, tokens=[2.0, 3.0, 5.0], vectors=[2.5, 3.5, 7.0])
    assert (explained.first_token, explained.end, explained.per_token) == (2.0, 7.0, 2.0)
    assert explained.gaps == [1.0, 2.0]
    assert explained.to_vector == 0.5
    plain = Timeline(ids=[1, 2, 3], tokens=[2.0, 3.0, 5.0])  # the end of the prefill is unknown
    assert (plain.per_token, plain.to_vector) == (1.5, None)


def test_a_stopped_stopwatch_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 3.0, 10.0, 14.0])
    monkeypatch.setattr("gradellm_bench.timeline.time.perf_counter", lambda: next(now))
    watch = Stopwatch()
    watch.stop()
    assert watch() == 3.0
    watch.resume()
    assert watch() == 7.0  # 14 since it was made, of which it was stopped for 7
