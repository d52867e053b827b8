"""`gradellm verify`: stored explanations, computed again by a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gradellm import AsyncClient, Client, Explanation, InvalidExplanationError, TokenizedPrompt
from gradellm.cli import main
from gradellm.explanation.io import write_jsonl
from gradellm.explanation.verification import compared, replay_keywords, verified
from gradellm.explanation.verification.prompt import replay_prompt
from gradellm.models import PromptToken
from server.conftest import RunningServer

PROMPT = "Once upon a time, there was a small red fox"
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "knockout": {"attribution": "knockout", "layers": 2},
    "prefix": {"sources": "prefix"},
    "words": {"sources": "prefix", "resolution": "word"},
    "segments": {"resolution": "segment", "segments": {"fox": (30, 43)}},
    "top": {"top_k_sources": 3},
    "chunked": {"delivery": "chunked", "chunk_size": 4},
    "contrast": {"contrast": "runner_up"},
    "target": {"target": 70},
    "random": {"method": "random", "attribution_seed": 4},
    "sampled": {"temperature": 1.0, "seed": 8},
    "penalties": {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "logit_bias": {70: 3.0}},
    "a stop token": {"temperature": 1.0, "seed": 8, "stop_token_ids": range(60, 180), "min_new_tokens": 7},
    "special tokens": {"logit_bias": {257: 4.0}, "skip_special_tokens": False, "ignore_eos": True},
    "tokens": {"tokens": [0, 4, 5, 11], "sources": "prefix", "resolution": "word"},
    "late tokens": {"tokens": range(10, 12), "delivery": "chunked", "top_k_sources": 4},
}


def explain(server: RunningServer, **settings: Any) -> Explanation:
    with Client(server.address) as client:
        return client.explain(PROMPT, max_new_tokens=12, **settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_explanation_is_reproduced(server: RunningServer, name: str) -> None:
    stored = explain(server, **SETTINGS[name])
    with Client(server.address) as client:
        verdict = compared(stored, client.attribute(**replay_keywords(stored)))
    assert verdict.holds
    assert verdict.rows == len(stored.attributions)
    assert verdict.largest_difference <= 1e-4
    assert verdict.largest_logprob_difference <= 1e-4
    assert verdict.mismatches == ()


@pytest.mark.parametrize("name", ["sampled", "penalties", "a stop token", "special tokens"])
def test_an_explanation_is_generated_again(server: RunningServer, name: str) -> None:
    stored = Explanation.from_json(explain(server, **SETTINGS[name]).to_json())
    with Client(server.address) as client:
        verdict = verified(client, stored, regenerate=True)
    assert verdict.holds_strictly, verdict.problems
    assert any(token.special and token.text for token in stored.tokens) is (name == "special tokens")
    assert (stored.finished is not None and stored.finished.reason == "stop_token") is (name == "a stop token")


def test_a_post_hoc_method_is_reproduced(server: RunningServer) -> None:
    with Client(server.address) as client:
        stored = client.attribute(PROMPT, completion=" and it ran", method="integrated_gradients", steps=8)
        assert compared(stored, client.attribute(**replay_keywords(stored))).holds
        some = client.attribute(PROMPT, completion=" and it ran", method="integrated_gradients", steps=8, tokens="it")
        assert verified(client, some).holds_strictly
        assert [row.token_index for row in some.attributions] == [5, 6]  # one token a byte
        assert [some.row(index) for index in (5, 6)] != [None, None]
        with_hole = replace(some, attributions=some.attributions[1:])
        assert "token 5 has no scores" in verified(client, with_hole).problems


def changed(stored: Explanation, factor: float) -> Explanation:
    row = stored.attributions[5]
    scores = (row.scores[0], *(score * factor for score in row.scores[1:]))
    return replace(
        stored, attributions=(*stored.attributions[:5], replace(row, scores=scores), *stored.attributions[6:])
    )


def test_a_changed_score_is_found(server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = explain(server)
    changed(stored, 1.01).save(tmp_path / "a.json")
    assert main(["verify", str(tmp_path / "a.json"), "--target", server.address]) == 1
    output = capsys.readouterr().out
    assert "DIFFERS" in output
    assert "token 5" in output
    assert main(["verify", str(tmp_path / "a.json"), "--tolerance", ".02", "--target", server.address]) == 0


TAMPERED: dict[str, Callable[[Explanation], Explanation]] = {
    "no scores": lambda explanation: with_row(explanation, scores=()),
    "fewer scores": lambda explanation: with_row(explanation, scores=explanation.attributions[5].scores[:-1]),
    "chosen scores": lambda explanation: with_row(
        explanation, scores=explanation.attributions[5].scores[:2], source_indexes=(0, 1)
    ),
    "another target": lambda explanation: with_row(explanation, target_token_id=7),
    "a row less": lambda explanation: replace(
        explanation, attributions=explanation.attributions[:5] + explanation.attributions[6:]
    ),
    "other text": lambda explanation: replace(
        explanation, tokens=(replace(explanation.tokens[0], text="No"), *explanation.tokens[1:])
    ),
    "another prompt": lambda explanation: replace(
        explanation, started=replace(explanation.started, prompt_text=explanation.prompt_text + " not")
    ),
}


def with_row(explanation: Explanation, **changes: Any) -> Explanation:
    rows = list(explanation.attributions)
    rows[5] = replace(rows[5], **changes)
    return replace(explanation, attributions=tuple(rows))


@pytest.mark.parametrize("how", TAMPERED)
def test_a_tampered_explanation_does_not_hold(server: RunningServer, how: str) -> None:
    stored = TAMPERED[how](explain(server))
    with Client(server.address) as client:
        verdict = compared(stored, client.attribute(**replay_keywords(stored)))
    assert not verdict.holds
    assert verdict.problems


def test_the_largest_sources_cannot_be_left_out(server: RunningServer) -> None:
    stored = explain(server, top_k_sources=3)
    rows = list(stored.attributions)
    scores = explain(server).attributions[5].scores
    least = tuple(sorted(range(len(scores)), key=lambda column: abs(scores[column]))[2::-1])
    rows[5] = replace(rows[5], scores=tuple(scores[column] for column in least), source_indexes=least)
    with Client(server.address) as client:
        verdict = compared(replace(stored, attributions=tuple(rows)), client.attribute(**replay_keywords(stored)))
    assert verdict.problems == ("token 5 leaves out a larger score than it has",)


def of_another(stored: Explanation, **changes: Any) -> Explanation:
    """The explanation with another model in its provenance."""
    provenance = stored.provenance
    return replace(
        stored,
        started=replace(stored.started, provenance=replace(provenance, model=replace(provenance.model, **changes))),
    )


def test_mismatches_are_named(server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = explain(server)
    old = of_another(stored, dtype="bfloat16", chat_template_sha256="x", name="other")
    provenance = replace(old.provenance, versions={**stored.provenance.versions, "torch": "1.0"})
    old = replace(old, started=replace(old.started, provenance=provenance))
    write_jsonl([stored, old], tmp_path / "a.jsonl")
    assert main(["verify", str(tmp_path / "a.jsonl"), "--json", "--target", server.address]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["mismatches"] == []
    assert (first["holds"], first["holds_strictly"]) == (True, True)
    assert (second["holds"], second["holds_strictly"]) == (True, False)
    assert {one["what"]: one["then"] for one in second["mismatches"]} == {
        "model.name": "other",
        "model.dtype": "bfloat16",
        "model.chat_template_sha256": "x",
        "versions.torch": "1.0",
    }
    assert second["file"].endswith("a.jsonl:2")
    assert main(["verify", str(tmp_path / "a.jsonl"), "--target", server.address]) == 0
    output = capsys.readouterr().out
    assert "model.dtype was bfloat16, is float32" in output
    assert ":2: holds, but the provenance differs" in output
    assert main(["verify", str(tmp_path / "a.jsonl"), "--strict", "--target", server.address]) == 1
    assert ":2: DIFFERS: the numbers hold, but the provenance differs (--strict)" in capsys.readouterr().out
    stored.save(tmp_path / "a.json")
    assert main(["verify", str(tmp_path / "a.json"), "--strict", "--target", server.address]) == 0


@pytest.mark.parametrize("hash_of", ["weights_sha256", "config_sha256"])
def test_another_model_is_reported_before_any_replay(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], hash_of: str
) -> None:
    stored = explain(server)
    info = replace(stored.provenance.model, config_sha256="c" * 64)
    other = of_another(stored, **{"config_sha256": "c" * 64, hash_of: "a" * 64, "name": "big-model"})
    stub_client = SimpleNamespace(server_info=lambda timeout: SimpleNamespace(model=info))  # has no other call
    verdict = verified(cast("Client", stub_client), other)
    assert not verdict.holds
    assert "hosts another model" in verdict.other_model
    assert "big-model" in verdict.other_model
    if hash_of == "weights_sha256":
        other.save(tmp_path / "a.json")
        assert main(["verify", str(tmp_path / "a.json"), "--target", server.address]) == 1
        assert "hosts another model" in capsys.readouterr().out


FAKED: dict[str, Callable[[Explanation], Explanation]] = {
    "blue to pink": lambda explanation: replace(
        explanation, started=replace(explanation.started, prompt_text=explanation.prompt_text.replace("blue", "pink"))
    ),
    "blue to pink, in the tokens too": lambda explanation: replace(
        explanation,
        started=replace(
            explanation.started,
            prompt_text=explanation.prompt_text.replace("blue", "pink"),
            prompt_tokens=tuple(replace(t, text=t.text.replace("blue", "pink")) for t in explanation.prompt_tokens),
        ),
    ),
    "log-probabilities off by 1": lambda explanation: replace(
        explanation, tokens=tuple(replace(token, logprob=token.logprob - 1) for token in explanation.tokens)
    ),
    "user to system": lambda explanation: with_roles(
        explanation, lambda t: replace(t, role="system" if t.role == "user" else t.role)
    ),
    "user to template": lambda explanation: with_roles(
        explanation, lambda t: replace(t, role="template", message=None) if t.role == "user" else t
    ),
    "a message hidden": lambda explanation: with_roles(
        explanation, lambda t: replace(t, role="template", message=None) if t.message == 0 else t
    ),
    "messages swapped": lambda explanation: with_roles(
        explanation, lambda t: replace(t, message=None if t.message is None else 1 - t.message)
    ),
    "a finish reason": lambda explanation: (
        replace(explanation, finished=replace(explanation.finished, reason="end_of_text"))
        if explanation.finished
        else explanation
    ),
    "greedy": lambda explanation: with_sampling(explanation, temperature=0.0),
}


def with_roles(explanation: Explanation, change: Callable[[PromptToken], PromptToken]) -> Explanation:
    return replace(
        explanation, started=replace(explanation.started, prompt_tokens=tuple(map(change, explanation.prompt_tokens)))
    )


def with_sampling(explanation: Explanation, **changes: Any) -> Explanation:
    assert explanation.provenance.sampling is not None
    sampling = replace(explanation.provenance.sampling, **changes)
    return replace(
        explanation, started=replace(explanation.started, provenance=replace(explanation.provenance, sampling=sampling))
    )


@pytest.mark.parametrize("how", FAKED)
def test_a_faked_file_does_not_hold(
    demo: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    with Client(demo.address) as client:
        stored = client.explain(
            messages=[("system", "Be kind."), ("user", "My hat is blue.")], max_new_tokens=4, temperature=3.0, seed=2
        )
    stored.save(tmp_path / "a.json")
    assert main(["verify", str(tmp_path / "a.json"), "--target", demo.address]) == 0
    FAKED[how](stored).save(tmp_path / "a.json")
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "a.json"), "--target", demo.address]) == 1
    assert "a.json: DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"seed": 3}, {"temperature": 0.5}, {"max_new_tokens": 9}, {"stop": ("e",)}])
def test_regenerate_draws_the_tokens_again(
    demo: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    with Client(demo.address) as client:
        stored = client.explain("Once upon a time", max_new_tokens=8, temperature=3.0, seed=2)
    with_sampling(stored, **change).save(tmp_path / "a.json")
    arguments = ["verify", str(tmp_path / "a.json"), "--target", demo.address]
    code = main(arguments)
    assert code == 1 or "not checked: provenance.sampling" in capsys.readouterr().out
    assert main([*arguments, "--regenerate"]) == 1


INPUTS: dict[str, dict[str, Any]] = {
    "white space": {"messages": [("system", " Be kind. \n"), ("user", "\n What is  red?\n")]},
    "an empty message": {"messages": [("system", ""), ("user", "Hello there")]},
    "turns": {"messages": [("user", "Hello"), ("assistant", "Fox."), ("user", "Why?")], "segments": {"a": (2, 0, 3)}},
    "a segment in a word": {"prompt": "Once upon a time", "segments": {"a": (6, 8), "b": (10, 16)}},
    "characters of several tokens": {"prompt": "A \U0001f642 \u65e5\u672c na\u00efve"},
    "ids": {"prompt_ids": [40, 228, 228, 60]},
}


@pytest.mark.parametrize("how", INPUTS)
def test_the_input_is_reconstructed_from_the_tokens(demo: RunningServer, how: str) -> None:
    with Client(demo.address) as client:
        stored = client.explain(**INPUTS[how], max_new_tokens=2)
        again = replay_prompt(lambda keywords: client.tokenize(**keywords), stored)
        assert again.is_exact, again
        assert verified(client, stored, regenerate=True).holds


def test_a_template_that_writes_the_date(demo: RunningServer) -> None:
    """Another date is reported as not checked; a changed role is found despite it."""
    with Client(demo.address) as client:
        stored = client.explain(messages=[("system", "Today is 3 May"), ("user", "Hi")], max_new_tokens=2)

        def as_template(token: PromptToken) -> PromptToken:
            return replace(token, role="template", message=None) if token.role == "system" else token

        def tokenize(keywords: dict[str, Any]) -> TokenizedPrompt:
            if "messages" not in keywords:
                return client.tokenize(**keywords)
            (_, *rest) = keywords["messages"]
            explain = client.tokenize(messages=[("system", "Today is 17 June"), *rest])  # as if the template wrote it
            return replace(explain, tokens=tuple(map(as_template, explain.tokens)))

        dated = with_roles(stored, as_template)
        again = replay_prompt(tokenize, dated)
        assert (again.is_exact, again.problems) == (False, ())
        assert [item.why for item in again.not_checked] == ["it contains the date, which has changed"]
        faked = with_roles(dated, lambda t: replace(t, role="assistant") if t.role == "user" else t)
        assert replay_prompt(tokenize, faked).problems


def test_a_template_that_replaces_a_command_by_its_own_text(demo: RunningServer) -> None:
    """A system message's "/no_think" is dropped and changes the template's own text: reported, and not a difference."""
    with Client(demo.address) as client:
        stored = client.explain(
            messages=[("user", "Mode: quiet. Say it in your own words."), ("user", "Hi")], max_new_tokens=2
        )
        modes = ("Mode: quiet. Say", "Mode: loud. Say")

        def as_template(tokens: tuple[PromptToken, ...], text: str) -> tuple[PromptToken, ...]:
            end = text.index("Say")
            return tuple(replace(t, role="template", message=None) if t.end <= end else t for t in tokens)

        def tokenize(keywords: dict[str, Any]) -> TokenizedPrompt:
            if "messages" not in keywords:
                return client.tokenize(**keywords)
            (role, content), *rest = keywords["messages"]
            explain = client.tokenize(messages=[(role, f"{modes[1].removesuffix('Say')}{content}"), *rest])
            return TokenizedPrompt(explain.prompt_text, as_template(explain.tokens, explain.prompt_text))

        replaced = replace(
            stored,
            started=replace(stored.started, prompt_tokens=as_template(stored.prompt_tokens, stored.prompt_text)),
        )
        again = replay_prompt(tokenize, replaced)
        assert (again.is_exact, again.problems) == (False, ())
        assert [item.what for item in again.not_checked] == ["the chat template's own text"]
        faked = with_roles(replaced, lambda t: replace(t, role="system") if t.message == 1 else t)
        assert replay_prompt(tokenize, faked).problems


def test_a_refusal_of_the_server_is_a_difference(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = explain(server)
    tokens = (replace(stored.tokens[0], id=10**6), *stored.tokens[1:])
    replace(stored, tokens=tokens).save(tmp_path / "a.json")
    assert main(["verify", str(tmp_path / "a.json"), "--target", server.address]) == 1
    assert "cannot be computed again: the server refuses" in capsys.readouterr().out


def test_unverifiable_files_are_refused_before_any_call(tmp_path: Path, server: RunningServer) -> None:
    stored = explain(server, attribution=None)
    with pytest.raises(InvalidExplanationError, match="nothing was explained"):
        replay_keywords(stored)
    forced = explain(server, forced_ids=[70, 71])
    with pytest.raises(InvalidExplanationError, match="forced tokens"):
        replay_keywords(forced)
    (tmp_path / "none.jsonl").write_text("")
    assert main(["verify", str(tmp_path / "none.jsonl"), "--target", server.address]) == 65
    assert main(["verify", str(tmp_path / "absent.json"), "--target", server.address]) == 65


def test_contrast_explains_one_token_against_another(server: RunningServer) -> None:
    stored = explain(server, sources="prefix")
    index = stored.words[0].token_indexes[0]
    with Client(server.address) as client:
        row = client.contrast(stored, stored.words[0], "a")
        own = client.attribute(
            PROMPT,
            completion_ids=[token.id for token in stored.tokens[: index + 1]],
            contrast="a",
            sources="prefix",
        ).row(index)
        assert own is not None
        assert row.contrast_token_id == own.contrast_token_id is not None
        assert row.scores == pytest.approx(own.scores, abs=1e-6)
        with pytest.raises(InvalidExplanationError, match="has no tokens"):
            client.contrast(stored, 99, "a")


def test_contrast_with_the_asynchronous_client(server: RunningServer) -> None:
    stored = explain(server)

    async def ask() -> Any:
        async with AsyncClient(server.address) as client:
            return await client.contrast(stored, 2, "runner_up")

    row = asyncio.run(ask())
    assert row.token_index == 2
    assert row.contrast_token_id is not None
