"""`gradellm evaluate`: a prompt, a data set over servers that come and go, tables; and every way to be told no."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.rpc import code_pb2

from client.cli.test_cli import start, with_path
from client.evaluation import fake_evaluator
from client.evaluation.fake_evaluator import FakeEvaluator
from gradellm import EvaluationReport
from gradellm.cli import main
from gradellm.cli.progress import Progress, bar, clock
from gradellm.evaluation import figures
from gradellm.evaluation.run_results import read_run
from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

Out = pytest.CaptureFixture[str]


@pytest.fixture
def server() -> Iterator[FakeEvaluator]:
    running = FakeEvaluator()
    yield running
    running.stop()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", 8)


def write(path: Path, count: int, **words: str) -> Path:
    """Sentences with labels; words come into the texts of the examples that they are given for: e3="long"."""
    lines = [
        {"id": f"e{i}", "text": f"text {i} {words.get(f'e{i}', '')}".strip(), "label": "positive" if i % 2 else 0}
        for i in range(count)
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


FEW = ("--methods", "grad_ellm,random", "--pis", "0.25,0.5")


def asked(data: Path, out: Path, server: FakeEvaluator, *more: str) -> list[str]:
    return [
        "evaluate",
        "--preset",
        "sst2",
        "--data",
        str(data),
        "--out",
        str(out),
        "--target",
        server.target,
        *FEW,
        *more,
    ]


# --- one prompt -------------------------------------------------------------------------------------------------------

EVERY_FLAG = """
    --chat --system S --segment why=0:4 --labels Positive,Negative --methods grad_ellm,knockout,saliency,random
    --metrics pi_soft_ns,auprc --pis 0.25,0.5 --samples 4 --stride 3 --offset 2 --seed 9 --perturb prompt --removal zero
    --raw-scores --rationale why --timeout 20
"""


def test_every_flag_of_a_prompt(server: FakeEvaluator) -> None:
    assert main(["evaluate", "Once", *EVERY_FLAG.split(), "--target", server.target]) == 0
    methods = [
        pb.EvaluatedMethod(name="grad_ellm", attribution=pb.AttributionOptions(method="grad_ellm")),
        pb.EvaluatedMethod(name="knockout", attribution=pb.AttributionOptions(preset=pb.PRESET_KNOCKOUT)),
        pb.EvaluatedMethod(name="saliency", attribution=pb.AttributionOptions(method="saliency")),
        pb.EvaluatedMethod(name="random", attribution=pb.AttributionOptions(method="random")),
    ]
    messages = [pb.Message(role="system", content="S"), pb.Message(role="user", content="Once")]
    assert server.requests == [
        pb.EvaluateRequest(
            input=pb.Input(messages=messages, segments=[pb.Segment(name="why", message=1, start=0, end=4)]),
            labels=["Positive", "Negative"],
            evaluation=pb.EvaluationOptions(
                methods=methods,
                metrics=[pb.METRIC_PI_SOFT_NS, pb.METRIC_AUPRC],
                pis=[0.25, 0.5],
                samples=4,
                stride=3,
                offset=2,
                seed=9,
                perturb=pb.PERTURB_PROMPT,
                removal=pb.REMOVAL_ZERO,
                raw_scores=True,
                rationale=["why"],
            ),
        )
    ]


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--completion", " there"], "completion", " there"),
        (["--completion-ids", "1,2"], "completion_ids", [1, 2]),
        (["--max-new-tokens", "7"], "generation", pb.GenerationOptions(max_new_tokens=7)),
    ],
)
def test_the_completion_in_its_forms(server: FakeEvaluator, flags: list[str], field: str, value: object) -> None:
    assert main(["evaluate", "Once", *flags, "--target", server.target]) == 0
    assert getattr(server.requests[0], field) == value
    assert [one.name for one in server.requests[0].evaluation.methods] == ["grad_ellm", "random"]


def test_a_table_of_one_prompt(server: FakeEvaluator, capsys: Out) -> None:
    flags = [*FEW, "--metrics", "pi_soft_ns,soft_nc,deletion"]
    assert main(["evaluate", "Once", *flags, "--labels", "Positive,Negative", "--target", server.target]) == 0
    out = capsys.readouterr().out
    assert "prompt of 9 tokens, 6 of which are perturbed; predicted label 'Positive'" in out
    head, first, second = out.split("\n\n")[1].split("\n")
    assert head.split("  ")[0] == "AUC π-Soft-NS ↑"
    assert re.fullmatch(r"  grad_ellm +0\.\d{3} +0\.\d{3} to \d\.\d{3} +\+0\.100 +\+0\.000 to \+1\.000", first)
    assert re.fullmatch(r"  random +0\.\d{3} +0\.\d{3} to \d\.\d{3}", second)
    assert re.search(r"Soft-NC ↑.* E\[R\]\n.* 4\.5\n", out)
    assert "Deletion ↑" in out
    assert "they say nothing about other" in out


def test_one_prompt_as_json_and_as_a_plot(server: FakeEvaluator, capsys: Out, tmp_path: Path) -> None:
    plot = tmp_path / "new" / "a.png"
    flags = [*FEW, "--metrics", "pi_soft_ns,pi_soft_nc", "--format", "json", "--plot", str(plot)]
    assert main(["evaluate", "Once", *flags, "--target", server.target]) == 0
    report = EvaluationReport.from_json(capsys.readouterr().out)
    assert report.curves.keys() == {"pi_soft_ns", "pi_soft_nc"}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_measure_is_said(server: FakeEvaluator, capsys: Out, tmp_path: Path) -> None:
    flags = ["--plot", str(tmp_path / "a.png")]
    assert main(["evaluate", "nothing", *flags, "--target", server.target]) == 0
    captured = capsys.readouterr()
    assert "1 of 1 tokens are skipped" in captured.out
    assert "nothing could be measured" in captured.out
    assert "no curves to draw" in captured.err


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_of_a_prompt(
    server: FakeEvaluator, capsys: Out, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert main(["evaluate", "Once", "--target", server.target]) == 0
    assert ("\r 50% evaluated\r\033[K" in capsys.readouterr().err) == is_terminal


# --- a data set -------------------------------------------------------------------------------------------------------


def test_a_data_set(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    out = tmp_path / "out"
    metrics = "pi_soft_ns,pi_soft_nc,soft_ns,soft_nc,insertion,deletion"
    arguments = ["evaluate", "--preset", "sst2", "--data", str(data), "--out", str(out), "--target", server.target]
    assert main([*arguments, "--metrics", metrics]) == 0
    captured = capsys.readouterr()
    assert "models/fake; SST2 n = 8; 95 % intervals by bootstrap over examples" in captured.out
    head = captured.out.split("\n")[3].split()
    assert head == ["Attn", "DL", "I×G", "IG", "LGA", "Rnd", "Sal", "VZ", "Ours", "w/o", "knockout"]
    assert "AUC π-Soft-NS: not told from random: " in captured.out
    assert "table1.md, table1.csv" in captured.err
    names = {path.name for path in out.iterdir()}
    assert names == {
        "results.jsonl", "figure2.png", "figure2.svg",
        *(f"{table}.{kind}" for table in ("table1", "table2", "table4-models-fake") for kind in ("md", "csv", "json")),
    }  # fmt: skip
    request = server.requests[0]
    assert list(request.labels) == ["Positive", "Negative"]
    assert request.input.messages[1].content.startswith("Text: text ")
    assert f"Made by: `gradellm evaluate --preset sst2 --data {data}" in (out / "table1.md").read_text()


def test_bad_rows_and_failures_are_listed(server: FakeEvaluator, tmp_path: Path, capsys: Out) -> None:
    data = write(tmp_path / "data.jsonl", 6, e2="long")
    data.write_text(data.read_text() + '{"text": ""}\n{"text": "a", "label": "fine"}\n')
    assert main(asked(data, tmp_path / "out", server)) == 0
    err = capsys.readouterr().err
    assert (
        f"2 rows cannot be asked, listed in {tmp_path}/out/bad_rows.txt; the first: {data}, line 7 has an empty text"
        in err
    )
    assert f"1 example of 6 failed, the first: e2: {data}, line 3: input.messages: has 17 tokens, the limit is 5" in err
    bad = (tmp_path / "out" / "bad_rows.txt").read_text().splitlines()
    assert bad == [
        f"{data}, line 7: has an empty text",
        f"{data}, line 8: has the label 'fine', which is no label; sst2 knows 0, 1, false, neg, negative, pos, "
        "positive, true",
    ]
    text = (tmp_path / "out" / "table1.md").read_text()
    assert "n = 5 of 6 examples, 1 failed, 2 bad rows" in text
    write(data, 6, e2="long")
    assert main(asked(data, tmp_path / "out", server)) == 0
    assert not (tmp_path / "out" / "bad_rows.txt").exists()


def test_a_prompt_of_ones_own(server: FakeEvaluator, tmp_path: Path, capsys: Out) -> None:
    data = tmp_path / "reviews.csv"
    data.write_text("body,stars\nGood. It was. Really.,5\nBad. Oh. No.,1\n")
    flags = ["--prompt-template", "Say: {text}", "--system", "S", "--label-words", "good=5,bad=1|2", "--raw"]
    flags += ["--columns", "text=body,label=stars", "--first-sentences", "2", "--out", str(tmp_path / "a.jsonl")]
    assert main(["evaluate", "--data", str(data), *flags, *FEW, "--target", server.target]) == 0
    assert sorted(request.input.prompt for request in server.requests) == [
        "S\n\nSay: Bad. Oh.", "S\n\nSay: Good. It was.",
    ]  # fmt: skip
    assert list(server.requests[0].labels) == ["good", "bad"]
    assert "reviews n = 2" in capsys.readouterr().out
    assert (tmp_path / "a.table1.md").exists()
    assert json.loads((tmp_path / "a.jsonl").read_text().split("\n")[0])["settings"]["prompt"]["form"] == "raw"


def test_open_generation(server: FakeEvaluator, tmp_path: Path) -> None:
    flags = ["--prompt-template", "{text}", "--max-new-tokens", "12", "--stride", "4", "--name", "Mine"]
    data = write(tmp_path / "d.jsonl", 2)
    out = str(tmp_path / "out")
    assert main(["evaluate", "--data", str(data), *flags, *FEW, "--out", out, "--target", server.target]) == 0
    assert server.requests[0].generation.max_new_tokens == 12
    text = (tmp_path / "out" / "table1.md").read_text()
    assert "| Mine |" in text
    assert "sequence level, tokens 0, 4 .. of up to 12" in text


def test_a_model_without_a_chat_template(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    server.model.has_chat_template = False
    assert main(asked(data, tmp_path / "out", server)) == 0
    assert "models/fake has no chat template: prompts are raw texts" in capsys.readouterr().err
    assert all(prompt.startswith("You are a helpful sentiment classifier.") for prompt in server.prompts())
    assert "raw prompts" in (tmp_path / "out" / "table1.md").read_text()


def test_a_sample_in_equal_parts(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    assert main(asked(data, tmp_path / "out", server, "--sample", "4", "--balance", "--format", "json")) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["runs"][0]["settings"]["data"]["examples"] == 4
    assert sum(int(text.split()[2]) % 2 for text in server.prompts()) == 2


def test_methods_by_the_server(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    flags = ["--preset", "sst2", "--data", str(data), "--pis", "0.5", "--target", server.target]
    assert main(["evaluate", *flags, "--methods", "all", "--out", str(tmp_path / "a")]) == 0
    names = [one.name for one in server.requests[0].evaluation.methods]
    assert names == [*fake_evaluator.METHODS, "unloosened", "knockout"]
    assert "grad_eclip is left out: attribution.rotary: this model has no rotary embedding" in capsys.readouterr().err
    for name, message in (("salience", "did you mean saliency"), ("relevance", "it has no gates")):
        assert main(["evaluate", *flags, "--methods", name, "--out", str(tmp_path / "b")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b" / "results.jsonl").exists()


def test_several_servers(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    other, third = FakeEvaluator(seconds=0.05), FakeEvaluator(dtype="bfloat16")
    try:
        targets = f"{server.target},{other.target}"
        assert main([*asked(data, tmp_path / "a", server)[:-6], "--target", targets, *FEW]) == 0
        assert len(server.requests) + len(other.requests) == 8
        targets = f"{server.target},{third.target}"
        assert main([*asked(data, tmp_path / "b", server)[:-6], "--target", targets, *FEW]) == 2
        assert "serve different dtypes, float32 (models/fake) and bfloat16 (models/fake)" in capsys.readouterr().err
    finally:
        other.stop()
        third.stop()


def test_other_settings_do_not_go_on_with_a_run(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    assert main(asked(data, tmp_path / "out", server)) == 0
    assert main(asked(data, tmp_path / "out", server, "--seed", "1")) == 65
    err = capsys.readouterr().err
    assert "belongs to a run with other settings: seed was 0, and is 1 now" in err
    assert main(asked(data, tmp_path / "out", server, "--concurrency", "1", "--patience", "9")) == 0


def test_without_matplotlib_the_tables_are_there(
    server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "can_draw", lambda: figures._MISSING)
    assert main(asked(data, tmp_path / "out", server)) == 0
    assert "figure2 is left out: drawing needs matplotlib: pip install 'gradellm[plots]'" in capsys.readouterr().err
    assert (tmp_path / "out" / "table1.md").exists()
    assert main(["evaluate", "a", "--plot", "x.png", "--target", server.target]) == 70


def test_nothing_could_be_evaluated(server: FakeEvaluator, tmp_path: Path, capsys: Out) -> None:
    data = write(tmp_path / "d.jsonl", 2, e0="long", e1="long long")
    assert main(asked(data, tmp_path / "out", server)) == 65
    assert "has no example that is done, of which to make a table; 2 failed, " in capsys.readouterr().err
    data = write(tmp_path / "d.jsonl", 2, e0="nothing", e1="nothing")
    assert main(asked(data, tmp_path / "new", server)) == 65
    assert "no step could be measured" in capsys.readouterr().err


def test_when_all_servers_are_gone_it_says_how_to_go_on(
    server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out
) -> None:
    server.failures = [(code_pb2.UNAVAILABLE, "going down")] * 1000
    assert main(asked(data, tmp_path / "out", server, "--patience", "0.1")) == 69
    err = capsys.readouterr().err
    assert "stopped: 0 of 8 examples are done and kept in" in err
    assert "this goes on from there:\n  gradellm evaluate --preset sst2" in err
    assert "error: no server has answered for 0.1 s" in err
    server.failures = []
    assert main(asked(data, tmp_path / "out", server)) == 0
    assert main(asked(data, tmp_path / "new", server, "--tls")) == 69


# --- told no, before anything is done ---------------------------------------------------------------------------------


def by_flag(message: str) -> str:
    field, _, said = message.partition(": ")
    if field == "prompt":  # which has none
        return message
    return f"--{field.replace('_', '-')}: {said}"


NOWHERE = ["--target", "127.0.0.1:1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset sst --data D --out O", "preset: there is no preset 'sst'; did you mean sst2?"),
        ("--data D --out O", "preset: must be given with --data, one of sst2, imdb"),
        ("--preset sst2 --data D", "out: must be given"),
        ("--prompt-template {text} --out O", "data: must be given with --prompt-template"),
        ("--preset sst2 --prompt-template {text} --data D --out O", "prompt_template: is a prompt of your own"),
        ("--preset sst2 --data D --out O --label-words a,b", "label_words: has no meaning beside --preset"),
        ("--preset sst2 --data D --out O --system S", "system: has no meaning beside --preset"),
        ("--preset sst2 --data D --out O --max-new-tokens 4", "max_new_tokens: has no meaning where label words"),
        ("--preset sst2 --data D --out O --balance", "balance: needs --sample"),
        ("--preset wikibio --data D --out O --sample 1 --balance", "balance: needs label words"),
        ("--preset sst2 --data D --out O --labels a,b", "labels: has no meaning beside a data set"),
        ("--preset sst2 --data D --out O --chat", "chat: has no meaning beside a data set"),
        ("--preset sst2 --data D --out O --plot a.png", "plot: has no meaning beside a data set"),
        ("a --preset sst2 --data D --out O", "prompt: has no meaning beside a data set"),
        (
            "--preset sst2 --data D --out O --metrics pi_soft",
            "metrics: there is no metric 'pi_soft'; did you mean pi_soft_",
        ),
        (
            "--preset sst2 --data D --out O --metrics auprc",
            "metrics: auprc compares with human rationales, and no example",
        ),
        ("--preset sst2 --data D --out O --pis 0.5,0.2", "pis: must ascend"),
        ("--preset sst2 --data D --out O --concurrency 0", "concurrency: must be 1 or more"),
        ("--preset sst2 --data D --out O --target x,x", "target: x is there twice"),
        ("--preset sst2 --data D --out O --model m", "model: is for a server that is started here"),
        ("--prompt-template {text --data D --out O", "prompt_template: has a brace without its other half"),
        ("--prompt-template {text} --data D --out O --columns a=b", "columns: names 'a'"),
        ("a --out O", "out: has no meaning beside a prompt"),
        ("a --sample 4", "sample: has no meaning beside a prompt"),
        ("a --target x,y", "target: one server evaluates a prompt"),
        ("a --methods x,x", "methods: x is there twice"),
        ("a --completion b --labels c,d", "labels: "),
        ("a --plot b.png --metrics deletion", "plot: draws curves over pi"),
        ("--chat", "prompt: exactly one of prompt"),
        ("--tables O --seed 0", "seed: has no meaning beside --tables"),
        ("--tables O --target x", "target: has no meaning beside --tables"),
        ("--tables O --system x", "system: has no meaning beside --tables"),
        ("--tables O --merge O", "merge: has no meaning beside --tables"),
        ("--tables O --shard 0/1", "shard: has no meaning beside --tables"),
        ("--merge O", "out: must be given"),
        ("--merge O --out O --samples 3", "samples: has no meaning beside --merge"),
        ("--merge O --out O --target x", "target: has no meaning beside --merge"),
        ("--merge O --out O --shard 0/1", "shard: has no meaning beside --merge"),
        ("--preset sst2 --data D --out O --shard 2/2", "shard: must be INDEX/COUNT"),
        ("a --shard 0/1", "shard: has no meaning beside a prompt"),
    ],
)
def test_flags_that_contradict_one_another(
    arguments: str, message: str, data: Path, tmp_path: Path, capsys: Out
) -> None:
    said = [str(data) if word == "D" else str(tmp_path / "out") if word == "O" else word for word in arguments.split()]
    target = [] if "--target" in said or {"--tables", "--merge"} & {*said} else NOWHERE
    assert main(["evaluate", *said, *target]) == 2
    captured = capsys.readouterr()
    assert f"error: {by_flag(message)}" in captured.err
    assert "starting" not in captured.err
    assert not (tmp_path / "out" / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: it has no row"),
        (
            b'{"text": "a", "label": "fine"}\n',
            "has no row that can be used, 1 of 1 are bad: line 1 has the label 'fine'",
        ),
        (b'{"text": "a"}\n\xff\n', "is not UTF-8: byte 0xff at line 2, byte 1 of it"),
        (b"[1]\n", "line 1 is no JSON object"),
        (None, "there is no file"),
    ],
)
def test_data_that_cannot_be_used(content: bytes | None, message: str, tmp_path: Path, capsys: Out) -> None:
    data = tmp_path / "d.jsonl"
    if content is not None:
        data.write_bytes(content)
    assert main(["evaluate", "--preset", "sst2", "--data", str(data), "--out", str(tmp_path / "o"), *NOWHERE]) == 65
    assert message in capsys.readouterr().err


def test_more_than_there_is(data: Path, tmp_path: Path, capsys: Out) -> None:
    flags = ["--preset", "sst2", "--data", str(data), "--out", str(tmp_path / "o"), *NOWHERE]
    assert main(["evaluate", *flags, "--sample", "9"]) == 65
    assert "a sample of 9 examples was asked for, and the data has 8" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(data: Path, capsys: Out) -> None:
    assert main(["evaluate", "--preset", "sst2", "--data", str(data), "--out", f"{data}/out", *NOWHERE]) == 65
    assert "cannot be made: Not a directory; choose another" in capsys.readouterr().err


def test_nobody_answers(data: Path, tmp_path: Path, capsys: Out) -> None:
    assert main(["evaluate", "--preset", "sst2", "--data", str(data), "--out", str(tmp_path / "o"), *NOWHERE]) == 69
    assert "no gradellm server answers at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--methods", "a,,b"], ["--pis", "x"], ["--columns", "a"], ["--removal", "shred"]])
def test_flags_that_cannot_be_read(flags: list[str], capsys: Out) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "a", *flags])
    assert caught.value.code == 2
    assert "usage: gradellm evaluate" in capsys.readouterr().err


# --- tables of several runs -------------------------------------------------------------------------------------------


def test_tables_of_several_runs(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    runs = [str(tmp_path / name) for name in ("imdb", "sst2")]
    for out in runs:
        flags = ["--preset", Path(out).name, "--data", str(data), "--out", out, "--target", server.target]
        assert main(["evaluate", *flags, *FEW]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--tables", *reversed(runs), "--out", str(tmp_path / "both")]) == 0
    captured = capsys.readouterr()
    rows = [line.split()[0] for line in captured.out.split("\n")[4:12]]
    assert rows == ["AUC", "IMDb", "SST2", "Avg"] * 2
    names = {path.name for path in (tmp_path / "both").iterdir()}
    assert {"table1.md", "figure2-1-sst2.png", "figure2-2-imdb.svg"} <= names
    assert main(["evaluate", "--tables", *runs]) == 0  # to the terminal alone
    assert main(["evaluate", "--tables", runs[0], runs[0]]) == 2
    assert main(["evaluate", "--tables", str(tmp_path)]) == 65


# --- shards -----------------------------------------------------------------------------------------------------------


def numbers(out: Path) -> dict[str, Any]:
    """The tables as JSON, but for the command that made them."""
    return {
        path.name: {name: value for name, value in json.loads(path.read_text()).items() if name != "command"}
        for path in sorted(out.glob("*.json"))
    }


def test_shards_make_the_tables_of_one_run(server: FakeEvaluator, tmp_path: Path, capsys: Out) -> None:
    data = write(tmp_path / "d.jsonl", 13, e4="long", e7="nothing")
    data.write_text(data.read_text() + '{"text": ""}\n')
    metrics = ("--metrics", "pi_soft_ns,soft_ns,deletion", "--sample", "12", "--seed", "3")
    assert main(asked(data, tmp_path / "whole", server, *metrics)) == 0
    out = tmp_path / "parts"
    again = ["evaluate", "--merge", str(out), "--out", str(out)]
    of_data = ["--preset", "sst2", "--data", str(data), "--sample", "12", "--seed", "3"]
    for index in (0, 1):
        assert main(asked(data, out, server, *metrics, "--shard", f"{index}/3")) == 0
    capsys.readouterr()
    assert main(again) == 1
    captured = capsys.readouterr()
    assert "SST2 n = 7" in captured.out
    assert "4 examples are missing; with the run's --data and prompt, their ids are listed" in captured.err
    assert main([*again, *of_data]) == 1
    assert f"4 examples are missing, listed in {out}/missing.txt: run the shards again" in capsys.readouterr().err
    assert len((out / "missing.txt").read_text().split()) == 4

    before = len(server.requests)
    assert main(asked(data, out, server, *metrics, "--shard", "2/3")) == 0
    assert "shard 2/3 is done" in capsys.readouterr().err
    assert len(server.requests) == before + 4
    assert main([*again, *of_data]) == 0
    assert not (out / "missing.txt").exists()
    assert numbers(out) == numbers(tmp_path / "whole")
    assert (out / "figure2.svg").read_bytes() == (tmp_path / "whole" / "figure2.svg").read_bytes()
    assert (out / "bad_rows.txt").read_text() == (tmp_path / "whole" / "bad_rows.txt").read_text()
    lines = [sorted((folder / "results.jsonl").read_text().splitlines()) for folder in (out, tmp_path / "whole")]
    assert lines[0] == lines[1]
    assert {path.name for path in (out / "shards").iterdir()} == {
        f"{index}-of-3{kind}" for index in range(3) for kind in (".jsonl", ".bad_rows.txt")
    }
    assert main([*again, *of_data[:-1], "4"]) == 65
    assert "these are not the examples that the results are of" in capsys.readouterr().err


def test_a_shard_is_resumed_and_may_be_empty(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    for _ in range(2):
        assert main(asked(data, tmp_path / "out", server, "--shard", "1/4")) == 0
    assert sorted(server.prompts()) == [text for text in sorted(server.prompts()) if text.split()[2][:1] in "15"]
    assert len(server.requests) == 2
    assert "2 of 2 examples are done and kept in" in capsys.readouterr().err
    assert main(asked(data, tmp_path / "out", server, "--shard", "8/9")) == 0
    assert len(server.requests) == 2


# --- stopped and resumed ----------------------------------------------------------------------------------------------


def in_folder(folder: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the command in a folder of its own, so that it is the same command everywhere."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "gradellm", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=with_path(),
    )  # fmt: skip


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture
def slow() -> Iterator[FakeEvaluator]:
    running = FakeEvaluator(seconds=0.1)
    yield running
    running.stop()


def test_killed_and_resumed_makes_the_same_tables(slow: FakeEvaluator, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", 24, e4="long", e7="nothing")
    arguments = asked(data, Path("out"), slow, "--metrics", "pi_soft_ns,soft_ns,deletion")
    whole = in_folder(tmp_path / "whole", arguments)
    killed = in_folder(tmp_path / "killed", arguments)
    until(lambda: lines(tmp_path / "killed/out/results.jsonl") >= 6)
    killed.kill()
    killed.communicate()
    before = lines(tmp_path / "killed/out/results.jsonl")
    assert 6 <= before < 25
    resumed = in_folder(tmp_path / "killed", arguments)
    assert resumed.communicate(timeout=60)[0] == whole.communicate(timeout=60)[0]
    assert (resumed.returncode, whole.returncode) == (0, 0)
    for name in ("table1", "table2", "table4-models-fake"):
        for kind in ("md", "csv", "json"):
            of = [(tmp_path / folder / "out" / f"{name}.{kind}").read_bytes() for folder in ("whole", "killed")]
            assert of[0] == of[1]
    ids = [json.loads(line)["id"] for line in (tmp_path / "killed/out/results.jsonl").read_text().splitlines()[1:]]
    assert len([one for one in ids if one != "e4"]) == 23


def test_an_interrupt_loses_nothing_and_says_how_to_go_on(slow: FakeEvaluator, tmp_path: Path) -> None:
    data = write(tmp_path / "d.jsonl", 30)
    out = tmp_path / "out"
    process = start(*asked(data, out, slow))
    until(lambda: lines(out / "results.jsonl") >= 4)
    process.send_signal(signal.SIGINT)
    stdout, err = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, b"")
    done = len(read_run(str(out)).records)
    said = re.search(
        r"(\d+)/30.*\ninterrupted: (\d+) of 30 examples are done and kept in \S+; (\d) were under way and are "
        r"evaluated anew, for only whole examples are kept; this goes on from there:\n  (.*)\n",
        err.decode(),
    )
    assert said is not None
    assert int(said[1]) == int(said[2]) == done
    assert 1 < int(said[3]) <= 2  # --concurrency
    assert said[4].startswith("gradellm evaluate --preset sst2 --data ")
    assert b"Traceback" not in err


# --- real servers -----------------------------------------------------------------------------------------------------


def test_real_servers_of_which_one_is_killed(tmp_path: Path) -> None:
    """Two servers of the demo model; one dies in the middle, the other brings all to an end."""
    socket = tmp_path / "killed.sock"
    killed = subprocess.Popen(
        [sys.executable, "-m", "gradellm_server", "--exit-with-stdin", "--listen", f"unix:{socket}"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    data, out = write(tmp_path / "d.jsonl", 16), tmp_path / "out"
    other = RunningServer(Engine.load(), ServerSettings(listen="127.0.0.1:0"))
    try:
        until(socket.exists)
        command = ["evaluate", "--preset", "sst2", "--data", str(data), "--out", str(out), *FEW]
        run = start(*command, "--target", f"unix:{socket},{other.address}")
        until(lambda: lines(out / "results.jsonl") >= 5)
        killed.kill()
        stdout, err = run.communicate(timeout=100)
    finally:
        killed.kill()
        killed.wait()
        other.close()
    assert run.returncode == 0, err.decode()
    assert b"SST2 n = 16;" in stdout
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()[1:]]
    assert sorted(line["id"] for line in results) == sorted(f"e{i}" for i in range(16))
    assert f"unix:{socket} rests for 1 s: " in err.decode()


# --- progress ---------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Run:
    """A runner that stands still."""

    def __init__(self, **changes: Any) -> None:
        self.servers: list[Any] = []
        self.total, self.done_before, self.done_now, self.failed_now = 10, 1, 3, 1
        self.began = time.monotonic() - 6
        self.__dict__.update(changes)


def test_the_bar_on_a_terminal() -> None:
    stream = Terminal()
    progress = Progress("SST2", stream)
    run: Any = Run()
    progress.show(run)
    progress.show(run)  # too early
    progress.tell("a server\x1b[2J rests")
    progress.close(run)
    drawn, said, end = stream.getvalue().split("\r\033[K")[1:]
    assert drawn == "SST2 ▕██████      ▏ 50% 4/10 · 1 failed · 2.0 s each · 0:08 left"
    assert said == f"a server^[[2J rests\n{drawn}"
    assert end == f"{drawn}\n"


def test_the_last_bar_has_whole_examples_alone() -> None:
    """What is under way is work, and is not kept."""
    server: Any = SimpleNamespace(is_up=True, is_refused=False, busy_until=0.0, running={"a": 0.9, "b": 0.95})
    run: Any = Run(servers=[server], total=2, done_before=0, done_now=0, failed_now=0)
    stream = Terminal()
    progress = Progress("SST2", stream)
    progress.show(run)
    progress.close(run)
    drawn, end = stream.getvalue().split("\r\033[K")[1:]
    assert " 92% 0/2" in drawn
    assert "  0% 0/2" in end
    server.running = {"a": 1.0, "b": 1.0}
    stream = Terminal()
    Progress("SST2", stream).show(run)
    assert "99% 0/2" in stream.getvalue()


def test_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress = Progress("SST2", stream)
    run: Any = Run(done_now=9, failed_now=0)
    progress.show(run)
    assert stream.getvalue() == ""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 10.5)
    progress.show(run)
    assert re.fullmatch(r"SST2 ▕█+▏100% 10/10 · 1.8 s each · took 0:1[67]\n", stream.getvalue())


def test_parts_of_the_bar() -> None:
    assert [bar(share, 2) for share in (0, 0.25, 0.5, 0.9, 1, 7)] == [
        "▕  ▏  0%", "▕▌ ▏ 25%", "▕█ ▏ 50%", "▕█▊▏ 90%", "▕██▏100%", "▕██▏700%",
    ]  # fmt: skip
    assert [clock(seconds) for seconds in (0, 7.4, 754, 3723)] == ["0:00", "0:07", "12:34", "1:02:03"]
