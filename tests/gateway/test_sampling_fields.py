"""Fields of sampling as keywords of the SDK."""

from __future__ import annotations

from gradellm.wire.keywords import GenerateKeywords
from gradellm_gateway.sampling_fields import MAX_SEED, SAMPLING_NAMES, sampling_keywords, seed_of_choice


def test_all_are_keywords_of_generate() -> None:
    assert SAMPLING_NAMES.keys() <= GenerateKeywords.__annotations__.keys()


def test_keywords() -> None:
    body = {"temperature": 0, "min_tokens": 3, "top_k": -1, "seed": None, "model": "x"}
    assert sampling_keywords(body) == {"temperature": 0, "min_new_tokens": 3, "top_k": 0}


def test_seeds() -> None:
    assert seed_of_choice({"seed": MAX_SEED}, 1) == {"seed": 0}
    assert seed_of_choice({}, 1) == seed_of_choice({"seed": -1}, 1) == {}
