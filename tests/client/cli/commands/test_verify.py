"""`gradellm verify`: what it prints of verdicts, and its exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gradellm import Client, Explanation
from gradellm.cli import main
from gradellm.explanation.io import write_jsonl
from gradellm.explanation.verification import Verdict
from gradellm.explanation.verification.verdict import Mismatch, NotChecked

if TYPE_CHECKING:
    from client.conftest import FakeServer

Out = pytest.CaptureFixture[str]


@pytest.fixture
def stored(fake: FakeServer) -> Explanation:
    with Client(fake.target) as client:
        explanation = client.explain("Once upon a time")
    fake.requests.clear()
    return explanation


@pytest.fixture
def verify(fake: FakeServer, stored: Explanation, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command on a file whose verdict is given, and returns the exit code and the output."""

    def run(verdict: Verdict, *flags: str) -> tuple[int, str]:
        monkeypatch.setattr("gradellm.cli.commands.verify.verified", lambda *_, **__: verdict)
        stored.save(tmp_path / "a.json")
        monkeypatch.chdir(tmp_path)
        return main(["verify", "a.json", *flags, "--target", fake.target]), capsys.readouterr().out

    return run


HOLDS = Verdict(3, 2e-6, 1, 1e-7, ())


def test_an_explanation_that_holds(verify: Any) -> None:
    assert verify(HOLDS) == (
        0,
        "a.json: holds; largest difference of 3 rows 2e-06 of the row's largest score (token 1), of log-probabilities "
        "1e-07\n  model, versions and settings match\n",
    )


def test_a_mismatch_of_the_provenance_counts_if_strict(verify: Any) -> None:
    verdict = replace(HOLDS, mismatches=(Mismatch("versions.torch", "1", ""),))
    code, out = verify(verdict)
    assert (code, out.splitlines()[1:]) == (0, ["  versions.torch was 1, is none"])
    assert out.startswith("a.json: holds, but the provenance differs; ")
    code, out = verify(verdict, "--strict")
    assert code == 1
    assert out.startswith("a.json: DIFFERS: the numbers hold, but the provenance differs (--strict); ")


def test_many_problems_are_counted(verify: Any) -> None:
    code, out = verify(replace(HOLDS, problems=tuple(f"p{i}\x1b[2J" for i in range(15))))
    lines = out.splitlines()
    assert code == 1
    assert lines[0].startswith("a.json: DIFFERS; largest difference")
    assert lines[1:14] == [*(f"  p{i}^[[2J" for i in range(12)), "  and 3 more; --json lists all"]
    code, out = verify(replace(HOLDS, problems=("p",) * 15), "--json")
    assert (code, len(json.loads(out)["problems"]), json.loads(out)["file"]) == (1, 15, "a.json")


def test_unchecked_fields_are_listed_by_reason(verify: Any) -> None:
    not_checked = tuple(NotChecked(f"finished.timings.{name}", "they vary") for name in ("a", "b"))
    _, out = verify(replace(HOLDS, not_checked=not_checked))
    assert out.splitlines()[-1] == "  not checked: finished.timings: a, b (they vary)"


def test_another_model_computes_nothing(verify: Any) -> None:
    code, out = verify(Verdict(0, 0.0, None, 0.0, (), other_model="the server hosts another model"))
    assert (code, out) == (1, "a.json: DIFFERS: the server hosts another model. Nothing was computed\n")


def test_one_explanation_that_differs_makes_the_exit_code(
    fake: FakeServer, stored: Explanation, tmp_path: Path, capsys: Out
) -> None:
    row = stored.attributions[1]
    changed = replace(row, scores=(0.9, *row.scores[1:]))
    write_jsonl(
        [replace(stored, attributions=(stored.attributions[0], changed, stored.attributions[2])), stored],
        tmp_path / "a.jsonl",
    )
    assert main(["verify", str(tmp_path / "a.jsonl"), "--target", fake.target]) == 1
    verdicts = [line for line in capsys.readouterr().out.splitlines() if "largest difference" in line]
    assert [line.partition(";")[0].removeprefix(str(tmp_path)) for line in verdicts] == [
        "/a.jsonl:1: DIFFERS", "/a.jsonl:2: holds",
    ]  # fmt: skip


def test_no_file_is_replayed_if_one_cannot_be(
    fake: FakeServer, stored: Explanation, tmp_path: Path, capsys: Out
) -> None:
    stored.save(tmp_path / "a.json")
    replace(stored, tokens=(), attributions=()).save(tmp_path / "b.json")
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert main(["verify", *files, "--target", fake.target]) == 65
    assert f"error: {tmp_path}/b.json: nothing was explained" in capsys.readouterr().err
    assert fake.requests == []


@pytest.mark.parametrize("tolerance", ["1", "-0.1", "nan", "x"])
def test_a_tolerance_is_a_share(tolerance: str, capsys: Out) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "a.json", "--tolerance", tolerance])
    assert f"must be a number from 0 to below 1, not {tolerance!r}" in capsys.readouterr().err
