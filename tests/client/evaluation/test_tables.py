"""Tables equal values computed by hand."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis

from gradellm.errors import InvalidRequestError
from gradellm.evaluation.figures import run_figure, save
from gradellm.evaluation.results_file import ResultsFile, ResultsFileError
from gradellm.evaluation.run_results import Output, Run, read_run
from gradellm.evaluation.shards import merge_results, num_missing
from gradellm.evaluation.tables.table import Table, align_columns
from gradellm.evaluation.tables.tables import tables

Numbers = Mapping[str, Sequence[Mapping[str, float] | float | None]]
"""By method a number an example; None where the step was skipped."""


def settings(methods: Sequence[str], preset: str = "sst2", **changes: Any) -> dict[str, Any]:
    return {
        "preset": preset, "prompt": {"system": None, "user": "{text}", "form": "chat"}, "labels": ["good", "bad"],
        "data": {"sha256": "d" * 64, "examples": 4, "sample": None, "balance": False},
        "methods": {name: {"method": name} for name in methods}, "metrics": ["pi_soft_ns"], "pis": [0.5, 0.75],
        "samples": 3, "stride": 5, "offset": 0, "seed": 0, "perturb": "user", "removal": "remove", "raw_scores": False,
        "max_new_tokens": None,
        "model": {"weights_sha256": "w" * 64, "tokenizer_sha256": "t", "chat_template_sha256": "c", "dtype": "float32",
                  "quantization": "none"},
        **changes,
    }  # fmt: skip


def run(metrics: Mapping[str, Numbers], title: str = "SST2", name: str = "m", **changes: Any) -> Run:
    """A run with an example for each number."""
    methods = list(next(iter(metrics.values())))
    count = len(next(iter(next(iter(metrics.values())).values())))
    records = [
        {
            "label": "good", "predicted": "good" if i else "bad", "outside_labels": i == 1, "steps": 1,
            "skipped_steps": 0, "by": {"name": name, "revision": "", "attention_kernel": "k", "device": "cpu",
                                       "versions": {"torch": "2"}},
            "metrics": {
                metric: {
                    method: {"value": values[i], "curve": [values[i], values[i]], "expected_tokens": 10.0 * i}
                    for method, values in numbers.items() if values[i] is not None
                }
                for metric, numbers in metrics.items()
            },
        }
        for i in range(count)
    ]  # fmt: skip
    all_settings = settings(methods, **{"metrics": list(metrics), **changes})
    return Run(f"{name}/{all_settings['model']['dtype']}/{title}/results.jsonl", title, all_settings, tuple(records))


NS: Numbers = {"lime": [0.2, 0.4], "grad_ellm": [0.5, 0.5], "random": [0.1, 0.1], "attention": [0.4, 0.2]}


def only(runs: Sequence[Run]) -> Table:
    (table,) = tables(runs, "gradellm evaluate ...")
    return table


def lines_of(table: Table) -> dict[tuple[str, str], dict[str, str]]:
    return {(line["data"], line["method"]): line for line in csv.DictReader(io.StringIO(table.to_csv()))}


def test_numbers_by_hand() -> None:
    table = only([run({"pi_soft_ns": NS})])
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


def test_markdown_marks_the_best_value() -> None:
    text = only([run({"pi_soft_ns": NS})]).to_markdown()
    assert "|  | Attn | Rnd | Ours | lime |\n| --- | ---: | ---: | ---: | ---: |" in text
    assert "| **AUC π-Soft-NS ↑** | | | | |" in text
    assert "| SST2 | <u>0.300</u> | 0.100 | **0.500** | <u>0.300</u> |" in text
    assert (
        "| AUC π-Soft-NS ↑ | SST2 | lime | 2 | 0.300 | 0.200 to 0.400 | 0.300 | +0.200 | +0.100 to +0.300 | no |"
        in text
    )
    assert "n = 2 of 4 examples, 0 failed, 0 bad rows, 0 of 2 steps skipped" in text
    assert "1 answers outside the labels, accuracy 0.500 (1 of 2); 2 are missing" in text
    assert "Attn = Attention; Rnd = Random; Ours = Grad-ELLM; lime." in text
    assert "seed 0; 3 masks for each π of 0.5, 0.75; perturbed: user" in text
    assert "float32, quantization none, attention kernel k, on cpu; torch 2 (2 examples)" in text
    assert "Made by: `gradellm evaluate ...`" in text


def test_the_third_is_in_italics_and_lower_insertion_is_better() -> None:
    values: Numbers = {"attention": [0.1], "saliency": [0.2], "grad_ellm": [0.3], "random": [0.4]}
    table = only([run({"insertion": values, "deletion": values})])
    text = table.to_markdown()
    assert table.name == "table4-m"
    assert "the paper's tables 4 and 5 are this one for two models" in text
    assert "| SST2 | 0.1000 | **0.4000** | <u>0.3000</u>" not in text  # columns are in the paper's order
    assert "|  | Attn | Rnd | Sal | Ours |" in text
    deletion, insertion = text.split("**Insertion ↓**")
    assert "| SST2 | 0.1000 | **0.4000** | *0.2000* | <u>0.3000</u> |" in deletion
    assert "| SST2 | **0.1000** | 0.4000 | <u>0.2000</u> | *0.3000* |" in insertion


def test_equal_numbers_as_shown_share_a_mark() -> None:
    table = only([run({"pi_soft_ns": {"deeplift": [0.50001], "input_x_gradient": [0.49999], "random": [0.2]}})])
    assert "| SST2 | **0.500** | **0.500** | *0.200* |" in table.to_markdown()


def test_several_data_sets_and_their_average() -> None:
    large = run({"pi_soft_ns": {"grad_ellm": [0.9] * 10, "random": [0.3] * 10}}, title="IMDb", preset="imdb")
    small = run({"pi_soft_ns": {"grad_ellm": [0.2, 0.4], "random": [0.1, 0.3], "lime": [0.5, 0.5]}})
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
    model = settings([])["model"]
    other = run({"pi_soft_ns": NS}, name="/models/mistral", model={**model, "weights_sha256": "x"})
    twin = run({"pi_soft_ns": NS}, title="IMDb", preset="imdb", model={**model, "dtype": "bfloat16"})
    table = only([run({"pi_soft_ns": NS}), other, twin])
    titles = ["m (bfloat16, none, wwwwwwww)", "m (float32, none, wwwwwwww)", "models/mistral"]
    assert [panel.title for panel in table.panels] == titles
    assert "**models/mistral**" in table.to_markdown()
    assert "models/mistral\n" in table.to_text()
    ranked = tables([run({"deletion": NS}), run({"deletion": NS}, name="mistral", model={**model, "dtype": "x"})], "")
    assert [table.name for table in ranked] == ["table4-m", "table4-mistral"]


def test_examples_count_where_every_method_has_a_number() -> None:
    with_gap: Numbers = {"grad_ellm": [0.2, None, 0.4], "random": [0.1, 0.9, 0.3]}
    table = only([run({"pi_soft_ns": with_gap})])
    assert (lines_of(table)["SST2", "random"]["n"], lines_of(table)["SST2", "random"]["mean"]) == ("2", "0.2")


def test_the_original_metrics_with_expected_tokens() -> None:
    table = only([run({"soft_ns": NS, "soft_nc": NS}, raw_scores=True)])
    text = table.to_markdown()
    assert table.name == "table2"
    assert "| **E[R]** | | | | |\n| SST2 | 5.0 | 5.0 | 5.0 | 5.0 |" in text
    assert "Scores are clipped to 0..1" in text
    assert "E[R]" not in "\n".join(table.against_random())


def test_methods_worse_than_random_are_noted() -> None:
    numbers = {"saliency": [0.9, 0.8] * 10, "attention": [0.1, 0.1] * 10, "random": [0.3, 0.3] * 10}
    table = only([run({"insertion": numbers})])
    assert list(table.against_random()) == ["Insertion: worse than random: Sal"]


def test_a_table_of_every_kind() -> None:
    written = tables([run(dict.fromkeys(("pi_soft_ns", "soft_ns", "deletion", "auprc"), NS))], "c")
    assert [table.name for table in written] == ["table1", "table2", "table4-m", "plausibility"]
    plain = json.loads(written[0].to_json())
    assert (plain["command"], plain["methods"]["grad_ellm"], plain["runs"][0]["settings"]["seed"]) == ("c", "Ours", 0)
    assert len(plain["numbers"]) == 4
    assert tables([run({"pi_soft_ns": {"random": [None]}})], "c") == []


def test_text_for_a_terminal() -> None:
    table = only([run({"pi_soft_ns": {"attention": [0.1], "grad_ellm": [0.3], "random": [0.2], "lime": [0.05]}})])
    assert table.to_text() == (
        "          Attn     Rnd    Ours    lime\nAUC π-Soft-NS ↑\n  SST2  0.100³  0.200²  0.300¹  0.050\n"
    )
    assert "\x1b[1m0.300\x1b[0m" in table.to_text(color=True)
    assert (
        align_columns([["a", "bb"], ["heading"], ["ccc", "\x1b[1md\x1b[0m"]])
        == "a    bb\nheading\nccc   \x1b[1md\x1b[0m\n"
    )


def test_quoted_data_is_escaped() -> None:
    table = only([run({"pi_soft_ns": NS}, title="a|b\x1b[2J")])
    assert "| a\\|b" in table.to_markdown()
    assert "\x1b" not in table.to_text()


def test_runs_that_cannot_share_a_table() -> None:
    result = run({"pi_soft_ns": NS})
    with pytest.raises(InvalidRequestError, match=r"SST2/results\.jsonl is given twice"):
        tables([result, result], "")
    with pytest.raises(InvalidRequestError, match="different pis"):
        tables([result, run({"pi_soft_ns": NS}, title="IMDb", preset="imdb", pis=[0.5])], "")


def test_names_that_clash_get_their_folders() -> None:
    runs = [
        Run(f"/runs/{name}/results.jsonl", "SST2", of.settings, of.records)
        for name in "ab"
        for of in [run({"pi_soft_ns": NS})]
    ]
    assert [row.title for row in only(runs).panels[0].blocks[0].rows] == ["SST2 (a)", "SST2 (b)", "Avg"]


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    records = run({"pi_soft_ns": NS}).records
    made = []
    for name, order in (("a", (0, 1)), ("b", (1, 0))):
        with ResultsFile(tmp_path / f"{name}.jsonl", settings(list(NS))) as results:
            for place in order:
                results.append(f"e{place}", records[place])
            results.append_failure("e9", "too long")
        loaded = read_run(str(tmp_path / f"{name}.jsonl"))
        assert loaded.failed == (("e9", "too long"),)
        made.append(only([Run("p", loaded.title, loaded.settings, loaded.records, loaded.failed)]))
    assert made[0] == made[1]
    assert "1 failed" in made[0].to_markdown()
    assert "SST2, failed: e9: too long" in made[0].to_markdown()


def test_bad_rows_are_listed(tmp_path: Path) -> None:
    with ResultsFile(tmp_path / "results.jsonl", settings(list(NS))) as results:
        results.append("a", run({"pi_soft_ns": NS}).records[0])
    (tmp_path / "bad_rows.txt").write_text("d.jsonl, line 3: has an empty text\n" * 7)
    text = only([read_run(str(tmp_path))]).to_markdown()
    assert "7 bad rows" in text
    assert "bad rows: d.jsonl, line 3: has an empty text; d.jsonl" in text
    assert "; and 2 more" in text


def test_results_that_make_no_table(tmp_path: Path) -> None:
    with pytest.raises(ResultsFileError, match="cannot be read: No such file"):
        read_run(str(tmp_path))
    path = tmp_path / "x.jsonl"
    with ResultsFile(path, settings(["random"])) as results:
        results.append_failure("a", "too long")
    with pytest.raises(ResultsFileError, match="no finished example to make a table of; 1 failed, too long"):
        read_run(str(path))
    with ResultsFile(tmp_path / "y.jsonl", {"a": 1}):
        pass
    with pytest.raises(ResultsFileError, match="not written by `gradellm evaluate`"):
        read_run(str(tmp_path / "y.jsonl"))
    (tmp_path / "z.jsonl").write_text("hello")
    with pytest.raises(ResultsFileError, match="is not a results file"):
        read_run(str(tmp_path / "z.jsonl"))


def test_where_files_lie(tmp_path: Path) -> None:
    assert Output.of("out").file("table1.md") == Path("out/table1.md")
    assert Output.of("out/results.jsonl").file("table1.md") == Path("out/table1.md")
    assert Output.of("out/a.jsonl") == Output(Path("out/a.jsonl"), "a.")
    assert Output.of("out/a.jsonl").file("table1.md") == Path("out/a.table1.md")


def test_figures_are_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    first, figure = (run_figure(run({"pi_soft_ns": NS, "pi_soft_nc": NS})) for _ in "ab")
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
    assert run_figure(run({"deletion": NS})) is None


# --- invalid results files --------------------------------------------------------------------------------------------

HOSTILE: list[Any] = [
    None, True, -1, 7, 10**12, 10**40, 1e308, 0.5, "", "x", "\ud800", [], [[]], {}, {"a": 1}, {"a": {"b": 1}}, [1e308],
    ["a"], [None] * 2, {"\udc00": {}},
]  # fmt: skip


def written(settings_: Any, record: Any) -> str:
    header = {"format": "gradellm evaluation", "version": 1, "settings": settings_}
    return "".join(
        json.dumps(line) + "\n" for line in (header, {"id": "a", "result": record}, {"id": "b", "result": record})
    )


def paths(plain: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    for step, inner in (
        plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    ):
        yield from paths(inner, (*path, step))


OF_A_RUN = run({"pi_soft_ns": NS, "soft_ns": NS, "deletion": NS})
WHOLE = json.loads(json.dumps({"settings": OF_A_RUN.settings, "record": OF_A_RUN.records[1]}))


@settings_of_hypothesis(max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from(list(paths(WHOLE))[1:]), st.sampled_from(HOSTILE)), min_size=1, max_size=3),
    st.booleans(),
)
def test_a_hostile_results_file_makes_tables_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[tuple[str | int, ...], Any]], removes: bool
) -> None:
    plain = json.loads(json.dumps(WHOLE))
    for path, value in changes:
        inner = plain
        try:
            for step in path[:-1]:
                inner = inner[step]
            if removes:
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
        except (LookupError, TypeError):
            continue
    folder = tmp_path_factory.getbasetemp() / "hostile"
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text(written(plain.get("settings"), plain.get("record")))
    try:
        written_tables = tables([read_run(str(folder))], "gradellm evaluate ...")
        num_missing(merge_results([folder / "results.jsonl"]))
    except (ResultsFileError, InvalidRequestError):
        return
    for table in written_tables:
        forms = (table.to_markdown(), table.to_csv(), table.to_json(), table.to_text())
        assert all(form.encode(errors="backslashreplace") for form in forms)  # as they are written and printed
        list(table.against_random())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("record", "steps"), -1, "the result of 'a'.steps must be a count"),
        (("record", "metrics", "pi_soft_ns", "lime", "value"), 1e308, "metrics.pi_soft_ns.lime.value must be a number"),
        (("record", "metrics", "pi_soft_ns", "lime", "curve"), [0.1], "curve must have 2 numbers"),
        (("record", "by"), None, "the result of 'a'.by must be an object, not None"),
        (("settings", "seed"), 10**40, "settings.seed must be an integer from 0"),
        (("settings", "methods"), [], "settings.methods must be an object"),
        (("settings", "preset"), "\ud800", "settings.preset must be a text without lone"),
    ],
)
def test_missing_fields_of_a_results_file_are_named(
    tmp_path: Path, path: Sequence[str], value: Any, message: str
) -> None:
    plain = json.loads(json.dumps(WHOLE))
    inner = plain
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    (tmp_path / "results.jsonl").write_text(written(plain["settings"], plain["record"]))
    with pytest.raises(ResultsFileError, match=message):
        read_run(str(tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        "[" * 10**5,
        '{"id": "a", "result": {"x": 1e999}}',
        '{"id": "a", "result": {"x": NaN}}',
        '{"id": "a", "id": "b", "result": {}}',
        '{"id": "a", "result": {"x": ' + "9" * 10**6 + "}}",
        '{"id": "a", "result": ' + '{"x":' * 500 + "1" + "}" * 501,
    ],
)
def test_hostile_lines_are_named(tmp_path: Path, line: str) -> None:
    good = written(WHOLE["settings"], WHOLE["record"]).splitlines()
    (tmp_path / "results.jsonl").write_text("\n".join([good[0], line, *good[1:]]) + "\n")
    with pytest.raises(ResultsFileError, match=r"line 2 of .* is not a result"):
        read_run(str(tmp_path))
