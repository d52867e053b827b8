"""The tables of runs equal values computed by hand."""

from __future__ import annotations

import json

import pytest

from gradellm.errors import InvalidRequestError
from gradellm.evaluation.run_results import Run
from gradellm.evaluation.tables.tables import tables
from support.client.evaluation_runs import NS, Numbers, evaluation_run, lines_of, only, run_settings


def test_numbers_by_hand() -> None:
    table = only([evaluation_run({"pi_soft_ns": NS})])
    assert table.methods == ("attention", "random", "grad_ellm", "lime")
    line = lines_of(table)["SST2", "lime"]
    # Of two examples a resample has the mean .2, .3 or .4; lime is .1 and .3 above random.
    numbers = [float(line[name]) for name in ("mean", "low", "high", "median")]
    assert numbers == pytest.approx([0.3, 0.2, 0.4, 0.3])
    less = [float(line[f"less_random_{name}"]) for name in ("mean", "low", "high")]
    assert less == pytest.approx([0.2, 0.1, 0.3])
    assert (line["n"], line["zero_inside"], line["accuracy"], line["outside_labels"]) == ("2", "False", "0.5", "1")
    assert {name: lines_of(table)["SST2", name]["rank"] for name in NS} == {
        "grad_ellm": "1", "attention": "2", "lime": "2", "random": "4",
    }  # fmt: skip
    assert lines_of(table)["SST2", "random"]["less_random_mean"] == ""


def test_equal_numbers_as_shown_share_a_mark() -> None:
    table = only(
        [evaluation_run({"pi_soft_ns": {"deeplift": [0.50001], "input_x_gradient": [0.49999], "random": [0.2]}})]
    )
    assert "| SST2 | **0.500** | **0.500** | *0.200* |" in table.to_markdown()


def test_several_data_sets_and_their_average() -> None:
    large = evaluation_run({"pi_soft_ns": {"grad_ellm": [0.9] * 10, "random": [0.3] * 10}}, title="IMDb", preset="imdb")
    small = evaluation_run({"pi_soft_ns": {"grad_ellm": [0.2, 0.4], "random": [0.1, 0.3], "lime": [0.5, 0.5]}})
    table = only([small, large])
    text = table.to_markdown()
    assert [row.title for row in table.panels[0].blocks[0].rows] == ["IMDb", "SST2", "Avg"]
    assert "| Avg | 0.250 | **0.600** |  |" in text.replace("<u>0.250</u>", "0.250")
    line = lines_of(table)["Avg", "grad_ellm"]
    assert [float(line[name]) for name in ("mean", "low", "high")] == pytest.approx([0.6, 0.55, 0.65])
    assert float(line["less_random_mean"]) == pytest.approx((0.6 + 0.1) / 2)
    assert line["n"] == "12"
    assert line["median"] == ""
    assert "its interval resamples each data set separately" in text
    assert list(table.against_random()) == [
        "AUC π-Soft-NS: all are better than random",
        "Fewer than 20 examples (IMDb, SST2): the intervals are too narrow.",
    ]


def test_a_panel_a_model() -> None:
    model = run_settings([])["model"]
    other = evaluation_run({"pi_soft_ns": NS}, name="/models/mistral", model={**model, "weights_sha256": "x"})
    twin = evaluation_run({"pi_soft_ns": NS}, title="IMDb", preset="imdb", model={**model, "dtype": "bfloat16"})
    table = only([evaluation_run({"pi_soft_ns": NS}), other, twin])
    titles = ["m (bfloat16, none, wwwwwwww)", "m (float32, none, wwwwwwww)", "models/mistral"]
    assert [panel.title for panel in table.panels] == titles
    assert "**models/mistral**" in table.to_markdown()
    assert "models/mistral\n" in table.to_text()
    ranked = tables(
        [
            evaluation_run({"deletion": NS}),
            evaluation_run({"deletion": NS}, name="mistral", model={**model, "dtype": "x"}),
        ],
        "",
    )
    assert [table.name for table in ranked] == ["table4-m", "table4-mistral"]


def test_examples_count_where_every_method_has_a_number() -> None:
    with_gap: Numbers = {"grad_ellm": [0.2, None, 0.4], "random": [0.1, 0.9, 0.3]}
    table = only([evaluation_run({"pi_soft_ns": with_gap})])
    assert (lines_of(table)["SST2", "random"]["n"], lines_of(table)["SST2", "random"]["mean"]) == ("2", "0.2")


def test_the_original_metrics_with_expected_tokens() -> None:
    table = only([evaluation_run({"soft_ns": NS, "soft_nc": NS}, raw_scores=True)])
    text = table.to_markdown()
    assert table.name == "table2"
    assert "| **E[R]** | | | | |\n| SST2 | 5.0 | 5.0 | 5.0 | 5.0 |" in text
    assert "Scores are clipped to 0..1" in text
    assert "E[R]" not in "\n".join(table.against_random())


def test_a_table_of_every_kind() -> None:
    written = tables([evaluation_run(dict.fromkeys(("pi_soft_ns", "soft_ns", "deletion", "auprc"), NS))], "c")
    assert [table.name for table in written] == ["table1", "table2", "table4-m", "plausibility"]
    plain = json.loads(written[0].to_json())
    assert (plain["command"], plain["methods"]["grad_ellm"], plain["runs"][0]["settings"]["seed"]) == ("c", "Ours", 0)
    assert len(plain["numbers"]) == 4
    assert tables([evaluation_run({"pi_soft_ns": {"random": [None]}})], "c") == []


def test_runs_that_cannot_share_a_table() -> None:
    result = evaluation_run({"pi_soft_ns": NS})
    with pytest.raises(InvalidRequestError, match=r"SST2/results\.jsonl is given twice"):
        tables([result, result], "")
    with pytest.raises(InvalidRequestError, match="different pis"):
        tables([result, evaluation_run({"pi_soft_ns": NS}, title="IMDb", preset="imdb", pis=[0.5])], "")


def test_names_that_clash_get_their_folders() -> None:
    runs = [
        Run(f"/runs/{name}/results.jsonl", "SST2", of.settings, of.records)
        for name in "ab"
        for of in [evaluation_run({"pi_soft_ns": NS})]
    ]
    assert [row.title for row in only(runs).panels[0].blocks[0].rows] == ["SST2 (a)", "SST2 (b)", "Avg"]
