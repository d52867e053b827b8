"""Flags that several commands share: the prompt, the attribution, and the server."""

from __future__ import annotations

import argparse
import io
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gradellm import InvalidRequestError
from gradellm.cli import main, options
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from client.conftest import FakeServer

Out = pytest.CaptureFixture[str]


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


def test_undecodable_input(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    assert main(["explain", "-"]) == 2
    assert "standard input is not UTF-8 at byte 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--layers", "all"], pb.AttributionOptions(layers=pb.Layers())),
        (["--layers", "0,2"], pb.AttributionOptions(layers=pb.Layers(indexes=[0, 2]))),
        (["--contrast", "12"], pb.AttributionOptions(contrast=pb.Contrast(token_id=12))),
        (["--contrast", "text:12"], pb.AttributionOptions(contrast=pb.Contrast(text="12"))),
        (["--contrast", " no"], pb.AttributionOptions(contrast=pb.Contrast(text=" no"))),
        (["--tokens", "3"], pb.AttributionOptions(tokens=pb.TokenSelection(indexes=[3]))),
        (
            ["--tokens", "1,4:7", "--tokens", "9"],
            pb.AttributionOptions(tokens=pb.TokenSelection(indexes=[1, 4, 5, 6, 9])),
        ),
        (["--attribution", "none"], None),
    ],
)
def test_flags_with_forms(fake: FakeServer, flags: list[str], expected: pb.AttributionOptions | None) -> None:
    assert main(["explain", "Once", *flags, "--target", fake.target]) == 0
    (request,) = fake.requests
    assert isinstance(request, pb.GenerateRequest)
    assert (request.attribution if request.HasField("attribution") else None) == expected


def test_texts_and_expressions_select_tokens_of_a_given_completion(fake: FakeServer, capsys: Out) -> None:
    flags = ["--tokens", "text:12", "--tokens", "re:[ab]+", "--target", fake.target]
    assert main(["attribute", "Once", "--completion", "a 12 bb", *flags]) == 0
    (request,) = fake.requests
    spans = [pb.TextSpan(start=2, end=4), pb.TextSpan(start=0, end=1), pb.TextSpan(start=5, end=7)]
    assert request.attribution.tokens == pb.TokenSelection(spans=spans)  # type: ignore[attr-defined]
    assert main(["explain", "Once", "--tokens", "there", "--target", fake.target]) == 2
    assert "tokens[0]: a text is looked up in a completion that exists" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["attribute", "Once", "--completion", "a", "--tokens", "re:("])
    assert "must be a regular expression after re:" in capsys.readouterr().err


@pytest.mark.usefixtures("server_module")
def test_without_a_target_a_server_is_started(capsys: Out) -> None:
    assert main(["info", "--model", "m", "--dtype", "float16"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("starting a server for m ...\nready after ")
    assert "float16" in captured.out
    assert main(["info", "--model", "absent"]) == 70
    assert "error: there is no model absent" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("parse", "text", "value", "wrong"),
    [
        (options.token_ids, "1,-2, 3", [1, -2, 3], ["", "1,,2", "1.0", "a"]),
        (options.names, " a ,b", ["a", "b"], ["", "a,,b", " "]),
        (options.numbers, "0.1,1e-3", [0.1, 0.001], ["", "1,,2", "a"]),
        (options.pairs, "a = b,c=d=e", {"a": "b", "c": "d=e"}, ["", "a", "=b", "a= ", "a=b,"]),
    ],
)
def test_lists_in_flags(parse: Callable[[str], object], text: str, value: object, wrong: list[str]) -> None:
    assert parse(text) == value
    for each in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match=f"separated by commas.* not {each!r}"):
            parse(each)


def test_flags_that_were_not_given_are_no_keywords() -> None:
    args = argparse.Namespace(seed=0, stop=None, tls=False, raw=None, layers=[])
    assert options.given_values(args, "seed", "stop", "layers", "absent") == {"seed": 0, "layers": []}
    options.refuse_flags(args, ("stop", "tls", "raw"), "--other")
    with pytest.raises(InvalidRequestError, match="seed: cannot be combined with --other"):
        options.refuse_flags(args, ("stop", "seed"), "--other")


def test_lines_are_as_wide_as_the_terminal_and_at_most_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    args = argparse.Namespace(width=None, color="never", theme="light", full=False)
    for columns, width in (("60", 60), ("300", 100)):
        monkeypatch.setenv("COLUMNS", columns)
        assert options.style(args).width == width
        first, *more = options.wrap_text("some-word\x1b " * 40).splitlines()
        assert width - 13 < len(first) <= width
        assert all(line.startswith("  some-word^[") and len(line) <= width for line in more)
    assert options.style(argparse.Namespace(**{**vars(args), "width": 200})).width == 200
