"""Times of passes: which kinds and sizes are measured, and their file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradellm_bench.capacity.measurements import Measurements, PassMeasurement, measure
from gradellm_bench.models import BenchModel
from gradellm_engine.core.request import DEFAULT_CHUNK_SIZE
from gradellm_engine.core.scheduler import MAX_EXPLAINED_TOKENS


def test_measurements_are_written_and_read(tmp_path: Path) -> None:
    measurements = Measurements(
        {"model": "a"}, "cpu", 8, 100, 1e9, 512, [PassMeasurement("step", 1, 1, 8, (0.5, 0.25, 1.0), 2.0)]
    )
    measurements.write(tmp_path / "a.json")
    assert Measurements.read(tmp_path / "a.json") == measurements
    assert measurements.passes[0].median == 0.5
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(ValueError, match=r"b\.json is not what"):
        Measurements.read(tmp_path / "b.json")


def test_every_kind_is_measured_by_size_and_context(tiny: BenchModel) -> None:
    too_many = MAX_EXPLAINED_TOKENS["cpu"] // DEFAULT_CHUNK_SIZE + 1  # streams whose replay does not fit a pass
    stages: list[str] = []
    measured = list(
        measure(tiny, counts=[1, too_many], contexts=[8, 20], chunk_sizes=[4], steps=2, progress=stages.append)
    )
    sizes = {(each.kind, each.streams, each.tokens, each.context) for each in measured}
    assert sizes == {
        *(("read", 1, 4, context) for context in (8, 20)),
        *(("replay", 1, DEFAULT_CHUNK_SIZE, context) for context in (8, 20)),
        *(
            (kind, count, 1, context)
            for kind in ("step", "explained_step", "scores")
            for count in (1, too_many)
            for context in (8, 20)
        ),
    }
    assert len(measured) == len(sizes)
    assert all(len(each.seconds) == 2 and min(each.seconds) > 0 for each in measured)
    assert all((each.first_seconds is None) == (each.kind == "read") for each in measured)
    assert len(stages) == 2 + 2 * 5
