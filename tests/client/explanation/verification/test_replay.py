"""The keywords of `attribute` that replay an explanation."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from client.explanation.verification.conftest import complete, with_provenance, with_settings
from gradellm import AttributionSettings, Explanation, InvalidExplanationError
from gradellm.explanation.verification.replay import (
    attribution_row,
    check_normalisation,
    check_replayable,
    completion_keywords,
    contrast_keywords,
    replay_keywords,
)
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import responses
from gradellm.wire.requests import attribute_request

EVERY: dict[str, Any] = {
    "method": "grad_ellm", "loosening": "none", "layers": (0, 1), "similarity": "cosine", "rotary": "unrotated",
    "rectify": "none", "magnitude": "head_abs", "normalise_over": "prompt", "target_token_id": 9, "contrast": "dog",
    "sources": "prefix", "objective": "prob", "aggregation": "sum", "steps": 3, "samples": 4, "seed": 5, "layer": -1,
    "baseline_ids": (6, 7), "sink": "exclude", "gradient": "relevance", "tokens": (0, 2),
}  # fmt: skip
OUTPUT_ALONE = {"preset", "resolution", "top_k_sources", "delivery", "chunk_size"}


def test_every_setting_that_affects_a_score_is_replayed() -> None:
    """A server that reads the request has the stored settings again; those of the output alone are left out."""
    stored = with_settings(complete(), **EVERY, resolution="word", top_k_sources=2, delivery="chunked", chunk_size=3)
    assert EVERY.keys() | OUTPUT_ALONE == {field.name for field in fields(AttributionSettings)}
    request = attribute_request(None, completion_keywords(stored))
    read = responses.event(pb.AttributeResponse(started={"provenance": {"attribution": request.attribution}}))
    assert read is not None
    assert read.started is not None
    again = read.started.provenance.attribution
    assert {name: getattr(again, name) for name in EVERY} == EVERY
    assert {name: getattr(again, name) for name in OUTPUT_ALONE} == dict.fromkeys(OUTPUT_ALONE)


def test_prompt_and_completion_are_replayed_by_their_ids() -> None:
    keywords = replay_keywords(complete())
    assert keywords["prompt_ids"] == [0, 1, 2, 3, 4, 5]
    assert keywords["completion_ids"] == [50, 51, 52, 53]
    assert keywords["sources"] == "prompt"
    assert "target" not in keywords
    assert "attribution_seed" not in keywords


def test_selected_tokens_that_the_completion_does_not_reach_are_not_replayed() -> None:
    """A generation may end before them."""
    assert completion_keywords(with_settings(complete(), tokens=(1, 3, 4, 90)))["tokens"] == [1, 3]
    assert "tokens" not in completion_keywords(complete())


def test_alternatives_are_asked_for_where_the_file_has_them() -> None:
    """One suffices otherwise: it shows whether each token was the most probable."""
    assert completion_keywords(complete())["num_alternatives"] == 20
    bare = replace(complete(), tokens=tuple(replace(token, alternatives=()) for token in complete().tokens))
    assert completion_keywords(bare)["num_alternatives"] == 1


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (with_provenance(complete(), attribution=None), "nothing was explained"),
        (replace(complete(), attributions=()), "nothing was explained"),
        (replace(complete(), tokens=complete().tokens[1:]), "forced tokens"),
        (replace(complete(), tokens=()), "forced tokens"),
    ],
)
def test_what_cannot_be_replayed_is_refused(stored: Explanation, message: str) -> None:
    with pytest.raises(InvalidExplanationError, match=message):
        check_replayable(stored)


def test_normalisation_over_the_user_needs_roles() -> None:
    """Token ids carry no roles: they replay as a raw prompt, all of which is the user's."""
    stored = with_settings(complete(), normalise_over="user")
    with pytest.raises(InvalidExplanationError, match="cannot be replayed from token ids"):
        replay_keywords(stored)
    check_replayable(stored)  # by messages it can
    prompt = tuple(replace(token, role="user") for token in stored.prompt_tokens)
    check_normalisation(replace(stored, started=replace(stored.started, prompt_tokens=prompt)))


def test_a_contrast_ends_at_its_token() -> None:
    stored = complete()
    index, keywords = contrast_keywords(stored, stored.words[1], "dog")
    assert (index, keywords["completion_ids"], keywords["contrast"]) == (1, [50, 51], "dog")
    assert keywords["tokens"] == 1  # and is the only token that is explained
    assert contrast_keywords(stored, 3, 9)[1]["completion_ids"] == [50, 51, 52, 53]
    with pytest.raises(InvalidExplanationError, match="has no tokens 4"):
        contrast_keywords(stored, 4, 9)


def test_a_row_that_the_server_left_out_is_an_error() -> None:
    partial = replace(complete(), attributions=complete().attributions[1:])
    assert attribution_row(partial, 1).token_index == 1
    with pytest.raises(InvalidExplanationError, match="did not explain token 0"):
        attribution_row(partial, 0)
