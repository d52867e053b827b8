"""Results files: after any kind of end, finished examples are kept once, and the rest are evaluated again."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradellm.errors import GradellmError
from gradellm.evaluation.results_file import ResultsFile, ResultsFileError

SETTINGS = {"model": "demo", "methods": ["grad_ellm", "random"], "masks": {"samples": 3, "pis": [0.05, 0.1]}}


def run(path: Path, *ids: str) -> None:
    """Do as a run does."""
    with ResultsFile(path, SETTINGS) as results:
        for example_id in ids:
            results.append(example_id, {"of": example_id, "auc": 0.1 + len(example_id)})


def content(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    with ResultsFile(path, SETTINGS) as results:
        return results.done, results.failed


def refusal(path: Path, settings: dict[str, Any] | None = None) -> str:
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(ResultsFileError) as caught, ResultsFile(path, SETTINGS if settings is None else settings):
        pass
    assert not path.is_file() or path.read_bytes() == before
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_a_run_is_resumed_from_its_results(path: Path) -> None:
    run(path, "a", "b")
    with ResultsFile(path, SETTINGS) as results:
        assert results.done == {"a": {"of": "a", "auc": 1.1}, "b": {"of": "b", "auc": 1.1}}
        assert results.cut_bytes == 0
        assert results.append("c", {"of": "c"})
    header, *lines = map(json.loads, path.read_text().splitlines())
    assert header == {"format": "gradellm evaluation", "version": 1, "settings": SETTINGS}
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert list(content(path)[0]) == ["a", "b", "c"]


@pytest.mark.parametrize("before", [{}, {"config_sha256": ""}])
def test_a_run_without_a_configuration_hash_is_resumed(path: Path, before: dict[str, str]) -> None:
    model = {"weights_sha256": "a"}
    with ResultsFile(path, {"model": {**model, **before}}) as results:
        results.append("a", {"try": 1})
    with ResultsFile(path, {"model": {**model, "config_sha256": "b"}}) as results:
        assert results.done == {"a": {"try": 1}}
    with pytest.raises(ResultsFileError, match=r"model\.weights_sha256 was"):
        ResultsFile(path, {"model": {"weights_sha256": "b", "config_sha256": "b"}}).__enter__()


def test_another_configuration_is_another_run(path: Path) -> None:
    with ResultsFile(path, {"model": {"config_sha256": "a"}}):
        pass
    with pytest.raises(ResultsFileError, match=r"model\.config_sha256 was \"a\", and is \"b\" now"):
        ResultsFile(path, {"model": {"config_sha256": "b"}}).__enter__()


def test_an_example_counts_once(path: Path) -> None:
    with ResultsFile(path, SETTINGS) as results:
        assert results.append("a", {"try": 1})
        assert not results.append("a", {"try": 2})
        assert not results.append_failure("a", "too late")
    with path.open("a") as file:
        file.write('{"id": "a", "result": {"try": 3}}\n{"id": "a", "error": "?"}\n')
    assert content(path) == ({"a": {"try": 1}}, {})


def test_failures_are_kept_until_the_example_is_done(path: Path) -> None:
    with ResultsFile(path, SETTINGS) as results:
        results.append_failure("a", "no room")
        results.append_failure("b", "no room")
        results.append_failure("b", "still none")
    with ResultsFile(path, SETTINGS) as results:
        assert (results.done, results.failed) == ({}, {"a": "no room", "b": "still none"})
        results.append("a", {"try": 2})
        assert (results.done, results.failed) == ({"a": {"try": 2}}, {"b": "still none"})
    assert content(path) == ({"a": {"try": 2}}, {"b": "still none"})


def test_memory_and_file_hold_the_same_results(path: Path) -> None:
    with ResultsFile(path, SETTINGS) as results:
        record: dict[Any, Any] = {"scores": (1.0, 0.1), 5: None, "text": "ü\n\u2028\ud800"}
        results.append("ü\n\u2028\ud800", record)
        written = results.done
    assert content(path) == (written, {})
    assert written == {"ü\n\u2028\ud800": {"scores": [1.0, 0.1], "5": None, "text": "ü\n\u2028\ud800"}}


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=2),
            st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.text()),
        )
    )
)
def test_any_records_come_back(tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("any") / "results.jsonl"
    expected: dict[str, Any] = {}
    for half in (records[::2], records[1::2]):
        with ResultsFile(path, SETTINGS) as results:
            for example_id, record in half:
                assert results.append(example_id, record) == (example_id not in expected)
                expected.setdefault(example_id, record)
    assert content(path) == (expected, {})


# --- crashes ----------------------------------------------------------------------------------------------------------


def test_a_truncated_file_keeps_all_complete_lines(tmp_path: Path) -> None:
    complete = tmp_path / "whole.jsonl"
    run(complete, "a", "b")
    data = complete.read_bytes()
    ends = [index for index, byte in enumerate(data) if byte == 0x0A]
    for length in range(len(data) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(data[:length])
        done, cut = {}, -1
        with ResultsFile(path, SETTINGS) as results:
            done, cut = dict(results.done), results.cut_bytes
        wanted = sum(length >= end for end in ends[1:])  # a line that lacks nothing but its end is whole
        assert list(done) == ["a", "b"][:wanted]
        assert path.read_bytes() == data[: ends[wanted] + 1]
        assert cut == (max(0, length - ends[wanted] - 1) if length > ends[0] else 0)
        run(path, "a", "b")
        assert path.read_bytes() == data


@pytest.mark.parametrize("rubbish", [b"\0" * 30, b'{"id": "c", "resu\n', b"\xff\xfe\n", b"\n", b'{"id": "c"\0\0\0\0\n'])
def test_a_last_line_that_a_power_cut_left_is_cut_off(path: Path, rubbish: bytes) -> None:
    run(path, "a")
    data = path.read_bytes()
    path.write_bytes(data + rubbish)
    with ResultsFile(path, SETTINGS) as results:
        assert (list(results.done), results.cut_bytes) == (["a"], len(rubbish))
        results.append("b", {"of": "b", "auc": 1.1})
    run(path, "c")
    assert list(content(path)[0]) == ["a", "b", "c"]


RUN = """
import sys
from gradellm.evaluation.results_file import ResultsFile
with ResultsFile(sys.argv[1], {"seed": 0}) as results:
    number = len(results.done)
    while True:
        results.append(str(number), {"scores": [number] * 2000})
        print(number, flush=True)
        number += 1
"""


def test_a_killed_run_keeps_appended_results(path: Path) -> None:
    for num_lines in (1, 3, 10):
        with subprocess.Popen([sys.executable, "-c", RUN, path], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            printed = [int(process.stdout.readline()) for _ in range(num_lines)]
            process.send_signal(signal.SIGKILL)
        with ResultsFile(path, {"seed": 0}) as results:  # and its lock went with it
            assert list(results.done) == [str(number) for number in range(len(results.done))]
            assert len(results.done) > printed[-1]
            assert all(record == {"scores": [int(example_id)] * 2000} for example_id, record in results.done.items())


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_line_that_could_not_be_written_leaves_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    write = os.write

    def half(fd: int, data: memoryview) -> int:
        if len(data) > 20:
            return write(fd, data[: len(data) // 2])
        raise failure

    with ResultsFile(path, SETTINGS) as results:
        results.append("a", {})
        before = path.read_bytes()
        with monkeypatch.context() as broken:
            broken.setattr(os, "write", half)
            with pytest.raises(ResultsFileError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
                results.append("b", {"long": "x" * 1000})
        assert path.read_bytes() == before
        assert isinstance(failure, KeyboardInterrupt) or "No space left on device; its earlier lines are intact" in str(
            caught.value
        )
        assert results.append("b", {})
    assert list(content(path)[0]) == ["a", "b"]


def test_after_a_failed_truncation_nothing_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with ResultsFile(path, SETTINGS) as results:
        results.append("a", {})
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail)
            broken.setattr(os, "ftruncate", fail)
            with pytest.raises(ResultsFileError, match="Input/output error"):
                results.append("b", {})
        assert "b" not in results.done
        with pytest.raises(ResultsFileError, match="not open"):
            results.append("c", {})
    assert "a" in content(path)[0]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name(path: Path) -> None:
    run(path, "a")
    other = {"model": "demo", "methods": ["random"], "masks": {"samples": True, "pis": [0.05, 0.1]}, "seed": 1}
    message = refusal(path, other)
    assert 'methods was ["grad_ellm", "random"], and is ["random"] now' in message
    assert "masks.samples was 3, and is true now" in message
    assert "seed was absent, and is 1 now" in message
    assert "model" not in message
    assert "pis" not in message
    assert "methods was" in refusal(path, {name: SETTINGS[name] for name in ("model", "masks")})
    with ResultsFile(path, dict(reversed(SETTINGS.items()))) as results:  # the order does not matter
        assert list(results.done) == ["a"]


def test_a_results_file_is_locked(path: Path) -> None:
    run(path, "a")
    with ResultsFile(path, SETTINGS) as results:
        assert "another run is writing" in refusal(path)
        other = subprocess.run([sys.executable, "-c", RUN, path], capture_output=True, text=True, check=False)
        assert "another run is writing" in other.stderr
        with pytest.raises(ResultsFileError, match="open already"):
            results.__enter__()
        results.append("b", {})
    assert list(content(path)[0]) == ["a", "b"]


@pytest.mark.parametrize("line", ["{", "", "[]", '{"id": 1, "result": {}}', '{"id": "x"}', '{"id": "x", "result": 1}'])
def test_a_line_that_is_corrupt_in_the_middle_is_an_error(path: Path, line: str) -> None:
    run(path, "a", "b")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:], ""]))
    assert f"line 3 of {path} is not a result: {line!r}" in refusal(path)


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
def test_hostile_lines_are_named(path: Path, line: str) -> None:
    run(path, "a", "b")
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, line, *lines, ""]))
    assert f"line 2 of {path} is not a result" in refusal(path)


@pytest.mark.parametrize(
    "data", [b"hello", b"hello\n", b'{"text": "my data"}\n{"text": "more"}\n', b"\x89PNG\r\n", b"{}"]
)
def test_other_files_are_left_alone(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert "is not a results file" in refusal(path)


def test_other_versions_are_refused(path: Path) -> None:
    path.write_text('{"format": "gradellm evaluation", "version": 2, "settings": {}}\n')
    assert "has format version 2, but this gradellm reads version 1" in refusal(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path / "no" / "folder.jsonl")
    assert "Is a directory" in refusal(tmp_path)
    assert "not a regular file" in refusal(Path(os.devnull))
    assert issubclass(ResultsFileError, GradellmError)


def test_values_that_json_cannot_hold_are_refused_before_writing(path: Path) -> None:
    with ResultsFile(path, SETTINGS) as results:
        for record in ({"auc": float("nan")}, {"of": object()}, {"of": {1, 2}}):
            with pytest.raises(ResultsFileError, match="the result of example a cannot be written as JSON"):
                results.append("a", record)
        results.append("a", {})
    assert content(path) == ({"a": {}}, {})
    with pytest.raises(ResultsFileError, match="the settings cannot be written"):
        ResultsFile(path, {"seed": float("inf")})


def test_nothing_is_written_to_a_closed_file(path: Path) -> None:
    results = ResultsFile(path, SETTINGS)
    with pytest.raises(ResultsFileError, match="not open"):
        results.append("a", {})
    assert not path.exists()
