"""Good rows are asked, bad ones are listed, and data that cannot be used say where and why."""

from __future__ import annotations

import csv
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm.errors import GradellmError
from gradellm.evaluation.datasets import BadRow, DataError, Example, Rows, digest, load_rows, read_rows, sample
from gradellm.evaluation.presets import PRESETS, Preset, custom_preset

DATA = Path(__file__).parents[4] / "shared" / "data"
SST2 = PRESETS["sst2"]
PLAIN = custom_preset("{text}")


def shared(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip("the data do not lie beside the project")
    return DATA / name


def jsonl(folder: Path, *rows: object, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def text_of(example: Example) -> str:
    """What spans of the example count in."""
    text = example.prompt if example.messages is None else example.messages[-1][1]
    assert text is not None
    return text


def decisive(example: Example) -> list[str]:
    assert example.rationale is not None
    return [text_of(example)[start:end] for start, end in example.rationale]


def refusal(source: object, preset: Preset = SST2) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(str(source), preset)
    return str(caught.value)


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


def test_csv_with_a_byte_order_mark_and_cells_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.CSV"
    path.write_bytes('\ufefflabel,sentence,id\n1,"two\r\nlines, “both”",a\n\n0,one line,b\n'.encode())
    rows = load_rows(path, SST2)
    assert [(row.id, row.fields["text"], row.label) for row in rows.examples] == [
        ("a", "two\r\nlines, “both”", "Positive"),
        ("b", "one line", "Negative"),
    ]
    assert [row.origin for row in rows.examples] == [f"{path}, line 2", f"{path}, line 5"]


def test_old_line_ends_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"sentence,label\rfine,1\rdull,0\r")
    assert [row.origin.rsplit(" ", 1)[1] for row in load_rows(path, SST2).examples] == ["2", "3"]


def test_jsonl_with_a_byte_order_mark_windows_line_ends_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n   \n{"text": "a\\u2028b"}')
    assert [(row.fields["text"], row.origin) for row in load_rows(path, SST2).examples] == [
        ("one", f"{path}, line 1"),
        ("a\u2028b", f"{path}, line 4"),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_very_long_lines(tmp_path: Path, kind: str) -> None:
    text, path = "long " * 500_000, tmp_path / f"data.{kind}"
    path.write_text(json.dumps({"text": text}) if kind == "jsonl" else f"text\n{text}\n")
    limit = csv.field_size_limit()
    assert load_rows(path, PLAIN).examples[0].fields["text"] == text
    assert csv.field_size_limit() == limit


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
    said = {row.line: row.reason for row in rows.bad}
    assert list(said) == list(range(2, 22))
    for line, part in {
        2: "no JSON: Expecting property name enclosed in double quotes at column 2",
        3: "no JSON object",
        4: "needs a column sentence or text, and has label",
        5: "empty text",
        6: "text that is no text: 5",
        7: "has no text",
        8: "'neutral', which is no label; sst2 knows 0, 1,",
        9: "1.5",
        10: "True",
        11: "surrogate pair in its text, at character 13",
        12: "surrogate pair in its id",
        13: "no JSON list",
        14: "no list",
        15: "outside its text of 2 words",
        16: "or empty",
        17: "outside",
        18: "True",
        19: "[0, 1, 2]",
        20: "nested too deeply",
        21: "digits",
    }.items():
        assert part in said[line], (line, said[line])


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('text,label\ngood,1\nshort\n"quoted" twice,1\ngood,\nmany,1,2\n"never closed,1\nlost,0\n')
    rows = load_rows(path, SST2)
    assert [(row.fields["text"], row.label) for row in rows.examples] == [("good", "Positive"), ("good", None)]
    assert [row.line for row in rows.bad] == [3, 4, 6, 7]
    assert "1 cells where the header has 2" in rows.bad[0].reason
    assert "',' expected after" in rows.bad[1].reason
    assert "lines 7 to 8" in rows.bad[3].reason
    assert "never closed" in rows.bad[3].reason


def test_rationales_in_csv_are_json(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('text,rationale\none two three,"[0, [1, 3]]"\nx,\ny,oops\n')
    rows = load_rows(path, SST2)
    assert decisive(rows.examples[0]) == ["one", "two three"]
    assert rows.examples[1].rationale is None
    assert "oops" in rows.bad[0].reason


def test_data_that_cannot_be_used(tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    assert refusal(missing) == f"there is no file {missing}; check the path, or give hub:ID:SPLIT for the hub"
    (tmp_path / "data.txt").write_text("x")
    assert "of no kind that is read" in refusal(tmp_path / "data.txt")
    (tmp_path / "folder.jsonl").mkdir()
    assert "cannot be read: Is a directory" in refusal(tmp_path / "folder.jsonl")
    for name in ("empty.jsonl", "empty.csv"):
        (tmp_path / name).write_text("\n")
        assert "is empty" in refusal(tmp_path / name)
    (tmp_path / "header.csv").write_text("text,label\n")
    assert "is empty" in refusal(tmp_path / "header.csv")
    said = refusal(jsonl(tmp_path, *[{"body": "x"}] * 5))
    assert "no row that can be used, 5 of 5 are bad: line 1 has no text" in said
    assert said.endswith("; and 2 more")
    (tmp_path / "other.csv").write_text("body,stars\nx,1\n")
    said = refusal(tmp_path / "other.csv")
    assert "lacks a column for text (a column sentence or text); it has body, stars" in said
    (tmp_path / "twice.csv").write_text("text,text\nx,1\n")
    assert "two columns named 'text'" in refusal(tmp_path / "twice.csv")
    assert issubclass(DataError, ValueError)
    assert issubclass(DataError, GradellmError)


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b'{"text": "a"}\n{"text": "\xff"}\n', "0xff at line 2, byte 11 of it (byte 25 of the file)"),
        (b'\xef\xbb\xbf{"text": "\xe9"}\n', "0xe9 at line 1, byte 14 of it (byte 14 of the file)"),
        ('{"text": "a"}\n'.encode("utf-16"), "(it looks like UTF-16): byte 0xff at line 1"),
        (b'{"text": "cut off \xe2\x82', "0xe2 at line 1, byte 19"),
    ],
)
def test_what_is_not_utf8_is_refused_with_its_place(tmp_path: Path, raw: bytes, where: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(raw)
    assert where in refusal(path)
    assert "save it as UTF-8" in refusal(path)


def test_csv_that_is_not_utf8_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xef\xbb\xbftext\nfine\ncaf\xe9\n")
    assert "byte 0xe9 at line 3, byte 4 of it (byte 17 of the file)" in refusal(path)


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
    path = jsonl(tmp_path, *({"id": one, "text": str(index)} for index, one in enumerate(ids)))
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


def test_a_digest_is_of_what_is_asked(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": 1, "text": "one", "label": 1}, {"id": 2, "text": "two", "label": 0}]
    examples = load_rows(jsonl(tmp_path, *rows), SST2).examples
    assert digest(examples) == digest(reversed(examples))
    for change in ({"text": "other"}, {"label": 0}, {"id": 3}, {"rationale": [0]}):
        other = load_rows(jsonl(tmp_path, rows[0] | change, rows[1], name="other.jsonl"), SST2).examples
        assert digest(other) != digest(examples)
    assert digest(load_rows(tmp_path / "data.jsonl", SST2, chat=False).examples) != digest(examples)


# --- samples ----------------------------------------------------------------------------------------------------------


def example(name: str, label: str | None = None) -> Example:
    return Example(name, f"row {name}", None, name, label, None, {"text": name})


LABELLED = [example(f"p{index}", "Positive") for index in range(30)] + [
    example(f"n{index}", "Negative") for index in range(20)
]


@given(st.integers(1, 50), st.integers(), st.randoms())
def test_a_sample_depends_on_nothing_but_the_seed(n: int, seed: int, shuffler: random.Random) -> None:
    rows = list(LABELLED)
    shuffler.shuffle(rows)
    taken = sample(rows, n, seed)
    assert taken == sample(LABELLED, n, seed)
    assert len({row.id for row in taken}) == n
    assert taken == sample(LABELLED, 50, seed)[:n]


@given(st.integers(1, 40), st.integers(0, 5))
def test_a_balanced_sample_is_balanced_wherever_it_stops(n: int, seed: int) -> None:
    taken = sample(LABELLED, n, seed, balance_by_label=True)
    counts = Counter(row.label for row in taken)
    assert len({row.id for row in taken}) == n == counts.total()
    assert counts["Negative"] - counts["Positive"] in (0, 1)
    assert taken == sample(LABELLED, 40, seed, balance_by_label=True)[:n]


def test_samples_of_a_seed_are_the_same_for_ever() -> None:
    assert [row.id for row in sample(LABELLED, 5, 0)] == ["n5", "p2", "p23", "p14", "n1"]
    assert sample(LABELLED, 5, 1) != sample(LABELLED, 5, 0)


def test_samples_are_uniform() -> None:
    rows = [example(str(index)) for index in range(4)]
    firsts = Counter(sample(rows, 1, seed)[0].id for seed in range(2000))
    assert all(400 < firsts[row.id] < 600 for row in rows)


def test_more_than_there_is_is_refused() -> None:
    for n, balanced, says in [
        (0, False, "ask for 1 or more"),
        (51, False, "the data has 50"),
        (41, True, "needs 21 with the label Negative, and the data has 20; ask for 40 at most"),
        (51, True, "the data has 50"),
    ]:
        with pytest.raises(DataError, match=says):
            sample(LABELLED, n, 0, balance_by_label=balanced)
    with pytest.raises(DataError, match="row x has no label"):
        sample([*LABELLED, example("x")], 10, 0, balance_by_label=True)
    with pytest.raises(DataError, match="all 30 examples have the label Positive"):
        sample(LABELLED[:30], 10, 0, balance_by_label=True)


# --- Parquet and the hub ----------------------------------------------------------------------------------------------


def test_missing_packages_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "data.parquet").write_bytes(b"")
    assert "pip install 'gradellm[data]'" in refusal(tmp_path / "data.parquet")
    assert "pip install 'gradellm[data]'" in refusal("hub:stanfordnlp/sst2:train")
    assert "there is no file" in refusal(tmp_path / "missing.parquet")


def test_neither_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, gradellm.evaluation.datasets, gradellm.evaluation.results_file; "
        "sys.exit(', '.join({'numpy', 'torch', 'pyarrow', 'datasets', 'pandas'} & sys.modules.keys()) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class FakeData:
    """As much of datasets.Dataset as is used."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.column_names = rows, list(rows[0])

    def select_columns(self, names: list[str]) -> list[dict[str, Any]]:
        return [{name: row[name] for name in names} for row in self.rows]


def test_names_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    rows = [{"idx": 0, "sentence": "fine", "label": 1}, {"idx": 1, "sentence": "", "label": 0}]

    def load_dataset(path: str, name: str | None, split: str | None) -> object:
        calls.append((path, name, split))
        if split == "missing":
            raise ValueError("Unknown split \"missing\". Should be one of ['train'].\nAnd more.")
        return FakeData(rows) if split else {name: FakeData(rows) for name in ("train", "test")[: 1 + (name is None)]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    loaded = load_rows("hub:stanfordnlp/sst2:train", SST2)
    assert [(row.origin, row.label) for row in loaded.examples] == [("hub:stanfordnlp/sst2:train, row 1", "Positive")]
    assert loaded.bad == (BadRow(2, "has an empty sentence", "hub:stanfordnlp/sst2:train, row 2"),)
    load_rows("hub:glue:sst2:train[:100]", SST2)
    load_rows("hub:glue:sst2:", SST2)
    assert calls == [("stanfordnlp/sst2", None, "train"), ("glue", "sst2", "train[:100]"), ("glue", "sst2", None)]
    assert "has the splits train, test; say which, as hub:glue:train" in refusal("hub:glue")
    assert "cannot be loaded: Unknown split \"missing\". Should be one of ['train'].; check" in refusal("hub:a:missing")
    assert "no name of a data set" in refusal("hub:")
    assert "no name of a data set" in refusal("hub:a:b:c:d")
    assert "lacks a column for passage" in refusal("hub:a:train", PRESETS["boolq"])


def test_parquet(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    rows: list[dict[str, object]] = [
        {"sentence": "one fine day", "label": 1, "other": b"\xff", "rationale": [1]},
        {"sentence": "dull", "label": 0, "other": None, "rationale": []},
        {"sentence": None, "label": 0, "other": None, "rationale": None},
        {"sentence": "odd", "label": 3, "other": None, "rationale": None},
        {"sentence": "plain", "label": None, "other": None, "rationale": None},
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    loaded = load_rows(path, SST2)
    assert [(row.fields["text"], row.label, row.origin.rsplit(", ", 1)[1]) for row in loaded.examples] == [
        ("one fine day", "Positive", "row 1"),
        ("dull", "Negative", "row 2"),
        ("plain", None, "row 5"),
    ]
    assert decisive(loaded.examples[0]) == ["fine"]
    assert loaded.examples[1].rationale == ()
    assert loaded.examples[2].rationale is None
    assert [row.line for row in loaded.bad] == [3, 4]
    assert "lacks a column for passage (the column passage), question" in refusal(path, PRESETS["boolq"])
    parquet.write_table(arrow.table({"text": arrow.array(["x"]).dictionary_encode()}), path)
    assert load_rows(path, SST2).examples[0].fields == {"text": "x"}
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read as Parquet" in refusal(path)
    path.write_bytes(b"")
    assert "cannot be read as Parquet" in refusal(path)
    bad = arrow.Array.from_buffers(
        arrow.string(), 1, [None, arrow.py_buffer(b"\0\0\0\0\1\0\0\0"), arrow.py_buffer(b"\xff")]
    )
    parquet.write_table(arrow.table({"text": bad}), path)
    assert "cannot be read as Parquet" in refusal(path)


def test_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "someone" / "reviews"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        jsonl(folder, {"text": f"fine {split}", "label": 1}, {"text": "dull", "label": 0}, name=f"{split}.jsonl")
    monkeypatch.chdir(tmp_path)  # where load_dataset looks for a folder of that name first
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = load_rows("hub:someone/reviews:test", SST2)
    assert [(row.fields["text"], row.label) for row in loaded.examples] == [
        ("fine test", "Positive"),
        ("dull", "Negative"),
    ]
    assert len(load_rows("hub:someone/reviews:default:train[:1]", SST2).examples) == 1
    assert "has the splits train, test" in refusal("hub:someone/reviews")
    assert "cannot be loaded: Unknown split" in refusal("hub:someone/reviews:dev")


# --- the data beside the project --------------------------------------------------------------------------------------


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
        assert [part.split() for part in decisive(row)] == expected

    path = shared("lambada_rationales.jsonl")
    preset = custom_preset("{text}", columns={"rationale": "rationale"}, rationale_unit="characters")
    for row, line in zip(load_rows(path, preset, chat=chat).examples, path.read_text().splitlines(), strict=True):
        record = json.loads(line)
        inside = {index for start, end in row.rationale or () for index in range(start, end)}
        assert inside == {index for start, end in record["rationale"] for index in range(start, end)}
        assert [record["full_text"][start:end] for start, end in row.rationale or ()] == decisive(row)


# --- anything at all --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.text(), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20))))))
def test_whatever_the_rows_each_is_an_example_or_bad(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
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
def test_whatever_the_bytes_nothing_else_is_raised(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, kind: str
) -> None:
    path = tmp_path_factory.mktemp("any") / f"data.{kind}"
    path.write_bytes((b"text\n" if kind == "csv" else b"") + raw)
    with suppress(DataError):
        load_rows(path, PLAIN)
