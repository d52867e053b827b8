"""The costs of following, and following beside own requests, on a small model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gradellm_bench.following.__main__ import Gaps, beside_own, beside_table, costs, main
from gradellm_engine import Engine


@pytest.fixture(scope="module")
def engine(model_path: Callable[[str], Path]) -> Engine:
    return Engine.load(str(model_path("demo")), max_running=2, max_followed=3)


def test_costs(engine: Engine) -> None:
    found = costs(engine, "Once upon a time", 8, [4], 2)
    assert list(found) == ["plain decode", "Attribute, 64 tokens a pass", "Follow, 4 tokens a chunk"]
    assert found["plain decode"] == 1.0
    assert all(ratio > 0 for ratio in found.values())


def test_beside_own_requests(engine: Engine) -> None:
    ours, followed = beside_own(engine, "Once upon a time", streams=3, own=2, num_tokens=6, chunk_size=4)
    assert all(each.tokens for each in ours)
    for each in followed:
        assert len(each.arrivals) == len(each.rows)
        assert all(came <= row for came, row in zip(each.arrivals, each.rows, strict=True))
    assert "own request" in beside_table(ours, followed)


def test_gaps() -> None:
    assert Gaps(tokens=[1.0, 1.5, 3.0]).gaps == [0.5, 1.5]


def test_page(model_path: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    names = ("follow cost", "follow beside", "follow generators")
    page.write_text("".join(f"<!-- begin: {name} -->\n<!-- end: {name} -->\n" for name in names))
    arguments = ["--model", str(model_path("demo")), "--new-tokens", "6", "--rounds", "1", "--streams", "2"]
    assert (
        main([*arguments, "--own", "1", "--prompt-tokens", "16", "--page", str(page), "--capacity-page", str(page)])
        == 0
    )
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in page.read_text()
