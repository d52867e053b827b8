"""Untrusted files: they load and can be drawn, or are refused with the path of the problem."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from client.explanation.conftest import explanation
from gradellm import Explanation, InvalidExplanationError
from gradellm.explanation.io import read_jsonl
from gradellm.explanation.queries import By

WHOLE = json.loads(explanation().to_json())

HOSTILE: list[Any] = [
    None, True, 0, -1, -5, 1, 2, 7, 10**4, 10**11, 10**12, 10**40, -(10**40), 2**31, 2**63, 10**600, 1.5, -0.0, 1e308,
    -1e308, 1e39, 5e-324, "NaN", "Infinity", "-Infinity", "", "x", "\ud800", "a\udfffb", "\x00", "\x1b[2J", "\u202e",
    "</script>", [], [[]], {}, {"a": {}}, [10**11], [-5, -5], [0, 0], [1e308, 1e308], ["NaN"] * 3,
    ["Infinity", "-Infinity"],    [0] * 1000, "x" * 1000, [{}] * 50,
]  # fmt: skip


def paths(plain: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    for step, inner in (
        plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    ):
        yield from paths(inner, (*path, step))


PLACES = list(paths(WHOLE))
Change = tuple[tuple[str | int, ...], Any]


def with_changes(changes: list[Change]) -> str:
    plain = copy.deepcopy(WHOLE)
    for path, value in changes:
        inner = plain
        try:
            for step in path[:-1]:
                inner = inner[step]
            if value is REMOVED:
                del inner[path[-1]]
            elif value is TWICE:
                inner.insert(path[-1], copy.deepcopy(inner[path[-1]]))
            else:
                inner[path[-1]] = value
        except (LookupError, TypeError, AttributeError):  # another change took the place away
            continue
    return json.dumps(plain)


REMOVED, TWICE = object(), object()


def show(loaded: Explanation, folder: Path | None = None) -> None:
    """Call every method of an explanation; only the documented errors may be raised."""
    assert Explanation.from_json(loaded.to_json()) == loaded or "NaN" in loaded.to_json()
    assert loaded.to_html().encode()
    assert loaded.matrix().shape == (len(loaded.tokens), len(loaded.sources))
    assert str(loaded) == loaded.text
    loaded.to_ansi(color="never")
    questions: list[Callable[[], object]] = [
        *(lambda by=by: loaded.parts(by) for by in get_args(By)),
        *(lambda by=by: loaded.top_sources(by=by) for by in get_args(By)),
        lambda: loaded.led_to(0),
        lambda: loaded.retention(0.5),
        lambda: loaded.attribution_of(loaded.words[0]) if loaded.words else None,
    ]
    for ask in questions:
        with contextlib.suppress(InvalidExplanationError):
            ask()
    if folder is not None:
        for suffix in (".json", ".safetensors"):
            loaded.save(folder / f"a{suffix}")
            assert Explanation.load(folder / f"a{suffix}").to_json() == loaded.to_json()


@given(
    st.lists(
        st.tuples(st.sampled_from(PLACES), st.sampled_from([*HOSTILE, REMOVED, TWICE]) | st.integers() | st.floats()),
        min_size=1,
        max_size=4,
    )
)
def test_a_changed_file_loads_and_is_shown_or_is_refused(changes: list[Change]) -> None:
    began = time.process_time()
    try:
        loaded = Explanation.from_json(with_changes(changes))
    except InvalidExplanationError:
        return
    show(loaded)
    assert time.process_time() - began < 5


def test_the_file_that_is_changed_can_be_shown(tmp_path: Path) -> None:
    show(explanation(), tmp_path)


def changed(*path_and_value: Any) -> str:
    *path, value = path_and_value
    return with_changes([(tuple(path), value)])


REFUSED: dict[str, tuple[str, str]] = {
    "a row of token 10^12": (changed("attributions", -1, "token_index", 10**12), r"attributions\[\d\]\.token_index"),
    "rows of many tokens that are not there": (
        changed("attributions", -1, "token_index", 100),
        r"attributions\[\d\]\.token_index: is 100, but the last token is 3",
    ),
    "columns of 10^11": (changed("attributions", 1, "source_indexes", [10**11] * 6), "source_indexes"),
    "forced tokens of 10^12": (changed("tokens", [{**WHOLE["tokens"][0], "index": 10**12}]), r"tokens\[0\]\.index"),
    "a start of -5": (changed("started", "prompt_tokens", 1, "start", -5), r"prompt_tokens\[1\]: start -5"),
    "an end behind the text": (changed("started", "prompt_tokens", 1, "end", 10**9), r"prompt_tokens\[1\]"),
    "a token's end far away": (changed("tokens", 0, "end", 10**9), r"tokens\[0\]"),
    "scores of 1e308": (changed("attributions", 0, "scores", 0, 1e308), r"attributions\[0\]\.scores\[0\]: 1e\+308"),
    "half a pair": (changed("started", "prompt_text", "a\ud800"), "started.prompt_text: has a lone surrogate"),
    "half a pair in a name": (
        changed("started", "provenance", "versions", {"\udc00": "1"}), "a lone surrogate"
    ),
    "an id of 10^40": (changed("tokens", 0, "id", 10**40), r"tokens\[0\]\.id: must be an integer of 64 bits"),
    "an id of 2^31": (changed("tokens", 0, "id", 2**31), r"tokens\[0\]\.id: must be a token id"),
    "a million digits": (
        changed("tokens", 0, "id", "MANY").replace('"MANY"', "9" * 10**6), "a number has 1,000,000 characters"
    ),
    "a float beyond floats": (changed("tokens", 0, "logprob", "X").replace('"X"', "1e999"), "larger than a float"),
    "NaN": (changed("tokens", 0, "logprob", "X").replace('"X"', "NaN"), "NaN is not a JSON number"),
    "a column twice": (
        changed("attributions", 1, "source_indexes", [0, 0, 1, 2, 3, 4]), "source_indexes: have a column twice"
    ),
    "a row twice": (changed("attributions", 1, TWICE), "must ascend"),
    "a source's token that is not there": (
        changed("started", "sources", [{"label": "a", "token_indexes": [99], "completion_indexes": []}]),
        r"sources\[0\]\.token_indexes: has 99",
    ),
    "a source without a token": (
        changed("started", "sources", [{"label": "a", "token_indexes": [], "completion_indexes": []}]),
        r"sources\[0\]\.token_indexes: must have at least one",
    ),
    "a token in two sources": (
        changed("started", "sources", [{"label": "a", "token_indexes": [0], "completion_indexes": []}] * 9),
        "a token is in two",
    ),
    "deep lists": ("[" * 10**6, "nested"),
    "deep objects": ('{"a":' * 10**5 + "1" + "}" * 10**5, "nested"),
    "not so deep": (changed("tokens", json.loads("[" * 400 + "]" * 400)), "nested deeper than 32 levels"),
    "a long list": (json.dumps([0] * 10**6), "this is not an explanation"),
    "a name twice": (WHOLE and json.dumps(WHOLE).replace('"started":', '"finished": null, "started":', 1), "twice"),
    "a long unknown name": (changed("x" * 10**5, 1), "xxx...: is unknown"),
    "a long wrong value": (changed("tokens", "y" * 10**6), "tokens: must be a list, not 'yyy"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_hostile_values_are_refused_with_their_path(how: str) -> None:
    text, message = REFUSED[how]
    began = time.process_time()
    with pytest.raises(InvalidExplanationError, match=message) as refused:
        Explanation.from_json(text)
    assert time.process_time() - began < 2
    assert len(str(refused.value)) < 400


def test_scores_that_are_no_numbers_are_shown() -> None:
    for values in (["NaN"], ["Infinity", "-Infinity"], ["Infinity", 3.4e38, "-Infinity", "NaN"]):
        plain = copy.deepcopy(WHOLE)
        for row in plain["attributions"]:
            row["scores"][: len(values)] = values
        show(Explanation.from_json(json.dumps(plain)))


def test_a_long_file_is_read_in_proportion_to_its_length() -> None:
    def seconds(count: int) -> float:
        plain = copy.deepcopy(WHOLE)
        text = "a " * count
        token = plain["started"]["prompt_tokens"][1]
        plain["started"]["prompt_text"] = text
        plain["started"]["prompt_tokens"] = [
            {**token, "text": "a ", "start": 2 * i, "end": 2 * i + 2, "message": None} for i in range(count)
        ]
        for row in plain["attributions"]:
            row["scores"], row["source_indexes"] = [0.5] * count, list(range(count))
        written = json.dumps(plain)
        began = time.process_time()
        Explanation.from_json(written)
        return time.process_time() - began

    seconds(100)
    short, long = min(seconds(1_000) for _ in range(3)), min(seconds(8_000) for _ in range(3))
    assert long < 8 * 3 * short


# --- other readers ----------------------------------------------------------------------------------------------------


def tensors(**changes: Any) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors.numpy import load, save

    from gradellm.explanation.io import as_bytes

    data = as_bytes(explanation(), ".safetensors")
    held = load(data)
    assert save(held)
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    for name, value in changes.items():
        if isinstance(value, str):
            metadata[name.replace("__", ".")] = value
        elif value is None:
            held.pop(name)
        else:
            held[name] = np.asarray(value)
    return held, metadata


TENSORS: dict[str, dict[str, Any]] = {
    "ends that fall": {"row_ends": [24, 6, 12, 18]},
    "ends below 0": {"row_ends": [-1, 6, 12, 24]},
    "ends behind": {"row_ends": [6, 12, 18, 10**12]},
    "fewer rows": {"row_ends": [6, 12]},
    "scores in two dimensions": {"scores": np.zeros((4, 6), np.float32)},
    "scores as integers": {"scores": np.zeros(24, np.int64)},
    "ends as floats": {"row_ends": np.array([6.0, 12.0, 18.0, 24.0])},
    "a column fewer": {"columns": np.zeros(23, np.int64)},
    "no columns": {"columns": None},
    "other ids": {"token_ids": [1, 2, 3, 4]},
    "other prompt ids": {"prompt_ids": [1]},
    "other rows": {"token_indexes": [0, 1, 2, 9]},
    "has_columns deep": {"has_columns": "[" * 10**5},
    "has_columns no list": {"has_columns": "7"},
    "has_columns texts": {"has_columns": '["a", "b", "c", "d"]'},
    "has_columns short": {"has_columns": "[false]"},
    "metadata": {"gradellm__explanation": "{}"},
    "scores of 1e308": {"scores": np.full(24, 1e308)},
}


@pytest.mark.parametrize("how", TENSORS)
def test_hostile_tensors_are_refused(tmp_path: Path, how: str) -> None:
    from safetensors.numpy import save_file

    held, metadata = tensors(**TENSORS[how])
    save_file(held, tmp_path / "a.safetensors", metadata)
    with pytest.raises(InvalidExplanationError, match=r"a\.safetensors: "):
        Explanation.load(tmp_path / "a.safetensors")


def test_unchanged_tensors_load(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    held, metadata = tensors()
    save_file(held, tmp_path / "a.safetensors", metadata)
    assert Explanation.load(tmp_path / "a.safetensors") == explanation()


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 40))
def test_bytes_of_tensors_that_were_changed(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, offset: int, gone: int
) -> None:
    from gradellm.explanation.io import as_bytes

    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    data = as_bytes(explanation(), ".safetensors")
    path.write_bytes(data[:offset] + noise + data[offset + gone :])
    with contextlib.suppress(InvalidExplanationError):
        show(Explanation.load(path))


def test_a_line_of_many_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{explanation().to_json()}\n{REFUSED['scores of 1e308'][0]}\n")
    with pytest.raises(InvalidExplanationError, match=r"a\.jsonl:2: attributions\[0\]"):
        list(read_jsonl(path))
