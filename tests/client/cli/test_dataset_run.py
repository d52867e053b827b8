"""Flags of `gradellm evaluate` become a run over a data set, or are refused before a server is asked."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from client.evaluation.fake_evaluator import NOWHERE, FakeEvaluator
from gradellm import Client
from gradellm.cli import main, options
from gradellm.cli.commands.evaluate import add_data, add_evaluation
from gradellm.cli.dataset_run import data_preset, read_dataset_run, resolve_for_model

Out = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset sst --data D --out O", "--preset: there is no preset 'sst'; did you mean sst2?"),
        ("--data D --out O", "--preset: must be given with --data, one of sst2, imdb"),
        ("--preset sst2 --data D", "--out: must be given"),
        ("--prompt-template {text} --out O", "--data: must be given with --prompt-template"),
        (
            "--preset sst2 --prompt-template {text} --data D --out O",
            "--prompt-template: cannot be combined with --preset sst2",
        ),
        ("--preset sst2 --data D --out O --label-words a,b", "--label-words: cannot be combined with --preset"),
        ("--preset sst2 --data D --out O --system S", "--system: cannot be combined with --preset"),
        ("--preset sst2 --data D --out O --max-new-tokens 4", "--max-new-tokens: has no meaning with label words"),
        ("--preset sst2 --data D --out O --balance", "--balance: needs --sample"),
        ("--preset wikibio --data D --out O --sample 1 --balance", "--balance: needs label words"),
        (
            "--preset sst2 --data D --out O --metrics auprc",
            "--metrics: auprc compares with human rationales, but no example",
        ),
        ("--prompt-template {text --data D --out O", "--prompt-template: has an unmatched brace"),
        ("--prompt-template {text} --data D --out O --columns a=b", "--columns: names 'a'"),
    ],
)
def test_flags_that_contradict_one_another(arguments: str, message: str, refusal: Callable[[str], str]) -> None:
    assert f"error: {message}" in refusal(arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: it has no row"),
        (
            b'{"text": "a", "label": "fine"}\n',
            "has no usable row, all 1 are bad: line 1 has the label 'fine'",
        ),
        (b'{"text": "a"}\n\xff\n', "is not UTF-8: byte 0xff at line 2, byte 1 of it"),
        (b"[1]\n", "line 1 is not a JSON object"),
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
    assert "a sample of 9 examples was requested, but the data has 8" in capsys.readouterr().err


# --- the run ----------------------------------------------------------------------------------------------------------


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_input(parser)
    add_evaluation(parser)
    add_data(parser)
    parser.add_argument("--max-new-tokens", type=int)
    return parser.parse_args(flags)


@pytest.mark.parametrize(
    ("flags", "name", "source"),
    [
        (["--preset", "sst2", "--data", "a.jsonl"], "sst2", "a.jsonl"),
        (["--preset", "sst2", "--data", "a.jsonl", "--name", "mine"], "mine", "a.jsonl"),
        (["--preset", "boolq"], "boolq", "hub:google/boolq:validation"),
        (["--prompt-template", "{text}", "--data", "x/reviews.csv"], "reviews", "x/reviews.csv"),
        (["--prompt-template", "{text}", "--data", "hub:a/reviews"], "reviews", "hub:a/reviews"),
        (["--prompt-template", "{text}", "--data", "hub:a/v1.5:en:test"], "v1.5", "hub:a/v1.5:en:test"),
        (["--prompt-template", "{text}", "--data", "a.csv", "--name", "mine"], "mine", "a.csv"),
    ],
)
def test_data_is_named_by_preset_file_or_hub(flags: list[str], name: str, source: str) -> None:
    preset, found = data_preset(parsed(*flags))
    assert (preset.name, found) == (name, source)


def test_the_first_sentences_of_every_column_are_used() -> None:
    flags = ["--prompt-template", "{text} {title}", "--columns", "text=body,title=head", "--first-sentences", "2"]
    preset, _ = data_preset(parsed(*flags, "--data", "a.csv"))
    assert preset.sentences == {"body": 2, "head": 2}


def test_flags_become_the_specification(data: Path, tmp_path: Path) -> None:
    flags = ["--preset", "sst2", "--data", str(data), "--out", str(tmp_path / "a.jsonl")]
    plain = read_dataset_run(parsed(*flags))
    assert plain.output.results == tmp_path / "a.jsonl"
    assert len(plain.examples) == 8
    assert (plain.spec.metrics, plain.spec.seed, plain.spec.chat) == (("pi_soft_ns", "pi_soft_nc"), 0, True)
    flags += ["--metrics", "deletion", "--seed", "3", "--stride", "2", "--sample", "4", "--balance", "--raw"]
    run = read_dataset_run(parsed(*flags))
    assert (run.spec.metrics, run.spec.seed, run.spec.stride, run.spec.chat) == (("deletion",), 3, 2, False)
    assert [example.label for example in run.examples].count("Positive") == 2
    assert run.examples == read_dataset_run(parsed(*flags)).examples
    assert run.examples[0].messages is None


def test_a_server_decides_on_methods_and_chat_template(
    server: FakeEvaluator, data: Path, tmp_path: Path, capsys: Out
) -> None:
    args = parsed("--preset", "sst2", "--data", str(data), "--out", str(tmp_path), "--sample", "4")
    before = read_dataset_run(args)
    with Client(server.target) as client:
        info = client.server_info()
    run = resolve_for_model(args, before, info)
    assert run.examples == before.examples
    assert {"grad_ellm", "random", "knockout"} < set(run.spec.methods)
    raw = resolve_for_model(args, before, replace(info, model=replace(info.model, has_chat_template=False)))
    assert "models/fake has no chat template: prompts are raw texts" in capsys.readouterr().err
    assert not raw.spec.chat
    assert [example.id for example in raw.examples] == [example.id for example in before.examples]
    assert all(example.prompt and example.messages is None for example in raw.examples)
