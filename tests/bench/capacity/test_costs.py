"""Cost models of passes: they reproduce their measurements, and reports of the bench can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm_bench.capacity.bench_import import from_bench
from gradellm_bench.capacity.costs import Costs, PassModel, read_work, recorded_rows
from gradellm_bench.capacity.measurements import Measurements, PassMeasurement

DOCS = Path(__file__).parents[3] / "docs"


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


def test_measurements_are_written_and_read(tmp_path: Path) -> None:
    measurements = Measurements(
        {"model": "a"}, "cpu", 8, 100, 1e9, 512, [PassMeasurement("step", 1, 1, 8, (0.5, 0.25, 1.0), 2.0)]
    )
    measurements.write(tmp_path / "a.json")
    assert Measurements.read(tmp_path / "a.json") == measurements
    assert measurements.passes[0].median == 0.5
    (tmp_path / "b.json").write_text("[]")
    for reader in (Measurements.read, from_bench):
        with pytest.raises(ValueError, match=r"b\.json is not what"):
            reader(tmp_path / "b.json")


def test_a_report_of_the_bench_is_taken_apart() -> None:
    measured = from_bench(DOCS / "bench-gpu.json")
    assert (measured.processor, measured.kv_bytes_per_token, measured.context_tokens) == ("cuda", 131_072, 8192)
    costs = Costs.fit(measured)
    assert costs.step(1, 128, explained=False) == pytest.approx(5.67e-3, rel=0.02)
    assert costs.step(32, 32 * 2048, explained=False) == pytest.approx(9.84e-3, rel=0.02)
    total = costs.step(32, 32 * 2048, explained=True) + costs.scores(32, 32 * 2048)
    assert total == pytest.approx(32 / 1580.4, rel=0.05)


def test_the_measured_gpu_is_fitted_well() -> None:
    costs = Costs.fit(Measurements.read(DOCS / "capacity-h100.json"))
    assert max(model.error for model in costs.models.values()) < 0.25
    assert {kind: model.error < 0.11 for kind, model in costs.models.items() if kind != "replay"} == dict.fromkeys(
        ("step", "explained_step", "scores", "read"), True
    )
