"""`gradellm explain`: a generated completion, as a drawing, JSON or a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from client.explanation.cited import HIGH, answered, asked
from gradellm import Explanation
from gradellm.cli import main
from gradellm.cli.commands import explain
from gradellm.explanation.io import load
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from client.conftest import FakeServer

Out = pytest.CaptureFixture[str]


def test_explain_draws(fake: FakeServer, capsys: Out) -> None:
    assert main(["explain", "Once upon a time", "--target", fake.target, "--width", "60"]) == 0
    out = capsys.readouterr().out
    drawn = "there  drawn from “Once” 100% · template 12%\n  Once upon a time\n  ████\n"
    assert drawn in out
    assert "wasn't  drawn from" in out
    assert main(["explain", "Once upon a time", "--target", fake.target, "--width", "60", "--raw"]) == 0
    assert "  Once upon a time\n  ████ ▃▃▃▃ ▃ ▃▃▃▃\n" in capsys.readouterr().out


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
    --magnitude knockout --normalise-over user --sink exclude --target-token 9 --contrast runner_up --sources prefix
    --resolution word --top-k-sources 6 --timeout 20 --min-p 0.1 --repetition-penalty 1.1 --frequency-penalty -0.5
    --presence-penalty 0.25 --logit-bias 5:-1,6:2.5 --min-new-tokens 2 --ignore-eos --stop-token-ids 3,4
    --no-skip-special-tokens --chat-template-kwargs {"enable_thinking":false} --no-add-generation-prompt
    --continue-final-message
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
                chat_template_kwargs='{"enable_thinking": false}',
                add_generation_prompt=False,
                continue_final_message=True,
            ),
            max_new_tokens=3,
            temperature=0.5,
            top_k=4,
            top_p=0.9,
            seed=5,
            stop=["x", "y"],
            min_p=0.1,
            repetition_penalty=1.1,
            frequency_penalty=-0.5,
            presence_penalty=0.25,
            logit_bias={5: -1.0, 6: 2.5},
            min_new_tokens=2,
            ignore_eos=True,
            stop_token_ids=[3, 4],
            skip_special_tokens=False,
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
                sink=pb.SINK_EXCLUDE,
                target_token_id=9,
                contrast=pb.Contrast(runner_up=True),
                sources=pb.SOURCES_PREFIX,
                resolution=pb.RESOLUTION_WORD,
                top_k_sources=6,
            ),
        )
    ]


def test_the_suffix_of_a_file_selects_its_format(fake: FakeServer, tmp_path: Path, capsys: Out) -> None:
    for name in ("a.json", "a.html", "a.txt"):
        assert main(["explain", "Once", "--output", str(tmp_path / name), "--target", fake.target]) == 0
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", f"{tmp_path / name} written\n")
    assert load(tmp_path / "a.json").text == " there wasn't"
    assert "<html" in (tmp_path / "a.html").read_text()
    assert "wasn't  drawn from" in (tmp_path / "a.txt").read_text()


def serve_prefix_rows(fake: FakeServer) -> None:
    """Let the fake server score the words before a word, too: each word draws a half on the word before."""
    attribution = pb.AttributionOptions(method="grad_ellm", sources=pb.SOURCES_PREFIX, resolution=pb.RESOLUTION_TOKEN)
    for part in fake.parts:
        if isinstance(part, pb.Started):
            part.provenance.attribution.CopyFrom(attribution)
        elif isinstance(part, pb.Token):
            part.source_index = 5 + part.index
        elif isinstance(part, pb.Attribution):
            generated = [0.0] * (part.token_index - 1) + [1.0] if part.token_index else []
            part.scores[:] = [0.0, 0.0, 0.0, 0.0, 1.0, *generated]


@pytest.mark.parametrize("command", [["explain", "Once"], ["attribute", "Once", "--completion", " there"]])
def test_a_trace_is_printed_instead_of_words(fake: FakeServer, capsys: Out, command: list[str]) -> None:
    serve_prefix_rows(fake)
    assert main([*command, "--trace", "was", "--target", fake.target]) == 0
    assert capsys.readouterr().out == (
        "was\n"
        "    share     direct    through  word\n"
        "     100%        50%        50%  time\n"
        "through there 50%\n"
    )  # fmt: skip
    (request,) = fake.requests
    assert request.attribution.sources == pb.SOURCES_PREFIX  # type: ignore[attr-defined]
    assert main([*command, "--trace", "was", "--trace-by", "role", "--format", "json", "--target", fake.target]) == 0
    trace = json.loads(capsys.readouterr().out)
    assert {part["label"]: part["share"] for part in trace["parts"]} == {"template": 0, "user": 1}
    assert main([*command, "--trace", "green", "--target", fake.target]) != 0
    assert "the completion does not contain 'green'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "a.json", "--format", "json"], "--format: cannot be combined with --output"),
        (["--output", "a.docx"], "--output: "),
        (["--format", "png"], "--format: a PNG cannot be printed on a terminal: give --output FILE.png"),
        (["--citations"], "--citations: needs documents: give each with --document, or name its range with --segment"),
        (
            ["--citations", "--segment", "a=0:4", "--format", "html"],
            "--format: html cannot be combined with --citations",
        ),
        (["--citations", "--segment", "a=0:4", "--output", "a.json"], "--output: cannot be combined with --citations"),
        (["--citations", "--segment", "a=0:4", "--attribution", "none"], "--attribution: none cannot be combined"),
        (["--retention", "0.5", "--format", "json"], "--format: cannot be combined with --retention"),
        (["--raw", "--output", "x.html"], "--raw: cannot be combined with --output, whose suffix selects the format"),
        (["--raw", "--format", "html"], "--raw: is for the drawing; --format html has its own colours"),
        (["--raw", "--trace", "red"], "--raw: cannot be combined with --trace"),
        (["--retention", "0.5", "--trace", "red"], "--trace: cannot be combined with --retention"),
        (["--trace", "red", "--output", "a.json"], "--output: cannot be combined with --trace"),
        (["--trace", "red", "--format", "svg"], "--format: must be ansi or json with --trace, not svg"),
        (["--trace", "red", "--sources", "prompt"], "--trace: needs scores of the whole prefix"),
        (["--trace", "red", "--resolution", "segment"], "--trace: needs scores of the whole prefix"),
        (["--trace", "red", "--attribution", "none"], "--trace: needs scores of the whole prefix"),
        (["--trace-by", "role"], "--trace-by: is for --trace TEXT"),
    ],
)
def test_output_that_cannot_be_is_refused_before_a_call(
    fake: FakeServer, capsys: Out, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["explain", "Once", *flags, "--target", fake.target]) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert fake.requests == []


def test_citations_are_printed(capsys: Out) -> None:
    loaded = answered(HIGH, rows=set(range(9)))
    for form in (None, "json"):
        explain.show(loaded.events(), argparse.Namespace(citations=True, format=form))
    drawn, plain = capsys.readouterr().out.split("[", 1)
    assert drawn.splitlines() == [
        "The soup costs five coins.",
        "  menu (100%): Soup is five coins.",
        "We open at nine.",
        "  hours (100%): We open at nine.",
        "Have a nice day.",
        "  not explained",
    ]
    assert json.loads(f"[{plain}") == [sentence.to_dict() for sentence in loaded.citations()]


def test_a_sentence_without_citation_says_why(capsys: Out) -> None:
    loaded = asked("What is the soup of Leo ?", {1: {"Leo": 9.0}})
    explain.show(loaded.events(), argparse.Namespace(citations=True, format=None))
    assert capsys.readouterr().out.splitlines() == [
        "The soup costs five coins.",
        "  no document has Leo; drawn from menu",
        "We open at nine.",
        "  no document has Leo; drawn from hours",
        "Have a nice day.",
        "  no document has Leo",
    ]
