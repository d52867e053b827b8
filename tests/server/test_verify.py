"""`gradellm verify`: stored explanations, computed again by a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradellm import AsyncClient, Client, Explanation, InvalidExplanationError
from gradellm.cli import main
from gradellm.files import write_jsonl
from gradellm.verifying import compared, replay_keywords
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
}


def made(server: RunningServer, **settings: Any) -> Explanation:
    with Client(server.address) as client:
        return client.explain(PROMPT, max_new_tokens=12, **settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_explanation_is_found_again(server: RunningServer, name: str) -> None:
    stored = made(server, **SETTINGS[name])
    with Client(server.address) as client:
        verdict = compared(stored, client.attribute(**replay_keywords(stored)))
    assert verdict.holds
    assert verdict.rows == len(stored.attributions)
    assert verdict.largest_difference <= 1e-4
    assert verdict.largest_logprob_difference <= 1e-4
    assert verdict.mismatches == ()


def test_a_method_after_the_fact(server: RunningServer) -> None:
    with Client(server.address) as client:
        stored = client.attribute(PROMPT, completion=" and it ran", method="integrated_gradients", steps=8)
        assert compared(stored, client.attribute(**replay_keywords(stored))).holds


def changed(stored: Explanation, factor: float) -> Explanation:
    row = stored.attributions[5]
    scores = (row.scores[0], *(score * factor for score in row.scores[1:]))
    return replace(
        stored, attributions=(*stored.attributions[:5], replace(row, scores=scores), *stored.attributions[6:])
    )


def test_what_was_changed_is_found(server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = made(server)
    changed(stored, 1.01).save(tmp_path / "a.json")
    assert main(["verify", str(tmp_path / "a.json"), "--target", server.address]) == 1
    said = capsys.readouterr().out
    assert "DIFFERS" in said
    assert "token 5" in said
    assert main(["verify", str(tmp_path / "a.json"), "--tolerance", ".02", "--target", server.address]) == 0


TAMPERED: dict[str, Callable[[Explanation], Explanation]] = {
    "no scores": lambda it: with_row(it, scores=()),
    "fewer scores": lambda it: with_row(it, scores=it.attributions[5].scores[:-1]),
    "chosen scores": lambda it: with_row(it, scores=it.attributions[5].scores[:2], source_indexes=(0, 1)),
    "another target": lambda it: with_row(it, target_token_id=7),
    "a row less": lambda it: replace(it, attributions=it.attributions[:5] + it.attributions[6:]),
    "other text": lambda it: replace(it, tokens=(replace(it.tokens[0], text="No"), *it.tokens[1:])),
    "another prompt": lambda it: replace(it, started=replace(it.started, prompt_text=it.prompt_text + " not")),
}


def with_row(it: Explanation, **changes: Any) -> Explanation:
    rows = list(it.attributions)
    rows[5] = replace(rows[5], **changes)
    return replace(it, attributions=tuple(rows))


@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_tampered_with_does_not_hold(server: RunningServer, how: str) -> None:
    stored = TAMPERED[how](made(server))
    with Client(server.address) as client:
        verdict = compared(stored, client.attribute(**replay_keywords(stored)))
    assert not verdict.holds
    assert verdict.problems


def test_the_largest_sources_cannot_be_left_out(server: RunningServer) -> None:
    stored = made(server, top_k_sources=3)
    rows = list(stored.attributions)
    whole = made(server).attributions[5].scores
    least = tuple(sorted(range(len(whole)), key=lambda column: abs(whole[column]))[:3])
    rows[5] = replace(rows[5], scores=tuple(whole[column] for column in least), source_indexes=least)
    with Client(server.address) as client:
        verdict = compared(replace(stored, attributions=tuple(rows)), client.attribute(**replay_keywords(stored)))
    assert verdict.problems == ("token 5 leaves out a larger score than it has",)


def test_mismatches_are_named(server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = made(server)
    provenance = stored.provenance
    model = replace(provenance.model, weights_sha256="abc", dtype="bfloat16", chat_template_sha256="x")
    versions = {**provenance.versions, "torch": "1.0"}
    old = replace(
        stored, started=replace(stored.started, provenance=replace(provenance, model=model, versions=versions))
    )
    write_jsonl([stored, old], tmp_path / "a.jsonl")
    assert main(["verify", str(tmp_path / "a.jsonl"), "--json", "--target", server.address]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["mismatches"] == []
    assert {one["what"]: one["then"] for one in second["mismatches"]} == {
        "model.weights_sha256": "abc",
        "model.dtype": "bfloat16",
        "model.chat_template_sha256": "x",
        "versions.torch": "1.0",
    }
    assert second["file"].endswith("a.jsonl:2")
    assert main(["verify", str(tmp_path / "a.jsonl"), "--target", server.address]) == 0
    assert "model.dtype was bfloat16, is float32" in capsys.readouterr().out


def test_what_cannot_be_verified_is_said_before_anything_runs(tmp_path: Path, server: RunningServer) -> None:
    stored = made(server, attribution=None)
    with pytest.raises(InvalidExplanationError, match="nothing was explained"):
        replay_keywords(stored)
    forced = made(server, forced_ids=[70, 71])
    with pytest.raises(InvalidExplanationError, match="forced tokens"):
        replay_keywords(forced)
    (tmp_path / "none.jsonl").write_text("")
    assert main(["verify", str(tmp_path / "none.jsonl"), "--target", server.address]) == 65
    assert main(["verify", str(tmp_path / "absent.json"), "--target", server.address]) == 65


def test_why_this_token_and_not_another(server: RunningServer) -> None:
    stored = made(server, sources="prefix")
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


def test_the_asynchronous_client_tells_it_too(server: RunningServer) -> None:
    stored = made(server)

    async def ask() -> Any:
        async with AsyncClient(server.address) as client:
            return await client.contrast(stored, 2, "runner_up")

    row = asyncio.run(ask())
    assert row.token_index == 2
    assert row.contrast_token_id is not None
