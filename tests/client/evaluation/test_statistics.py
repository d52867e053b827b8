"""Intervals over prompts equal the engine's; averages over data sets."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from gradellm.errors import GradellmError
from gradellm.evaluation import statistics
from gradellm.evaluation.statistics import average_intervals, bands, bootstrap_interval, bootstrap_intervals, has_zero
from gradellm.models import Interval
from gradellm_engine.faithfulness.metrics import statistics as engine


@pytest.mark.parametrize(("n", "resamples"), [(1, 10_000), (2, 10_000), (7, 10_000), (300, 10_000), (1500, 900)])
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_intervals_are_the_engines(n: int, resamples: int, seed: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    from_engine = engine.bootstrap_interval(values, seed, resamples)
    from_client = bootstrap_interval(values.tolist(), seed, resamples)
    assert from_client == Interval(from_engine.mean, from_engine.low, from_engine.high, "bootstrap", from_engine.n)
    assert statistics.median(values.tolist()) == engine.median(values)


def test_columns_meet_the_same_resamples() -> None:
    numbers = np.random.default_rng(0).normal(size=(20, 2))
    both = bootstrap_intervals({"a": numbers[:, 0].tolist(), "b": numbers[:, 1].tolist()}, 3, 500)
    assert both == {key: bootstrap_interval(numbers[:, column].tolist(), 3, 500) for column, key in enumerate("ab")}
    assert both != bootstrap_intervals({"a": numbers[:, 0].tolist(), "b": numbers[:, 1].tolist()}, 4, 500)
    assert bootstrap_intervals({}, 0) == {}


def test_two_prompts_by_hand() -> None:
    # A resample of two has the mean 1, 2 or 3, each end with probability 1/4.
    assert bootstrap_interval([1.0, 3.0], 0) == Interval(2.0, 1.0, 3.0, "bootstrap", 2)


def test_an_average_counts_every_data_set_the_same() -> None:
    small, large = [0.0, 1.0], [2.0] * 50
    (interval,) = average_intervals([{"a": small}, {"a": large}], 0).values()
    assert interval == Interval(1.25, 1.0, 1.5, "bootstrap", 52)
    assert average_intervals([{"a": small, "b": small}, {"a": large}], 0).keys() == {"a"}
    assert average_intervals([{"a": [1.0]}, {"a": large}], 0)["a"] == Interval(1.5, None, None, "bootstrap", 51)
    assert average_intervals([{}, {}], 0) == {}


def test_data_sets_of_an_average_are_resampled_apart() -> None:
    values = np.random.default_rng(1).normal(size=400)
    ((low, high),) = [
        (interval.low, interval.high) for interval in average_intervals([{"a": values.tolist()}] * 2, 0, 4000).values()
    ]
    alone = bootstrap_interval(values.tolist(), 0, 4000)
    assert low is not None
    assert high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert (high - low) / (alone.high - alone.low) == pytest.approx(2**-0.5, rel=0.08)


def test_bands_are_intervals_point_by_point() -> None:
    rows = np.random.default_rng(2).random((9, 3))
    found = bands({"a": rows.tolist(), "b": (1 - rows).tolist()}, 5, 700)
    for key, table in (("a", rows), ("b", 1 - rows)):
        for point, expected in enumerate(zip(*found[key], strict=True)):
            interval = bootstrap_interval(table[:, point].tolist(), 5, 700)
            assert expected == pytest.approx((interval.mean, interval.low, interval.high))
    assert bands({"a": [[0.5, 1.0]]}, 0) == {"a": ([0.5, 1.0], [0.5, 1.0], [0.5, 1.0])}
    assert bands({}, 0) == {}


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_values_without_a_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(values, 0)


def test_columns_of_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        bootstrap_intervals({"a": [1.0], "b": [1.0, 2.0]}, 0)


def test_zero() -> None:
    assert has_zero(Interval(1.0, -0.1, 2.0, "bootstrap", 9))
    assert has_zero(Interval(1.0, None, None, "bootstrap", 1))
    assert not has_zero(Interval(1.0, 0.1, 2.0, "bootstrap", 9))


def test_a_missing_numpy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "numpy":
            raise ImportError("No module named 'numpy'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(GradellmError, match=r"pip install 'gradellm\[data\]'"):
        bootstrap_interval([1.0], 0)
