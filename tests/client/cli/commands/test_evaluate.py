"""`gradellm evaluate PROMPT`, and flags that belong to other uses of the command."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client.evaluation.fake_evaluator import FEW, FakeEvaluator
from gradellm import EvaluationReport
from gradellm.cli import main
from gradellm.v1 import explainer_pb2 as pb

Out = pytest.CaptureFixture[str]


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
def test_forms_of_the_completion(server: FakeEvaluator, flags: list[str], field: str, value: object) -> None:
    assert main(["evaluate", "Once", *flags, "--target", server.target]) == 0
    assert getattr(server.requests[0], field) == value
    assert [method.name for method in server.requests[0].evaluation.methods] == ["", "random"]  # the server's default


def test_a_table_of_one_prompt(server: FakeEvaluator, capsys: Out) -> None:
    flags = [*FEW, "--metrics", "pi_soft_ns,soft_nc,deletion"]
    assert main(["evaluate", "Once", *flags, "--labels", "Positive,Negative", "--target", server.target]) == 0
    out = capsys.readouterr().out
    assert "prompt of 9 tokens, 6 of which may be perturbed; predicted label 'Positive'" in out
    head, first, second = out.split("\n\n")[1].split("\n")
    assert head.split("  ")[0] == "AUC π-Soft-NS ↑"
    assert re.fullmatch(r"  grad_ellm +0\.\d{3} +0\.\d{3} to \d\.\d{3} +\+0\.100 +\+0\.000 to \+1\.000", first)
    assert re.fullmatch(r"  random +0\.\d{3} +0\.\d{3} to \d\.\d{3}", second)
    assert re.search(r"Soft-NC ↑.* E\[R\]\n.* 4\.5\n", out)
    assert "Deletion ↑" in out
    assert "nothing about other prompts" in out


def test_one_prompt_as_json_and_as_a_plot(server: FakeEvaluator, capsys: Out, tmp_path: Path) -> None:
    plot = tmp_path / "new" / "a.png"
    flags = [*FEW, "--metrics", "pi_soft_ns,pi_soft_nc", "--format", "json", "--plot", str(plot)]
    assert main(["evaluate", "Once", *flags, "--target", server.target]) == 0
    report = EvaluationReport.from_json(capsys.readouterr().out)
    assert report.curves.keys() == {"pi_soft_ns", "pi_soft_nc"}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_empty_evaluation_is_reported(server: FakeEvaluator, capsys: Out, tmp_path: Path) -> None:
    flags = ["--plot", str(tmp_path / "a.png")]
    assert main(["evaluate", "nothing", *flags, "--target", server.target]) == 0
    captured = capsys.readouterr()
    assert "1 of 1 tokens are skipped" in captured.out
    assert "nothing could be measured" in captured.out
    assert "no curves to plot" in captured.err


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_of_a_prompt(
    server: FakeEvaluator, capsys: Out, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert main(["evaluate", "Once", "--target", server.target]) == 0
    assert ("\r 50% evaluated\r\033[K" in capsys.readouterr().err) == is_terminal


# --- refused before the evaluation starts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--preset sst2 --data D --out O --labels a,b", "--labels: cannot be combined with a data set"),
        ("--preset sst2 --data D --out O --chat", "--chat: cannot be combined with a data set"),
        ("--preset sst2 --data D --out O --plot a.png", "--plot: cannot be combined with a data set"),
        ("a --preset sst2 --data D --out O", "prompt: cannot be combined with a data set"),
        (
            "--preset sst2 --data D --out O --metrics pi_soft",
            "--metrics: there is no metric 'pi_soft'; did you mean pi_soft_",
        ),
        ("--preset sst2 --data D --out O --pis 0.5,0.2", "--pis: must ascend"),
        ("--preset sst2 --data D --out O --concurrency 0", "--concurrency: must be 1 or more"),
        ("--preset sst2 --data D --out O --target x,x", "--target: x is given twice"),
        ("--preset sst2 --data D --out O --model m", "--model: is for a local server"),
        ("a --out O", "--out: cannot be combined with a prompt"),
        ("a --sample 4", "--sample: cannot be combined with a prompt"),
        ("a --target x,y", "--target: a prompt is evaluated by one server"),
        ("a --methods x,x", "--methods: x is given twice"),
        ("a --completion b --labels c,d", "--labels: "),
        ("a --plot b.png --metrics deletion", "--plot: needs curves over pi"),
        ("--chat", "prompt: exactly one of prompt"),
        ("--tables O --seed 0", "--seed: cannot be combined with --tables"),
        ("--tables O --target x", "--target: cannot be combined with --tables"),
        ("--tables O --system x", "--system: cannot be combined with --tables"),
        ("--tables O --merge O", "--merge: cannot be combined with --tables"),
        ("--tables O --shard 0/1", "--shard: cannot be combined with --tables"),
        ("--merge O", "--out: must be given"),
        ("--merge O --out O --samples 3", "--samples: cannot be combined with --merge"),
        ("--merge O --out O --target x", "--target: cannot be combined with --merge"),
        ("--merge O --out O --shard 0/1", "--shard: cannot be combined with --merge"),
        ("--preset sst2 --data D --out O --shard 2/2", "--shard: must be INDEX/COUNT"),
        ("a --shard 0/1", "--shard: cannot be combined with a prompt"),
    ],
)
def test_flags_that_contradict_one_another(arguments: str, message: str, refusal: Callable[[str], str]) -> None:
    assert f"error: {message}" in refusal(arguments)


@pytest.mark.parametrize("flags", [["--methods", "a,,b"], ["--pis", "x"], ["--columns", "a"], ["--removal", "shred"]])
def test_flags_that_cannot_be_read(flags: list[str], capsys: Out) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "a", *flags])
    assert caught.value.code == 2
    assert "usage: gradellm evaluate" in capsys.readouterr().err
