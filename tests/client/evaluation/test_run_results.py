"""Results files become runs, and name the files beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradellm.evaluation.results_file import ResultsFile, ResultsFileError
from gradellm.evaluation.run_results import Output, Run, computed_by, read_run
from support.client.evaluation_runs import NS, evaluation_run, only, run_settings


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    records = evaluation_run({"pi_soft_ns": NS}).records
    made = []
    for name, order in (("a", (0, 1)), ("b", (1, 0))):
        with ResultsFile(tmp_path / f"{name}.jsonl", run_settings(list(NS))) as results:
            for place in order:
                results.append(f"e{place}", records[place])
            results.append_failure("e9", "too long")
        loaded = read_run(str(tmp_path / f"{name}.jsonl"))
        assert loaded.failed == (("e9", "too long"),)
        made.append(only([Run("p", loaded.title, loaded.settings, loaded.records, loaded.failed)]))
    assert made[0] == made[1]
    assert "1 failed" in made[0].to_markdown()
    assert "SST2, failed: e9: too long" in made[0].to_markdown()


def test_results_that_make_no_table(tmp_path: Path) -> None:
    with pytest.raises(ResultsFileError, match="cannot be read: No such file"):
        read_run(str(tmp_path))
    path = tmp_path / "x.jsonl"
    with ResultsFile(path, run_settings(["random"])) as results:
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


def test_a_folder_may_be_named_like_a_results_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    assert Output.of(str(tmp_path / "a.jsonl")).results == tmp_path / "a.jsonl" / "results.jsonl"


def test_values_and_curves_are_of_the_same_examples() -> None:
    """Of those for which every method has a value."""
    run = evaluation_run({"pi_soft_ns": {"grad_ellm": [0.2, None, 0.4], "random": [0.1, 0.9, 0.3]}})
    assert run.values("pi_soft_ns") == {"random": [0.1, 0.3], "grad_ellm": [0.2, 0.4]}
    assert run.curves("pi_soft_ns") == {"random": [[0.1, 0.1], [0.3, 0.3]], "grad_ellm": [[0.2, 0.2], [0.4, 0.4]]}
    assert run.values("deletion") == {}
    assert run.curves("deletion") == {}


def test_expected_tokens_are_those_of_the_soft_metric_that_was_measured() -> None:
    for metric in ("soft_ns", "soft_nc"):
        run = evaluation_run({metric: {"grad_ellm": [0.2, 0.4], "random": [0.1, 0.3]}})
        assert run.values("expected_tokens") == {"random": [0.0, 10.0], "grad_ellm": [0.0, 10.0]}
    assert evaluation_run({"deletion": NS}).values("expected_tokens") == {}


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("meta-llama/Llama-3", "meta-llama/Llama-3"),
        ("/data/models/mistral/", "models/mistral"),
        ("C:\\models\\mistral", "models/mistral"),
        ("m", "m"),
    ],
)
def test_a_model_is_named_by_its_last_two_folders(name: str, title: str) -> None:
    assert evaluation_run({"deletion": NS}, name=name).model_title == title


def test_the_model_that_computed_most_examples_is_first() -> None:
    one, three = (evaluation_run({"deletion": {"random": [0.1] * n}}, name=f"of {n}") for n in (1, 3))
    assert [(by["name"], count) for by, count in computed_by([one, three])] == [("of 3", 3), ("of 1", 1)]
    assert computed_by([one, three]) == computed_by([three, one])
