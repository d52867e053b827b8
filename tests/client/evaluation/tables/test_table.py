"""The formats of a table: Markdown, text for a terminal, CSV and JSON."""

from __future__ import annotations

import json

import pytest

from gradellm.evaluation.tables.table import align_columns
from gradellm.evaluation.tables.tables import tables
from support.client.evaluation_runs import NS, Numbers, evaluation_run, lines_of, only


def test_markdown_marks_the_best_value() -> None:
    text = only([evaluation_run({"pi_soft_ns": NS})]).to_markdown()
    assert "|  | Attn | Rnd | Ours | lime |\n| --- | ---: | ---: | ---: | ---: |" in text
    assert "| **AUC π-Soft-NS ↑** | | | | |" in text
    assert "| SST2 | <u>0.300</u> | 0.100 | **0.500** | <u>0.300</u> |" in text
    assert (
        "| AUC π-Soft-NS ↑ | SST2 | lime | 2 | 0.300 | 0.200 to 0.400 | 0.300 | +0.200 | +0.100 to +0.300 | no |"
        in text
    )
    assert "Made by: `gradellm evaluate ...`" in text


def test_the_third_is_in_italics_and_lower_insertion_is_better() -> None:
    values: Numbers = {"attention": [0.1], "saliency": [0.2], "grad_ellm": [0.3], "random": [0.4]}
    table = only([evaluation_run({"insertion": values, "deletion": values})])
    text = table.to_markdown()
    assert table.name == "table4-m"
    assert "the paper's tables 4 and 5 are this one for two models" in text
    assert "| SST2 | 0.1000 | **0.4000** | <u>0.3000</u>" not in text  # columns are in the paper's order
    assert "|  | Attn | Rnd | Sal | Ours |" in text
    deletion, insertion = text.split("**Insertion ↓**")
    assert "| SST2 | 0.1000 | **0.4000** | *0.2000* | <u>0.3000</u> |" in deletion
    assert "| SST2 | **0.1000** | 0.4000 | <u>0.2000</u> | *0.3000* |" in insertion


def test_methods_worse_than_random_are_noted() -> None:
    numbers = {"saliency": [0.9, 0.8] * 10, "attention": [0.1, 0.1] * 10, "random": [0.3, 0.3] * 10}
    table = only([evaluation_run({"insertion": numbers})])
    assert list(table.against_random()) == ["Insertion: worse than random: Sal"]


def test_text_for_a_terminal() -> None:
    table = only(
        [evaluation_run({"pi_soft_ns": {"attention": [0.1], "grad_ellm": [0.3], "random": [0.2], "lime": [0.05]}})]
    )
    assert table.to_text() == (
        "          Attn     Rnd    Ours    lime\nAUC π-Soft-NS ↑\n  SST2  0.100³  0.200²  0.300¹  0.050\n"
    )
    assert "\x1b[1m0.300\x1b[0m" in table.to_text(color=True)
    assert (
        align_columns([["a", "bb"], ["heading"], ["ccc", "\x1b[1md\x1b[0m"]])
        == "a    bb\nheading\nccc   \x1b[1md\x1b[0m\n"
    )


def test_csv_and_json_round_to_what_machines_agree_on() -> None:
    table = only([evaluation_run({"pi_soft_ns": {"grad_ellm": [1 / 3, 1 / 3], "random": [2 / 3, 2 / 3]}})])
    random, ours = json.loads(table.to_json())["numbers"]
    assert (ours["mean"], random["mean"], ours["less_random_mean"]) == (0.333333, 0.666667, -0.333333)
    assert random["less_random_mean"] is None
    assert lines_of(table)["SST2", "grad_ellm"]["mean"] == "0.333333"


def test_a_method_that_one_data_set_lacks_has_an_empty_cell() -> None:
    small = evaluation_run({"deletion": {"grad_ellm": [0.2], "random": [0.1]}})
    large = evaluation_run({"deletion": {"grad_ellm": [0.4], "lime": [0.3]}}, title="IMDb", preset="imdb")
    table = only([small, large])
    assert "| IMDb |  | **0.4000** | <u>0.3000</u> |" in table.to_markdown()
    assert "  IMDb       -   0.4000¹  0.3000²\n" in table.to_text()
    assert "  IMDb       -  \x1b[1m0.4000\x1b[0m" in table.to_text(color=True)


@pytest.mark.parametrize(("command", "shown"), [("a b", "`a b`"), ("a `b`", "`` a `b` ``"), ("a\nb", "`a b`")])
def test_the_command_is_a_code_span(command: str, shown: str) -> None:
    (table,) = tables([evaluation_run({"pi_soft_ns": NS})], command)
    assert f"- Made by: {shown}\n" in table.to_markdown()


def test_quoted_data_is_escaped() -> None:
    table = only([evaluation_run({"pi_soft_ns": NS}, title="a|b\x1b[2J")])
    assert "| a\\|b" in table.to_markdown()
    assert "\x1b" not in table.to_text()
