"""Sampling settings and the end of a completion: what follows from the tokens, and what from generating them again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from client.explanation.verification.conftest import complete, with_provenance, with_token
from gradellm import Alternative, Explanation, Usage
from gradellm.explanation.verification.generation import compare_finish, compare_sampling, regenerated
from gradellm.explanation.verification.verdict import Findings, group_by_reason

TOLERANCE = 1e-3


def of_sampling(stored: Explanation, again: Explanation | None = None, redrawn: Explanation | None = None) -> Findings:
    findings = Findings()
    compare_sampling(stored, again or stored, redrawn, TOLERANCE, findings)
    return findings


def of_finish(stored: Explanation, redrawn: Explanation | None = None) -> list[str]:
    findings = Findings()
    compare_finish(stored, redrawn, findings)
    return findings.problems


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_greedy_tokens_are_the_most_probable() -> None:
    assert of_sampling(complete()).problems == []
    (reason, effect) = group_by_reason(of_sampling(complete()).not_checked)
    assert reason == "provenance.sampling.temperature (only by its effect: the same tokens are generated)"
    assert effect.endswith("(no effect on greedy decoding; --regenerate compares them)")


@pytest.mark.parametrize(("best", "is_greedy"), [(-0.5, False), (-0.9995, True), (-1.0, True)])
def test_a_less_probable_token_was_not_decoded_greedily(best: float, is_greedy: bool) -> None:
    """Within the tolerance the two are equally probable."""
    again = with_token(complete(), 1, alternatives=(Alternative(9, " dog", best),))
    problems = of_sampling(complete(), again).problems
    assert problems == ([] if is_greedy else ["token 1 is ' pur', greedy decoding gives ' dog'"])
    assert of_sampling(complete(temperature=0.5), again).problems == []


def test_sampled_tokens_are_not_checked_unless_they_are_drawn_again() -> None:
    sampled = complete(temperature=1.0)
    assert {item.why for item in of_sampling(sampled).not_checked} == {
        "tokens were sampled; --regenerate samples them again"
    }
    assert {item.why for item in of_sampling(sampled, redrawn=sampled).not_checked} == {
        "only by its effect: the same tokens are generated"
    }


@pytest.mark.parametrize(
    ("redrawn", "problem"),
    [
        (with_token(complete(), 2, id=9, text=" x", end=9),
         "token 2 is 'rs', its sampling settings generate ' x'; later tokens were not compared"),
        (replace(complete(), tokens=complete().tokens[:3], attributions=()),
         "it has 4 tokens, its sampling settings generate 3"),
        (with_token(complete(), 2, text="RS"), "token 2: text is 'rs', replay gives 'RS'"),
        (with_token(complete(), 3, special=True), "token 3: special is False, replay gives True"),
    ],
)  # fmt: skip
def test_the_first_difference_of_tokens_drawn_again_is_named(redrawn: Explanation, problem: str) -> None:
    assert of_sampling(complete(temperature=1.0), redrawn=redrawn).problems == [problem]


def test_more_tokens_than_allowed_are_a_problem() -> None:
    assert of_sampling(complete(max_new_tokens=3)).problems == ["it has 4 tokens, more than max_new_tokens=3"]
    assert of_sampling(complete(max_new_tokens=0)).problems == []


def test_a_given_completion_has_the_replays_sampling_settings() -> None:
    given = complete(finished={"reason": "end_of_completion"})
    assert of_sampling(given, given).problems == []
    assert of_sampling(given, complete(seed=8)).problems == ["the completion was given, but sampling.seed is 7"]
    assert of_sampling(with_provenance(given, sampling=None)).problems == []


# --- generating again -------------------------------------------------------------------------------------------------


def keywords_of(stored: Explanation) -> dict[str, Any] | None:
    """The keywords of the call that generates a completion again; None without a call."""
    calls: list[dict[str, Any]] = []

    def explain(keywords: dict[str, Any]) -> Explanation:
        calls.append(keywords)
        return stored

    assert regenerated(explain, stored, {"prompt": "Once"}) is (stored if calls else None)
    return calls[0] if calls else None


def test_the_stored_settings_generate_again() -> None:
    expected = {"prompt": "Once", "max_new_tokens": 4, "temperature": 0.5, "top_k": 0, "top_p": 1.0, "seed": 7}
    assert keywords_of(complete(temperature=0.5)) == {**expected, "stop": (), "logit_bias": {}, "stop_token_ids": ()}
    without_limit = keywords_of(complete(max_new_tokens=0))
    assert without_limit is not None
    assert without_limit["max_new_tokens"] is None


def test_an_interrupted_stream_is_generated_as_far_as_it_came() -> None:
    keywords = keywords_of(replace(complete(max_new_tokens=99), finished=None))
    assert keywords is not None
    assert keywords["max_new_tokens"] == 4


def test_a_given_completion_is_not_generated_again() -> None:
    assert keywords_of(complete(finished={"reason": "end_of_completion"})) is None
    assert keywords_of(with_provenance(complete(), sampling=None)) is None


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "finished", "problems"),
    [
        ({}, {}, []),
        ({"max_new_tokens": 5}, {}, ["finished.reason is max_new_tokens=5, but there are 4 tokens"]),
        ({}, {"reason": None}, ["finished.reason is not known to this version"]),
        ({}, {"stop": "x"}, ["finished.stop is 'x', but finished.reason is max_new_tokens"]),
        ({}, {"reason": "end_of_text"}, ["finished.reason is end_of_text, but the last token is ' loud'"]),
        ({"stop": ("!",)}, {"reason": "stop_text", "stop": "!"}, []),
        ({"stop": ("!",)}, {"reason": "stop_text", "stop": "?"},
         ["finished.stop is '?', which is not in sampling.stop"]),
        ({"stop": ("rs l",)}, {},
         ["the completion contains the stop text 'rs l', but finished.reason is max_new_tokens"]),
        ({"stop": ("rs l",)}, {"reason": "end_of_completion"}, []),
    ],
)  # fmt: skip
def test_the_finish_reason_is_consistent_with_the_completion(
    sampling: dict[str, Any], finished: dict[str, Any], problems: list[str]
) -> None:
    assert of_finish(complete(finished=finished, **sampling)) == problems


def test_a_reason_of_a_generation_needs_sampling_settings() -> None:
    given = with_provenance(complete(), sampling=None)
    assert of_finish(given) == ["finished.reason is max_new_tokens, but nothing was generated"]


def test_token_counts_are_those_of_the_explanation() -> None:
    assert of_finish(complete(finished={"usage": Usage(5, 3, 2, 9)})) == [
        "finished.usage.prompt_tokens is 5, not 6",
        "finished.usage.completion_tokens is 3, not 4",
        "finished.usage.attributed_tokens is 2, not 4",
    ]


def test_the_end_of_a_generation_is_that_of_the_one_drawn_again() -> None:
    again = complete(finished={"reason": "stop_text", "stop": "!"})
    assert of_finish(complete(), again) == [
        "finished: reason is 'max_new_tokens', replay gives 'stop_text'",
        "finished: stop is '', replay gives '!'",
    ]
    assert of_finish(complete(), replace(again, finished=None)) == []


def test_measurements_of_a_run_are_not_checked() -> None:
    findings = Findings()
    compare_finish(complete(), None, findings)
    names = {item.what for item in findings.not_checked}
    assert {"finished.usage.reused_prompt_tokens", "finished.timings.queue_seconds"} <= names
    interrupted = Findings()
    compare_finish(replace(complete(), finished=None), None, interrupted)
    assert [item.what for item in interrupted.not_checked] == ["finished"]
