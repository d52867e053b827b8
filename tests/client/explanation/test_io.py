"""Explanations in files, and errors for other files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.explanation.conftest import explanation
from gradellm import Explanation, InvalidExplanationError, InvalidRequestError
from gradellm.explanation.io import read_jsonl, write_jsonl


def variants() -> list[Explanation]:
    original = explanation()
    few = tuple(replace(row, scores=row.scores[:2], source_indexes=(3, 1)) for row in original.attributions)
    exact = tuple(replace(row, scores=tuple(score / 3 for score in row.scores)) for row in original.attributions)
    holes = (
        replace(original.attributions[0], scores=(float("inf"), -0.0, 1e-45, 3.4e38, 1.0, 0.0)),
        *original.attributions[1:],
    )
    return [
        original,
        replace(original, attributions=few),
        replace(original, attributions=exact),
        replace(original, attributions=holes),
        replace(original, attributions=()),
        replace(original, tokens=(), attributions=()),
    ]


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".JSON"])
@pytest.mark.parametrize("original", variants())
def test_saved_explanations_load_unchanged(tmp_path: Path, original: Explanation, suffix: str) -> None:
    original.save(tmp_path / f"a{suffix}")
    assert Explanation.load(tmp_path / f"a{suffix}") == original
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_other_programs_read_the_tensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    explanation().save(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    assert tensors["token_ids"].tolist() == [50, 51, 52, 53]
    assert tensors["scores"].dtype == np.float32
    assert np.split(tensors["scores"], tensors["row_ends"][:-1])[1].tolist() == [4.0, 0.0, -1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".html", b"<!doctype")])
def test_pictures(tmp_path: Path, suffix: str, begins: bytes) -> None:
    explanation().save(tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(begins)


def test_a_drawing(tmp_path: Path) -> None:
    explanation().save(tmp_path / "a.txt")
    assert "purrs" in (tmp_path / "a.txt").read_text()


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(InvalidExplanationError, match="no word was explained"):
        replace(explanation(), attributions=()).save(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("a", "must end in one of .json"), ("a.pdf", "must end in"), ("absent/a.json", "there is no folder")],
)
def test_names_that_cannot_be_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        explanation().save(tmp_path / name)


@pytest.mark.parametrize(
    ("suffix", "package", "extra"), [(".png", "matplotlib", "plots"), (".safetensors", "numpy", "data")]
)
def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, package: str, extra: str
) -> None:
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(InvalidRequestError, match=rf"need {package}: pip install 'gradellm\[{extra}\]'"):
        explanation().save(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "a.json: this is not JSON"),
        ("a.json", b"\xff", "a.json: it is not UTF-8"),
        ("a.json", b'{"format": "x"}', "a.json: this is not an explanation"),
        ("a.safetensors", b"x" * 20, "a.safetensors: it is damaged"),
        ("b.json", None, r"b.json cannot be read: No such file"),
        ("b.safetensors", None, r"b.safetensors cannot be read"),
    ],
)
def test_files_that_are_none_are_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidExplanationError, match=message):
        Explanation.load(tmp_path / name)


def test_tensors_of_something_else_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(InvalidExplanationError, match="this is not an explanation"):
        Explanation.load(tmp_path / "a.safetensors")


def test_many_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert write_jsonl(variants(), path) == 6
    assert list(read_jsonl(path)) == variants()
    path.write_text(f"{explanation().to_json()}\n\n{json.dumps({})}\n")
    read = read_jsonl(path)
    assert next(read) == explanation()
    with pytest.raises(InvalidExplanationError, match=r"a\.jsonl:3: this is not an explanation"):
        next(read)
    with pytest.raises(InvalidExplanationError, match="cannot be read"):
        list(read_jsonl(tmp_path / "absent.jsonl"))
