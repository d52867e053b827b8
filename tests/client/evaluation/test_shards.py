"""Shards partition a run, and their merge equals the run without shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm.errors import InvalidRequestError
from gradellm.evaluation.examples import DataError, Example, digest
from gradellm.evaluation.results_file import Results, ResultsFile, ResultsFileError, read_results, write_results
from gradellm.evaluation.run_results import Output
from gradellm.evaluation.shards import Shard, merge_results, missing_ids, num_missing, results_files, write_merged

EXAMPLES = [Example(f"e{i}", f"line {i}", None, f"text {i}", None, None, {}) for i in range(7)]
SETTINGS: dict[str, Any] = {"seed": 0, "data": {"sha256": digest(EXAMPLES), "examples": 7}, "methods": {}, "preset": ""}


def kept(path: Path, *done: str, failed: tuple[str, ...] = (), **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ResultsFile(path, {**SETTINGS, **changes}) as results:
        for example_id in done:
            results.append(example_id, {"of": example_id})
        for example_id in failed:
            results.append_failure(example_id, f"{example_id} failed")
    return path


@given(st.integers(1, 20), st.integers(0, 60))
def test_every_example_is_in_one_shard(count: int, num_examples: int) -> None:
    examples = list(range(num_examples))
    parts = [list(Shard(index, count).of_all(examples)) for index in range(count)]
    assert sorted(example_id for part in parts for example_id in part) == examples
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "1", "8/8", "-1/8", "1/0", "a/b", "1/2/3", "1.0/2", "/", "1/"])
def test_invalid_shards_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="must be INDEX/COUNT, with INDEX from 0 to COUNT - 1"):
        Shard.of(text)


def test_file_names_of_a_shard() -> None:
    shard = Shard.of("3/8")
    assert str(shard) == "3/8"
    assert shard.output("out").results == Path("out/shards/3-of-8.jsonl")
    assert shard.output("out").file("bad_rows.txt") == Path("out/shards/3-of-8.bad_rows.txt")
    assert shard.output("out/mine.jsonl") == Output.of("out/mine.jsonl")


def test_results_files_of_a_path(tmp_path: Path) -> None:
    files = [kept(tmp_path / "a" / "shards" / f"{i}-of-2.jsonl") for i in range(2)]
    assert results_files([str(tmp_path / "a"), str(tmp_path / "b"), "c.jsonl"]) == [
        *files,
        tmp_path / "b" / "results.jsonl",
        Path("c.jsonl"),
    ]
    (tmp_path / "d" / "shards").mkdir(parents=True)
    with pytest.raises(ResultsFileError, match="no shard of that run has started"):
        results_files([str(tmp_path / "d")])


def test_shards_are_one_run(tmp_path: Path) -> None:
    files = [
        kept(tmp_path / "0.jsonl", "e6", "e0", failed=("e3", "e2")),
        kept(tmp_path / "1.jsonl", "e1", "e3"),  # done elsewhere meanwhile
        kept(tmp_path / "2.jsonl"),
    ]
    results = merge_results(files)
    assert results == Results(
        SETTINGS, {example_id: {"of": example_id} for example_id in ("e6", "e0", "e1", "e3")}, {"e2": "e2 failed"}
    )
    assert num_missing(results) == 2
    assert missing_ids(results, EXAMPLES) == ["e4", "e5"]
    with pytest.raises(DataError, match="are not the examples of the results: their digest is"):
        missing_ids(results, EXAMPLES[1:])


def test_merged_results_equal_those_of_one_run(tmp_path: Path) -> None:
    expected = kept(tmp_path / "whole.jsonl", *sorted(example.id for example in EXAMPLES))
    ids_of = [[example.id for example in Shard(index, 3).of_all(EXAMPLES)] for index in range(3)]
    files = [kept(tmp_path / f"{index}.jsonl", *ids) for index, ids in enumerate(ids_of)]
    (tmp_path / "0.bad_rows.txt").write_text("line 8: bad\n")
    (tmp_path / "1.bad_rows.txt").write_text("line 8: bad\nline 9: bad\n")
    output = Output.of(str(tmp_path / "out.jsonl"))
    write_merged(output, merge_results(files[:2]), files[:2])  # an earlier state is replaced
    write_merged(output, merge_results(files), files)
    assert output.results.read_bytes() == expected.read_bytes()
    assert (tmp_path / "out.bad_rows.txt").read_text() == "line 8: bad\nline 9: bad\n"
    assert read_results(output.results) == merge_results(files)
    with pytest.raises(ResultsFileError, match="one of the merged files"):
        write_merged(Output.of(str(files[0])), merge_results(files), files)
    for results in (kept(tmp_path / "a.jsonl", "e0", seed=1), kept(tmp_path / "b.jsonl", "other")):
        with pytest.raises(ResultsFileError, match="has results that the merged files lack"):
            write_merged(Output.of(str(results)), merge_results(files), files)


def test_runs_with_different_settings_are_not_merged(tmp_path: Path) -> None:
    first = kept(tmp_path / "0.jsonl", "e0", "e1")
    for other, message in [
        (kept(tmp_path / "1.jsonl", "e2", seed=1), "belong to different runs: seed was 0, and is 1 now"),
        (kept(tmp_path / "2.jsonl", "e1", "e2"), f"example e1 has results in {first} and in {tmp_path / '2.jsonl'}"),
        (first, "is given twice"),
        (tmp_path / "absent.jsonl", "cannot be read: No such file"),
        (kept(tmp_path / "3.jsonl", *(f"x{i}" for i in range(6))), "have 8 examples, but the run has 7"),
    ]:
        with pytest.raises(ResultsFileError, match=message):
            merge_results([first, other])
    with pytest.raises(ResultsFileError, match="not written by `gradellm evaluate`"):
        merge_results([kept(tmp_path / "4.jsonl", data=None)])


def test_an_unwritable_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsFileError, match="cannot be written: No such file or directory"):
        write_results(tmp_path / "no" / "folder.jsonl", Results(SETTINGS, {}, {}))
