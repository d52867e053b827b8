"""Records of JSON Lines, CSV, Parquet and of the hub."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gradellm.evaluation.datasets import load_rows
from gradellm.evaluation.examples import BadRow
from gradellm.evaluation.presets import PRESETS
from support.client.data_files import PLAIN, SST2, decisive, jsonl, refusal


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


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b'{"text": "a"}\n{"text": "\xff"}\n', "0xff at line 2, byte 11 of it (byte 25 of the file)"),
        (b'\xef\xbb\xbf{"text": "\xe9"}\n', "0xe9 at line 1, byte 14 of it (byte 14 of the file)"),
        ('{"text": "a"}\n'.encode("utf-16"), "(it looks like UTF-16): byte 0xff at line 1"),
        (b'{"text": "cut off \xe2\x82', "0xe2 at line 1, byte 19"),
    ],
)
def test_invalid_utf8_is_refused_with_its_position(tmp_path: Path, raw: bytes, where: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(raw)
    assert where in refusal(path)
    assert "save it as UTF-8" in refusal(path)


def test_csv_with_invalid_utf8_is_refused_with_its_position(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xef\xbb\xbftext\nfine\ncaf\xe9\n")
    assert "byte 0xe9 at line 3, byte 4 of it (byte 17 of the file)" in refusal(path)


# --- Parquet and the hub ----------------------------------------------------------------------------------------------


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "data.parquet").write_bytes(b"")
    assert "pip install 'gradellm[data]'" in refusal(tmp_path / "data.parquet")
    assert "pip install 'gradellm[data]'" in refusal("hub:stanfordnlp/sst2:train")
    assert "there is no file" in refusal(tmp_path / "missing.parquet")


def test_optional_packages_are_imported_lazily() -> None:
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
    assert "has the splits train, test; choose one: hub:glue:train" in refusal("hub:glue")
    assert "cannot be loaded: Unknown split \"missing\". Should be one of ['train'].; check" in refusal("hub:a:missing")
    assert "not a data set name" in refusal("hub:")
    assert "not a data set name" in refusal("hub:a:b:c:d")
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
