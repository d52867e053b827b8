"""Cost models of passes: they reproduce their measurements, and interpolate between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.capacity.conftest import DOCS
from gradellm_bench.capacity.costs import Costs, PassModel, read_work, recorded_rows
from gradellm_bench.capacity.measurements import Measurements, PassMeasurement


@given(
    st.lists(st.floats(1e-3, 1), min_size=3, max_size=3),
    st.floats(0, 1e-5),
    st.sampled_from([(128, 1024), (64, 512, 4096)]),
)
def test_a_model_reproduces_its_measurements(bases: list[float], slope: float, contexts: tuple[int, ...]) -> None:
    sizes = (1, 4, 16)
    passes = [
        PassMeasurement("step", size, 1, context, (base + slope * size * context,))
        for size, base in zip(sizes, bases, strict=True)
        for context in contexts
    ]
    model = PassModel.fit(passes, rounds=False)
    assert model.error < 1e-6
    for measured in passes:
        assert model.seconds(measured.streams, measured.streams * measured.context) == pytest.approx(
            measured.median, rel=1e-6
        )


def test_costs_are_interpolated_and_extrapolated_linearly() -> None:
    model = PassModel((2, 4), (1.0, 2.0), 0.5, rounds=False, error=0.0)
    assert [model.seconds(size, 0) for size in (2, 3, 4, 6)] == pytest.approx([1.0, 1.5, 2.0, 3.0])
    assert model.seconds(2, 10) == pytest.approx(6.0)
    rounded = PassModel((2, 4), (1.0, 2.0), 0.0, rounds=True, error=0.0)
    assert rounded.seconds(5, 0) == rounded.seconds(6, 0) == pytest.approx(3.0)  # steps are recorded with 6 rows


def test_reading_more_is_never_faster() -> None:
    passes = [PassMeasurement("read", 1, 16, context, (seconds,)) for context, seconds in ((0, 2.0), (1000, 1.0))]
    assert PassModel.fit(passes, rounds=False).slope == 0
    one_a_size = [PassMeasurement("read", 1, size, 0, (seconds,)) for size, seconds in ((16, 1.0), (64, 3.0))]
    model = PassModel.fit(one_a_size, rounds=False)  # base and slope cannot be determined
    assert model.bases == pytest.approx((1.0, 3.0))
    assert model.slope == 0
    with pytest.raises(ValueError, match="no passes"):
        PassModel.fit([], rounds=False)


def test_sizes_and_work() -> None:
    assert [recorded_rows(size) for size in (1, 3, 5, 33, 64)] == [1, 3, 6, 48, 64]
    assert read_work(4, 10) == 10 + 11 + 12 + 13


def test_the_measured_gpu_is_fitted_well() -> None:
    costs = Costs.fit(Measurements.read(DOCS / "capacity-h100.json"))
    assert max(model.error for model in costs.models.values()) < 0.25
    assert {kind: model.error < 0.11 for kind, model in costs.models.items() if kind != "replay"} == dict.fromkeys(
        ("step", "explained_step", "scores", "read"), True
    )
