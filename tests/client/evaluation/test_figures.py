"""Figures of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradellm.errors import GradellmError
from gradellm.evaluation.figures import curves_figure, run_figure, save
from support.client.evaluation_runs import NS, evaluation_run


def test_figures_are_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    first, figure = (run_figure(evaluation_run({"pi_soft_ns": NS, "pi_soft_nc": NS})) for _ in "ab")
    assert first is not None
    assert figure is not None
    save(first, tmp_path / "a.svg")
    save(figure, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    left, right = figure.axes
    assert [line.get_label() for line in left.get_lines()] == ["Attn", "Rnd", "Ours", "lime"]
    assert list(left.get_lines()[2].get_ydata()) == [0.5, 0.5]  # type: ignore[arg-type]
    assert "SST2, m: 2 examples; bands: bootstrap" in figure.get_suptitle()
    assert len(left.collections) == len(right.collections) == 4
    assert run_figure(evaluation_run({"deletion": NS})) is None


def test_random_is_dashed_and_the_own_method_highlighted() -> None:
    curves = {"pi_soft_ns": {"saliency": [0.1, 0.2], "grad_ellm": [0.4, 0.3], "random": [0.1, 0.1]}}
    (panel,) = curves_figure([0.25, 0.5], curves, labels={"grad_ellm": "Ours"}).axes
    other, ours, random = panel.get_lines()
    assert [line.get_label() for line in (other, ours, random)] == ["saliency", "Ours", "random"]
    assert [line.get_linestyle() for line in (other, ours, random)] == ["-", "-", "--"]
    assert ours.get_linewidth() > other.get_linewidth() == random.get_linewidth()
    assert list(ours.get_xdata()) == [0.25, 0.5]  # type: ignore[arg-type]
    assert panel.get_ylim() == pytest.approx((0, 1.08 * 0.4))  # no bands, and all of the curves
    assert len(panel.collections) == 0


def test_one_example_has_no_bands() -> None:
    figure = run_figure(evaluation_run({"pi_soft_ns": {"grad_ellm": [0.5], "random": [0.0]}}))
    assert figure is not None
    assert figure.get_suptitle() == "SST2, m: 1 example"
    assert len(figure.axes[0].collections) == 0


def test_without_matplotlib_a_figure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GradellmError, match=r"pip install 'gradellm\[plots\]'"):
        curves_figure([0.5], {"pi_soft_ns": {"random": [0.5]}})


@pytest.mark.parametrize("name", ["absent/a.png", "a.docx"])
def test_a_figure_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    figure = curves_figure([0.5], {"pi_soft_ns": {"random": [0.5]}})
    with pytest.raises(GradellmError, match=f"{name} cannot be written"):
        save(figure, tmp_path / name)
