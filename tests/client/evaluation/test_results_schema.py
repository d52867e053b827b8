"""Results files with other shapes are refused, by the path of the first wrong value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gradellm.errors import InvalidRequestError
from gradellm.evaluation.results_file import ResultsFileError
from gradellm.evaluation.results_schema import check_record, check_settings
from gradellm.evaluation.run_results import read_run
from gradellm.evaluation.shards import merge_results, num_missing
from gradellm.evaluation.tables.tables import tables
from support.client.evaluation_runs import NS, evaluation_run

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


OF_A_RUN = evaluation_run({"pi_soft_ns": NS, "soft_ns": NS, "deletion": NS})
WHOLE = json.loads(json.dumps({"settings": OF_A_RUN.settings, "record": OF_A_RUN.records[1]}))


@settings(max_examples=40)
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


RECORD = OF_A_RUN.records[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": True}, r"w\.steps must be a count up to 1e\+09, not True"),
        ({"steps": 10**9 + 1}, r"w\.steps must be a count"),
        ({"steps": 1.0}, r"w\.steps must be a count"),
        ({"outside_labels": 0}, r"w\.outside_labels must be true or false, not 0"),
        ({"label": 1}, r"w\.label must be a text without lone surrogates or null, not 1"),
        ({"metrics": {"soft_ns": {"lime": {"value": [0.1]}}}}, r"w\.metrics\.soft_ns\.lime\.value must be a number"),
        ({"metrics": {"soft_ns": {"lime": {"curve": 0.1}}}}, r"w\.metrics\.soft_ns\.lime\.curve must have 2 numbers"),
        ({"metrics": {"\ud800": {}}}, r"w\.metrics must be a text without lone surrogates"),
    ],
)
def test_the_path_of_a_wrong_value_of_a_record(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultsFileError, match=message):
        check_record({**RECORD, **changes}, 2, "w")


def test_limits_unknown_names_and_nulls_are_allowed() -> None:
    check_record({**RECORD, "steps": 10**9, "label": None, "predicted": None, "later": {"any": "thing"}}, 2, "w")
    check_settings({**OF_A_RUN.settings, "seed": 2**63 - 1, "max_new_tokens": None, "later": 1}, "w")


def test_a_missing_name_is_one_of_another_program() -> None:
    for name in RECORD:
        rest = {key: value for key, value in RECORD.items() if key != name}
        with pytest.raises(ResultsFileError, match=rf"w\.{name} is missing; the file was not written by"):
            check_record(rest, 2, "w")
