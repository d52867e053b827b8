"""Rows become examples or bad rows with a reason."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm.errors import GradellmError
from gradellm.evaluation.datasets import load_rows, read_rows
from gradellm.evaluation.examples import DataError, Example, Rows
from gradellm.evaluation.presets import PRESETS, custom_preset
from support.client.data_files import PLAIN, SST2, decisive, jsonl, refusal, shared, text_of

# --- files ------------------------------------------------------------------------------------------------------------


def test_a_row_becomes_an_example(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"id": "dev-1", "sentence": "a charming journey", "label": 1, "rationale": [1]})
    (example,) = load_rows(path, SST2).examples
    assert example == Example(
        id="dev-1",
        origin=f"{path}, line 1",
        messages=(("system", SST2.system or ""), ("user", "Text: a charming journey")),
        prompt=None,
        label="Positive",
        rationale=((8, 16),),
        fields={"text": "a charming journey"},
    )


def test_a_row_becomes_one_text_for_models_without_a_chat_template(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"sentence": "a charming journey", "rationale": [1]})
    (example,) = load_rows(path, SST2, chat=False).examples
    assert example.messages is None
    assert example.prompt == f"{SST2.system}\n\nText: a charming journey"
    assert decisive(example) == ["charming"]
    assert example.label is None


def test_bad_rows_are_listed_and_good_ones_run(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"text": "good", "label": "positive"},
        "{not json",
        "[1, 2]",
        {"label": 1},
        {"text": " \n", "label": 1},
        {"text": 5, "label": 1},
        {"text": None, "label": 1},
        {"text": "neither", "label": "neutral"},
        {"text": "x", "id": 1.5},
        {"text": "x", "id": True},
        '{"text": "half a pair: \\ud83d"}',
        '{"text": "x", "id": "\\ud83d"}',
        {"text": "x", "rationale": "no list"},
        {"text": "x", "rationale": {"a": 1}},
        {"text": "one two", "rationale": [2]},
        {"text": "one two", "rationale": [[1, 1]]},
        {"text": "one two", "rationale": [-1]},
        {"text": "one two", "rationale": [True]},
        {"text": "one two", "rationale": [[0, 1, 2]]},
        "[" * 200_000,
        f'{{"text": "x", "n": {"1" * 5000}}}',
        {"text": "also good", "label": 0},
    )
    rows = load_rows(path, SST2)
    assert [(row.fields["text"], row.label) for row in rows.examples] == [
        ("good", "Positive"),
        ("also good", "Negative"),
    ]
    reasons = {row.line: row.reason for row in rows.bad}
    assert list(reasons) == list(range(2, 22))
    for line, reason in {
        2: "not JSON: Expecting property name enclosed in double quotes at column 2",
        3: "not a JSON object",
        4: "needs a column sentence or text, and has label",
        5: "empty text",
        6: "text that is not a text: 5",
        7: "has no text",
        8: "'neutral', which is not a label of sst2: 0, 1,",
        9: "1.5",
        10: "True",
        11: "lone surrogate in its text, at character 13",
        12: "lone surrogate in its id",
        13: "not a JSON list",
        14: "not a list",
        15: "outside its text of 2 words",
        16: "empty or",
        17: "outside",
        18: "True",
        19: "[0, 1, 2]",
        20: "nested too deeply",
        21: "digits",
    }.items():
        assert reason in reasons[line], (line, reasons[line])


def test_rationales_in_csv_are_json(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('text,rationale\none two three,"[0, [1, 3]]"\nx,\ny,oops\n')
    rows = load_rows(path, SST2)
    assert decisive(rows.examples[0]) == ["one", "two three"]
    assert rows.examples[1].rationale is None
    assert "oops" in rows.bad[0].reason


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    assert (
        refusal(missing)
        == f"there is no file {missing}; check the path, or write hub:ID:SPLIT for a data set of the hub"
    )
    (tmp_path / "data.txt").write_text("x")
    assert "unsupported file type" in refusal(tmp_path / "data.txt")
    (tmp_path / "folder.jsonl").mkdir()
    assert "cannot be read: Is a directory" in refusal(tmp_path / "folder.jsonl")
    for name in ("empty.jsonl", "empty.csv"):
        (tmp_path / name).write_text("\n")
        assert "is empty" in refusal(tmp_path / name)
    (tmp_path / "header.csv").write_text("text,label\n")
    assert "is empty" in refusal(tmp_path / "header.csv")
    message = refusal(jsonl(tmp_path, *[{"body": "x"}] * 5))
    assert "no usable row, all 5 are bad: line 1 has no text" in message
    assert message.endswith("; and 2 more")
    (tmp_path / "other.csv").write_text("body,stars\nx,1\n")
    message = refusal(tmp_path / "other.csv")
    assert "lacks a column for text (a column sentence or text); it has body, stars" in message
    (tmp_path / "twice.csv").write_text("text,text\nx,1\n")
    assert "two columns named 'text'" in refusal(tmp_path / "twice.csv")
    assert issubclass(DataError, ValueError)
    assert issubclass(DataError, GradellmError)


def test_a_label_column_that_was_named_must_be_there(tmp_path: Path) -> None:
    preset = custom_preset("{text}", label_words=["good", "bad"], columns={"label": "verdict"})
    rows = load_rows(jsonl(tmp_path, {"text": "x", "verdict": "GOOD"}, {"text": "y"}), preset)
    assert [row.label for row in rows.examples] == ["good"]
    assert "needs the column verdict" in rows.bad[0].reason
    (tmp_path / "data.csv").write_text("text,label\nx,good\n")
    assert "label (the column verdict)" in refusal(tmp_path / "data.csv", preset)


def test_columns_that_are_joined_and_cut(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"narrative": "Jay left.", "question": "Why?"}, {"text": "taken. as. it. is."})
    assert [text_of(row) for row in load_rows(path, PRESETS["tellmewhy"]).examples] == [
        "Jay left. Why?",
        "taken. as. it. is.",
    ]
    path = jsonl(tmp_path, {"wiki_bio_text": "One. Two. Three."}, {"text": "One. Two. Three."})
    assert [text_of(row) for row in load_rows(path, PRESETS["wikibio"]).examples] == ["One. Two.", "One. Two. Three."]


# --- ids --------------------------------------------------------------------------------------------------------------


def test_ids_are_unique(tmp_path: Path) -> None:
    ids = ["a", "b", "a", "a#2", "a", 7, "7"]
    path = jsonl(tmp_path, *({"id": row_id, "text": str(index)} for index, row_id in enumerate(ids)))
    assert [row.id for row in load_rows(path, PLAIN).examples] == ["a", "b", "a#2", "a#2#2", "a#3", "7", "7#2"]


def test_many_equal_ids_take_no_longer_each(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *[{"id": "same", "text": "x"}] * 20_000)
    assert load_rows(path, PLAIN).examples[-1].id == "same#20000"


def test_ids_without_a_column_are_of_the_content_alone(tmp_path: Path) -> None:
    rows = [{"text": "one", "label": 1}, {"text": "one", "label": 0}, {"text": "two"}, {"text": "one", "label": "pos"}]
    examples = load_rows(jsonl(tmp_path, *rows), SST2).examples
    again = load_rows(jsonl(tmp_path, *reversed(rows[:3]), name="other.jsonl"), SST2, chat=False).examples
    assert [row.id for row in again] == [row.id for row in reversed(examples[:3])]
    assert examples[3].id == examples[0].id + "#2"
    assert examples[2].id == "8231920719461752"  # on every machine, with every Python


def test_bad_rows_take_no_id(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"id": "a", "text": ""}, {"id": "a", "text": "x"})
    assert [row.id for row in load_rows(path, PLAIN).examples] == ["a"]


# --- the data outside the project -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "preset", "labels"),
    [
        ("sst2", "sst2", {"Positive": 51, "Negative": 49}),
        ("imdb", "imdb", {"Positive": 30, "Negative": 30}),
        ("boolq", "boolq", {"true": 63, "false": 37}),
        ("eraser_boolq", "boolq", {"true": 32, "false": 28}),
        ("tellmewhy_reagent", "tellmewhy", {None: 12}),
        ("wiki_prompts_reagent", "wikibio", {None: 12}),
        ("wikibio", "wikibio", {None: 60}),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_every_row_of_the_samples_is_good(name: str, preset: str, labels: dict[str | None, int], chat: bool) -> None:
    rows: Rows = load_rows(shared(f"{name}.jsonl"), PRESETS[preset], chat=chat)
    assert rows.bad == ()
    assert Counter(row.label for row in rows.examples) == labels


@pytest.mark.parametrize("chat", [True, False])
def test_rationales_of_the_samples_are_those_words(chat: bool) -> None:
    path = shared("sst2.jsonl")
    for row, line in zip(load_rows(path, SST2, chat=chat).examples, path.read_text().splitlines(), strict=True):
        words = json.loads(line)["text"].split()
        assert decisive(row) == [words[index] for index in sorted(json.loads(line)["rationale"])]

    path = shared("eraser_boolq.jsonl")
    rows = load_rows(path, PRESETS["boolq"], chat=chat).examples
    for row, line in zip(rows, path.read_text().splitlines(), strict=True):
        words = json.loads(line)["passage"].split()
        expected = [words[start:end] for start, end in sorted(json.loads(line)["rationale"])]
        assert [passage.split() for passage in decisive(row)] == expected

    path = shared("lambada_rationales.jsonl")
    preset = custom_preset("{text}", columns={"rationale": "rationale"}, rationale_unit="characters")
    for row, line in zip(load_rows(path, preset, chat=chat).examples, path.read_text().splitlines(), strict=True):
        record = json.loads(line)
        inside = {index for start, end in row.rationale or () for index in range(start, end)}
        assert inside == {index for start, end in record["rationale"] for index in range(start, end)}
        assert [record["full_text"][start:end] for start, end in row.rationale or ()] == decisive(row)


# --- anything at all --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.text(), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20))))))
def test_every_row_is_an_example_or_a_bad_row(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    path = jsonl(tmp_path_factory.mktemp("any"), *({"text": text, "rationale": spans} for text, spans in rows))
    found = list(read_rows(path, SST2))
    assert len(found) == len(rows)
    for (text, _), row in zip(rows, found, strict=True):
        if isinstance(row, Example):
            assert row.fields == {"text": text}
            spans = row.rationale or ()
            assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))
            assert all(6 <= start < end <= len(text_of(row)) for start, end in spans)


@given(st.binary(max_size=200), st.sampled_from(["jsonl", "csv"]))
def test_any_bytes_raise_only_dataset_errors(tmp_path_factory: pytest.TempPathFactory, raw: bytes, kind: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"data.{kind}"
    path.write_bytes((b"text\n" if kind == "csv" else b"") + raw)
    with suppress(DataError):
        load_rows(path, PLAIN)
