"""`gradellm evaluate` over a data set, its shards, and tables of several runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.rpc import code_pb2

from client.evaluation import fake_evaluator
from client.evaluation.fake_evaluator import FEW, NOWHERE, FakeEvaluator, evaluate_command, write_data
from gradellm.cli import main
from gradellm.evaluation import figures

Out = pytest.CaptureFixture[str]


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
    assert "AUC π-Soft-NS: not distinguishable from random: " in captured.out
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
    data = write_data(tmp_path / "data.jsonl", 6, e2="long")
    data.write_text(data.read_text() + '{"text": ""}\n{"text": "a", "label": "fine"}\n')
    assert main(evaluate_command(data, tmp_path / "out", server)) == 0
    err = capsys.readouterr().err
    assert f"2 bad rows, listed in {tmp_path}/out/bad_rows.txt; the first: {data}, line 7 has an empty text" in err
    assert f"1 example of 6 failed, the first: e2: {data}, line 3: input.messages: has 17 tokens, the limit is 5" in err
    bad = (tmp_path / "out" / "bad_rows.txt").read_text().splitlines()
    assert bad == [
        f"{data}, line 7: has an empty text",
        f"{data}, line 8: has the label 'fine', which is not a label of sst2: 0, 1, false, neg, negative, pos, "
        "positive, true",
    ]
    text = (tmp_path / "out" / "table1.md").read_text()
    assert "n = 5 of 6 examples, 1 failed, 2 bad rows" in text
    write_data(data, 6, e2="long")
    assert main(evaluate_command(data, tmp_path / "out", server)) == 0
    assert not (tmp_path / "out" / "bad_rows.txt").exists()


def test_a_custom_prompt_template(server: FakeEvaluator, tmp_path: Path, capsys: Out) -> None:
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
    data = write_data(tmp_path / "d.jsonl", 2)
    out = str(tmp_path / "out")
    assert main(["evaluate", "--data", str(data), *flags, *FEW, "--out", out, "--target", server.target]) == 0
    assert server.requests[0].generation.max_new_tokens == 12
    text = (tmp_path / "out" / "table1.md").read_text()
    assert "| Mine |" in text
    assert "sequence level, tokens 0, 4 .. of up to 12" in text


def test_a_model_without_a_chat_template(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    server.model.has_chat_template = False
    assert main(evaluate_command(data, tmp_path / "out", server)) == 0
    assert "models/fake has no chat template: prompts are raw texts" in capsys.readouterr().err
    assert all(prompt.startswith("You are a helpful sentiment classifier.") for prompt in server.prompts())
    assert "raw prompts" in (tmp_path / "out" / "table1.md").read_text()


def test_a_sample_in_equal_parts(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    assert main(evaluate_command(data, tmp_path / "out", server, "--sample", "4", "--balance", "--format", "json")) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["runs"][0]["settings"]["data"]["examples"] == 4
    assert sum(int(text.split()[2]) % 2 for text in server.prompts()) == 2


def test_methods_by_the_server(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    flags = ["--preset", "sst2", "--data", str(data), "--pis", "0.5", "--target", server.target]
    assert main(["evaluate", *flags, "--methods", "all", "--out", str(tmp_path / "a")]) == 0
    names = [method.name for method in server.requests[0].evaluation.methods]
    assert names == [*fake_evaluator.METHODS, "unloosened", "knockout"]  # the presets of an older server
    assert "grad_eclip is left out: attribution.rotary: this model has no rotary embedding" in capsys.readouterr().err
    for name, message in (("salience", "did you mean saliency"), ("relevance", "it has no gates")):
        assert main(["evaluate", *flags, "--methods", name, "--out", str(tmp_path / "b")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b" / "results.jsonl").exists()


def test_several_servers(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    other, third = FakeEvaluator(seconds=0.05), FakeEvaluator(dtype="bfloat16")
    try:
        targets = f"{server.target},{other.target}"
        assert main([*evaluate_command(data, tmp_path / "a", server)[:-6], "--target", targets, *FEW]) == 0
        assert len(server.requests) + len(other.requests) == 8
        targets = f"{server.target},{third.target}"
        assert main([*evaluate_command(data, tmp_path / "b", server)[:-6], "--target", targets, *FEW]) == 2
        assert "serve different dtypes, float32 (models/fake) and bfloat16 (models/fake)" in capsys.readouterr().err
    finally:
        other.stop()
        third.stop()


def test_other_settings_do_not_go_on_with_a_run(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    assert main(evaluate_command(data, tmp_path / "out", server)) == 0
    assert main(evaluate_command(data, tmp_path / "out", server, "--seed", "1")) == 65
    err = capsys.readouterr().err
    assert "belongs to a run with other settings: seed was 0, and is 1 now" in err
    assert main(evaluate_command(data, tmp_path / "out", server, "--concurrency", "1", "--patience", "9")) == 0


def test_without_matplotlib_the_tables_are_there(
    server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "missing_package", lambda: figures._MISSING)
    assert main(evaluate_command(data, tmp_path / "out", server)) == 0
    assert "figure2 is left out: plotting needs matplotlib: pip install 'gradellm[plots]'" in capsys.readouterr().err
    assert (tmp_path / "out" / "table1.md").exists()
    assert main(["evaluate", "a", "--plot", "x.png", "--target", server.target]) == 70


def test_nothing_could_be_evaluated(server: FakeEvaluator, tmp_path: Path, capsys: Out) -> None:
    data = write_data(tmp_path / "d.jsonl", 2, e0="long", e1="long long")
    assert main(evaluate_command(data, tmp_path / "out", server)) == 65
    assert "has no finished example to make a table of; 2 failed, " in capsys.readouterr().err
    data = write_data(tmp_path / "d.jsonl", 2, e0="nothing", e1="nothing")
    assert main(evaluate_command(data, tmp_path / "new", server)) == 65
    assert "no step could be measured" in capsys.readouterr().err


def test_without_servers_the_command_to_resume_is_printed(
    server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out
) -> None:
    server.failures = [(code_pb2.UNAVAILABLE, "going down")] * 1000
    assert main(evaluate_command(data, tmp_path / "out", server, "--patience", "0.1")) == 69
    err = capsys.readouterr().err
    assert "stopped: 0 of 8 examples are done and kept in" in err
    assert "this command resumes the run:\n  gradellm evaluate --preset sst2" in err
    assert "error: no server has answered for 0.1 s" in err
    server.failures = []
    assert main(evaluate_command(data, tmp_path / "out", server)) == 0
    assert main(evaluate_command(data, tmp_path / "new", server, "--tls")) == 69


def test_no_server_answers(data: Path, tmp_path: Path, capsys: Out) -> None:
    assert main(["evaluate", "--preset", "sst2", "--data", str(data), "--out", str(tmp_path / "o"), *NOWHERE]) == 69
    assert "no gradellm server answers at 127.0.0.1:1" in capsys.readouterr().err


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


def test_shards_produce_the_tables_of_one_run(server: FakeEvaluator, tmp_path: Path, capsys: Out) -> None:
    data = write_data(tmp_path / "d.jsonl", 13, e4="long", e7="nothing")
    data.write_text(data.read_text() + '{"text": ""}\n')
    metrics = ("--metrics", "pi_soft_ns,soft_ns,deletion", "--sample", "12", "--seed", "3")
    assert main(evaluate_command(data, tmp_path / "whole", server, *metrics)) == 0
    out = tmp_path / "parts"
    again = ["evaluate", "--merge", str(out), "--out", str(out)]
    of_data = ["--preset", "sst2", "--data", str(data), "--sample", "12", "--seed", "3"]
    for index in (0, 1):
        assert main(evaluate_command(data, out, server, *metrics, "--shard", f"{index}/3")) == 0
    capsys.readouterr()
    assert main(again) == 1
    captured = capsys.readouterr()
    assert "SST2 n = 7" in captured.out
    assert "4 examples are missing; add --data and the prompt of the run to list their ids" in captured.err
    assert main([*again, *of_data]) == 1
    assert (
        f"4 examples are missing, listed in {out}/missing.txt: run the unfinished shards again"
        in capsys.readouterr().err
    )
    assert len((out / "missing.txt").read_text().split()) == 4

    before = len(server.requests)
    assert main(evaluate_command(data, out, server, *metrics, "--shard", "2/3")) == 0
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
    assert "these are not the examples of the results" in capsys.readouterr().err


def test_a_shard_is_resumed_and_may_be_empty(server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out) -> None:
    for _ in range(2):
        assert main(evaluate_command(data, tmp_path / "out", server, "--shard", "1/4")) == 0
    assert sorted(server.prompts()) == [text for text in sorted(server.prompts()) if text.split()[2][:1] in "15"]
    assert len(server.requests) == 2
    assert "2 of 2 examples are done and kept in" in capsys.readouterr().err
    assert main(evaluate_command(data, tmp_path / "out", server, "--shard", "8/9")) == 0
    assert len(server.requests) == 2
