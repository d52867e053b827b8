"""Provenance of an answer of the upstream: log-probabilities are compared as it comes."""

from __future__ import annotations

from gradellm import Event
from gradellm.models import Agreement, AgreementTotal, Finished, Timings, Usage
from gradellm_gateway.upstream.provenance import UpstreamProvenance


def test_the_last_comparison_counts() -> None:
    unknown, same = AgreementTotal(4, 0.2, 0.1, 0.0, "unknown"), AgreementTotal(20, 0.2, 0.1, 0.01, "same")
    found = UpstreamProvenance("float32").after(Event(agreement=Agreement(0, 4, 0.2, 0.1, unknown)))
    assert found.log_probs == unknown
    assert found.after(Event()).log_probs == unknown
    finished = Finished("end_of_completion", "", Usage(1, 1, 1, 0), Timings(0, 0, 0, 0), same)
    expected = {"tokens": 20, "largest": 0.2, "mean": 0.1, "noise": 0.01, "verdict": "same", "logprobs": 0}
    assert found.after(Event(finished=finished)).to_dict()["log_probs"] == expected


def test_where_ids_are_from() -> None:
    assert UpstreamProvenance("int4").to_dict()["ids"] == "upstream"
    assert UpstreamProvenance("int4").tokenised_again().to_dict()["ids"] == "tokenised again"
