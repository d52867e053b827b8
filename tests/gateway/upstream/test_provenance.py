"""Provenance of an answer of the upstream: log-probabilities are compared as it comes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gradellm_gateway.upstream.provenance import UpstreamProvenance


def event(**fields: Any) -> Any:
    return SimpleNamespace(**{"finished": None, "agreement": None, **fields})


def agreement(num_tokens: int, largest: float, mean: float, verdict: str) -> Any:
    return SimpleNamespace(num_tokens=num_tokens, largest=largest, mean=mean, noise=0.1, verdict=verdict)


def test_agreements_add_up() -> None:
    found = UpstreamProvenance("float32").after(event(agreement=agreement(16, 0.2, 0.1, "unknown")))
    found = found.after(event(agreement=agreement(4, 0.1, 0.05, "same"))).after(event())
    log_probs = found.to_dict()["log_probs"]
    assert log_probs == {"tokens": 20, "largest": 0.2, "mean": 0.09, "noise": 0.1, "verdict": "same"}
    finished = SimpleNamespace(verdict="different")
    assert found.after(event(finished=finished)).log_probs.verdict == "different"


def test_where_ids_are_from() -> None:
    assert UpstreamProvenance("int4").to_dict()["ids"] == "upstream"
    assert UpstreamProvenance("int4").tokenised_again().to_dict()["ids"] == "tokenised again"
