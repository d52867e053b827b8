"""The command line: flags become keywords, errors become one line and an exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc import code_pb2

import gradellm
from gradellm import Explanation
from gradellm.cli import main
from gradellm.cli.demo_prompts import SCENES
from gradellm.local.processes import environment
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from client.conftest import FakeServer

Out = pytest.CaptureFixture[str]


def test_explain_draws(fake: FakeServer, capsys: Out) -> None:
    assert main(["explain", "Once upon a time", "--target", fake.target, "--width", "60"]) == 0
    out = capsys.readouterr().out
    assert "there  largest 1 · 12% on tokens not shown\n  Once upon a time\n  ████ ▃▃▃▃ ▃ ▃▃▃▃\n" in out
    assert "wasn't  largest 1.25" in out


def test_explain_in_colour(fake: FakeServer, capsys: Out) -> None:
    assert main(["explain", "Once", "--target", fake.target, "--color", "always", "--theme", "light"]) == 0
    assert "\x1b[38;2;" in capsys.readouterr().out


def test_explain_as_json(fake: FakeServer, capsys: Out) -> None:
    assert main(["explain", "Once", "--target", fake.target, "--format", "json"]) == 0
    assert Explanation.from_json(capsys.readouterr().out).text == " there wasn't"


EVERY_FLAG = """
    --chat --system S --segment a=0:4 --segment b=0:0:1 --max-new-tokens 3 --temperature 0.5 --top-k 4 --top-p 0.9
    --seed 5 --stop x --stop y --num-alternatives 2 --forced-ids 7,8 --first-attribution 1 --attribution knockout
    --method grad_ellm --loosening none --layers last:4 --similarity dot --rotary rotated --rectify none
    --magnitude knockout --normalise-over user --target-token 9 --contrast runner_up --sources prefix
    --resolution word --top-k-sources 6 --timeout 20
"""


def test_every_flag_of_explain(fake: FakeServer) -> None:
    assert main(["explain", "Once", *EVERY_FLAG.split(), "--target", fake.target]) == 0
    assert fake.requests == [
        pb.GenerateRequest(
            input=pb.Input(
                messages=[pb.Message(role="system", content="S"), pb.Message(role="user", content="Once")],
                segments=[
                    pb.Segment(name="a", message=1, start=0, end=4),
                    pb.Segment(name="b", message=0, start=0, end=1),
                ],
            ),
            max_new_tokens=3,
            temperature=0.5,
            top_k=4,
            top_p=0.9,
            seed=5,
            stop=["x", "y"],
            num_alternatives=2,
            forced_ids=[7, 8],
            first_attribution=1,
            attribution=pb.AttributionOptions(
                method="grad_ellm",
                preset=pb.PRESET_KNOCKOUT,
                loosening=pb.LOOSENING_NONE,
                layers=pb.Layers(last=4),
                similarity=pb.SIMILARITY_DOT,
                rotary=pb.ROTARY_ROTATED,
                rectify=pb.RECTIFY_NONE,
                magnitude=pb.MAGNITUDE_KNOCKOUT,
                normalise_over=pb.NORMALISE_OVER_USER,
                target_token_id=9,
                contrast=pb.Contrast(runner_up=True),
                sources=pb.SOURCES_PREFIX,
                resolution=pb.RESOLUTION_WORD,
                top_k_sources=6,
            ),
        )
    ]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--layers", "all"], pb.AttributionOptions()),
        (["--layers", "0,2"], pb.AttributionOptions(layers=pb.Layers(indexes=[0, 2]))),
        (["--contrast", "12"], pb.AttributionOptions(contrast=pb.Contrast(token_id=12))),
        (["--contrast", "text:12"], pb.AttributionOptions(contrast=pb.Contrast(text="12"))),
        (["--contrast", " no"], pb.AttributionOptions(contrast=pb.Contrast(text=" no"))),
        (["--attribution", "none"], None),
    ],
)
def test_flags_with_forms(fake: FakeServer, flags: list[str], expected: pb.AttributionOptions | None) -> None:
    assert main(["explain", "Once", *flags, "--target", fake.target]) == 0
    (request,) = fake.requests
    assert isinstance(request, pb.GenerateRequest)
    assert (request.attribution if request.HasField("attribution") else None) == expected


def test_forms_of_the_prompt(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Ünce\n".encode())))
    assert main(["explain", "-", "--target", fake.target]) == 0
    assert main(["explain", "--prompt-ids", "1,2", "--target", fake.target]) == 0
    assert main(["explain", "abc", "--segment", "a=b=0:2", "--target", fake.target]) == 0
    assert [request.input for request in fake.requests] == [  # type: ignore[attr-defined]
        pb.Input(prompt="Ünce\n"),
        pb.Input(prompt_ids=[1, 2]),
        pb.Input(prompt="abc", segments=[pb.Segment(name="a=b", start=0, end=2)]),
    ]


def test_attribute(fake: FakeServer, capsys: Out) -> None:
    assert main(["attribute", "Once", "--completion", " there", "--method", "saliency", "--target", fake.target]) == 0
    assert main(["attribute", "Once", "--completion-ids", "50", "--format", "json", "--target", fake.target]) == 0
    assert fake.requests[0] == pb.AttributeRequest(
        input=pb.Input(prompt="Once"), completion=" there", attribution=pb.AttributionOptions(method="saliency")
    )
    assert '"format":"gradellm.explanation"' in capsys.readouterr().out


def test_retention_is_drawn_instead_of_words(fake: FakeServer, capsys: Out) -> None:
    assert main(["attribute", "Once", "--completion", " there", "--retention", "0.5", "--target", fake.target]) == 0
    assert capsys.readouterr().out.startswith("π = 0.5")


METHOD_FLAGS = """
    --completion x --method integrated_gradients --objective log_prob --aggregation sum --steps 7 --samples 8
    --attribution-seed 9 --layer -1 --baseline-ids 1,2
"""


def test_every_flag_of_methods(fake: FakeServer) -> None:
    assert main(["attribute", "Once", *METHOD_FLAGS.split(), "--target", fake.target]) == 0
    assert fake.requests == [
        pb.AttributeRequest(
            input=pb.Input(prompt="Once"),
            completion="x",
            attribution=pb.AttributionOptions(
                method="integrated_gradients",
                objective=pb.OBJECTIVE_LOG_PROB,
                aggregation=pb.AGGREGATION_SUM,
                steps=7,
                samples=8,
                seed=9,
                layer=-1,
                baseline_ids=[1, 2],
            ),
        )
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_on_a_terminal_and_erased(
    fake: FakeServer, capsys: Out, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    fake.parts = [*fake.parts[:1], pb.Progress(done=0.25), pb.Progress(done=0.5), *fake.parts[1:]]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert main(["attribute", "Once", "--completion", "x", "--target", fake.target]) == 0
    captured = capsys.readouterr()
    assert "wasn't" in captured.out
    assert ("\r 25% explained\r 50% explained\r\033[K" in captured.err) == is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_prefill_progress_is_shown_on_a_terminal(
    fake: FakeServer, capsys: Out, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    carried: list[dict[str, Any]] = [{type(event).__name__.lower(): event} for event in fake.parts]
    parts = [pb.GenerateResponse(**event) for event in carried]
    parts[1:1] = [pb.GenerateResponse(prompt_progress=pb.Progress(done=done)) for done in (0.25, 0.5)]
    monkeypatch.setattr(fake, "_stream", lambda *_: iter(parts))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert main(["explain", "Once", "--target", fake.target]) == 0
    captured = capsys.readouterr()
    assert "wasn't" in captured.out
    assert ("\r 25% of the prompt read\r 50% of the prompt read\r\033[K" in captured.err) == is_terminal
    assert ("read" in captured.err) == is_terminal


def test_an_error_replaces_the_progress_line(fake: FakeServer, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.parts = [*fake.parts[:1], pb.Progress(done=0.25), *fake.parts[1:]][:2]
    fake.fail(code_pb2.INTERNAL, "the model failed")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["attribute", "Once", "--completion", "x", "--target", fake.target]) == 70
    assert "\r 25% explained\r\033[Kerror: " in capsys.readouterr().err


def test_a_command_waits_for_a_server_that_loads(fake: FakeServer, capsys: Out, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{tmp_path}/silent.sock")
        listening.listen()
        assert main(["info", "--target", f"unix:{tmp_path}/silent.sock", "--timeout", "2"]) == 69
    err = capsys.readouterr().err
    assert err.count("listens and does not answer yet") == 2  # while it waits, and at the end
    assert err.count("waiting for it ...") == 1
    assert "nobody" not in err
    assert "no gradellm server answers" not in err


def test_info(fake: FakeServer, capsys: Out) -> None:
    assert main(["info", "--target", fake.target]) == 0
    out = capsys.readouterr().out
    assert "  parameters         260,000\n" in out
    assert "  grad_ellm *: Grad-ELLM.\n" in out
    assert main(["info", "--target", fake.target, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["limits"]["max_new_tokens"] == 64


def test_demo(fake: FakeServer, capsys: Out) -> None:
    assert main(["demo", "--target", fake.target]) == 0
    out = capsys.readouterr().out
    assert len(fake.requests) == len(SCENES) == 3
    assert all(scene.title in out for scene in SCENES)


@pytest.mark.usefixtures("server_module")
def test_without_a_target_a_server_is_started(capsys: Out) -> None:
    assert main(["info", "--model", "m", "--dtype", "float16"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("starting a server for m ...\nready after ")
    assert "float16" in captured.out
    assert main(["info", "--model", "absent"]) == 70
    assert "error: there is no model absent" in capsys.readouterr().err


# --- serve ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "module"), [("serve", "gradellm_server"), ("bench", "gradellm_bench")])
def test_serve_and_bench_become_another_process(monkeypatch: pytest.MonkeyPatch, command: str, module: str) -> None:
    became: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert path == sys.executable
        became.append((arguments, environment))
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr("gradellm.local.processes._PACKAGES", ())
    with pytest.raises(SystemExit):
        main([command, "--help", "--model", "m"])
    assert became == [([sys.executable, "-P", "-m", module, "--help", "--model", "m"], environment())]


def test_openmp_threads_spin_briefly_unless_the_user_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert int(environment()["GOMP_SPINCOUNT"]) <= 10_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment()["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert "GOMP_SPINCOUNT" not in environment()


def test_serve_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr("gradellm.local.processes._PACKAGES", ("no_such_package",))
    assert main(["serve", "--help"]) == 70
    assert "pip install 'gradellm[server]'" in capsys.readouterr().err


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (code_pb2.INVALID_ARGUMENT, 2),
        (code_pb2.UNAVAILABLE, 69),
        (code_pb2.DEADLINE_EXCEEDED, 69),
        (code_pb2.INTERNAL, 70),
        (code_pb2.UNIMPLEMENTED, 70),
        (code_pb2.RESOURCE_EXHAUSTED, 75),
    ],
)
def test_exit_codes(fake: FakeServer, capsys: Out, code: int, exit_code: int) -> None:
    fake.fail(code, "the words of the server")
    for command in (["explain", "Once"], ["info"]):
        assert main([*command, "--no-retry", "--target", fake.target]) == exit_code
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain"], "exactly one of prompt, messages and prompt_ids"),
        (["explain", "a", "--prompt-ids", "1"], "given: prompt, prompt_ids"),
        (["explain", "a", "--attribution", "none", "--layers", "3"], "layers: has no meaning"),
        (["attribute", "a"], "exactly one of completion and completion_ids"),
        (
            ["explain", "a", "--target", "x:1", "--model", "m"],
            "model: is for a local server, not for x:1",
        ),
        (["explain", "a", "--max-new-tokens", "9999999999"], "--max-new-tokens: must be a signed 32-bit integer"),
        (["explain", "\udce4"], "prompt: has a lone surrogate"),
        (["explain", "a", "--retention", "2"], "--retention: must be between 0 and 1, not 2"),
        (
            ["attribute", "a", "--completion", "b", "--retention", "0.5", "--output", "x.html"],
            "combined with --retention",
        ),
    ],
)
def test_wrong_requests_start_no_server(arguments: list[str], message: str, capsys: Out) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "starting" not in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["explain", "a", "--layers", "some"],
        ["explain", "a", "--segment", "a"],
        ["explain", "a", "--width", "3"],
        ["explain", "a", "--loosening", "much"],
        ["explain", "a", "--max-new", "3"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: Out) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: gradellm" in capsys.readouterr().err


def test_help_has_examples(capsys: Out) -> None:
    for command in ([], ["explain"], ["attribute"], ["info"], ["demo"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        assert "examples:\n  gradellm " in capsys.readouterr().out


def test_errors_cannot_steer_the_terminal(fake: FakeServer, capsys: Out) -> None:
    fake.fail(code_pb2.INTERNAL, "a\x1b[2Jb")
    assert main(["info", "--no-retry", "--target", fake.target]) == 70
    assert "a^[[2Jb\n" in capsys.readouterr().err


def test_undecodable_input(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    assert main(["explain", "-"]) == 2
    assert "standard input is not UTF-8 at byte 1" in capsys.readouterr().err


# --- as a process ---------------------------------------------------------------------------------------------------


def start(*arguments: str, **environ: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gradellm", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=with_path(**environ),
    )


def with_path(**environ: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(next(iter(gradellm.__path__))).parent), **environ}


def test_interrupting_cancels(fake: FakeServer) -> None:
    fake.hold.set()
    process = start("explain", "Once", "--target", fake.target)
    assert fake.received.wait(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"")
    assert fake.cancelled.wait(10)


_SWALLOWING = """
import time, gradellm.cli
from gradellm.__main__ import start
def main():
    said = "running"
    while True:
        try:
            print(said, flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            said = "swallowed"
gradellm.cli.main = main
start()
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_an_interrupt_that_a_library_swallows_still_ends_it(signals: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", _SWALLOWING], stdout=subprocess.PIPE, env=with_path())
    assert process.stdout is not None
    for printed in [b"running\n", b"swallowed\n"][:signals]:
        assert process.stdout.readline() == printed
        process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130


def test_a_closed_pipe(fake: FakeServer) -> None:
    process = start("explain", "Once", "--target", fake.target)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == b""


def test_a_terminal_that_cannot_show_blocks(fake: FakeServer) -> None:
    out, err = start("explain", "Once", "--target", fake.target, PYTHONIOENCODING="ascii").communicate(timeout=20)
    assert b"\\u2588" in out
    assert err == b""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_commands_and_flags(capsys: Out, shell: str) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "--max-new-tokens" in script
    assert "verify" in script
