"""Methods, metrics and data sets have the paper's names and order."""

from __future__ import annotations

from gradellm.evaluation.names import (
    METHOD_TITLES,
    PAPER_METHODS,
    data_title,
    in_order,
    method_title,
    metric_heading,
    metric_title,
)
from gradellm.evaluation.run_spec import METRICS


def test_every_method_of_the_paper_has_a_title() -> None:
    assert PAPER_METHODS.keys() <= METHOD_TITLES.keys()
    assert method_title("grad_ellm") == "Ours"
    assert method_title("my_method") == "my_method"


def test_columns_are_in_the_papers_order() -> None:
    assert in_order(["mine", "grad_ellm", "unloosened", "random", "mine", "attention"]) == (
        "attention", "random", "grad_ellm", "unloosened", "mine",
    )  # fmt: skip


def test_every_metric_has_a_title_and_a_heading() -> None:
    assert all(metric_title(metric) != metric or metric in ("insertion", "deletion") for metric in METRICS)
    assert metric_heading("pi_soft_ns") == "AUC π-Soft-NS ↑"
    assert metric_heading("insertion") == "Insertion ↓"
    assert metric_heading("expected_tokens") == "E[R]"


def test_data_sets_have_the_papers_names() -> None:
    assert data_title("sst2") == "SST2"
    assert data_title("reviews") == "reviews"
