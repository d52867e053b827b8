"""An explanation against its replay: which differences are problems, and how the largest is measured."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from client.explanation.verification.conftest import complete, with_row, with_settings, with_token
from gradellm import Alternative, Explanation, Source
from gradellm.explanation.verification import Verdict, compared
from gradellm.explanation.verification.prompt import PromptReplay

EXACT = PromptReplay({}, is_exact=True)


def test_an_explanation_reproduces_itself() -> None:
    verdict = compared(complete(), complete())
    assert verdict.holds_strictly, verdict
    assert (verdict.rows, verdict.largest_difference, verdict.largest_logprob_difference) == (4, 0.0, 0.0)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_differences_are_relative_to_the_largest_score_of_the_replayed_row() -> None:
    again = with_row(complete(), 1, scores=(5.0, 0.0, -1.0, 0.0, 1.5, 0.0))  # 4 is 1 less, of a largest 5
    verdict = compared(with_row(complete(), 0, scores=(0.0, 1.0, 0.0, 2.0, 1.1, 0.0)), again)  # 0.1 of 2
    assert verdict.largest_difference == pytest.approx(0.2)
    assert verdict.worst_token == 1
    assert verdict.problems == ()
    assert compared(complete(), again, 0.21).holds
    assert not compared(complete(), again, 0.19).holds


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ((0.0,) * 6, (0.0,) * 6, 0.0),
        ((0.0,) * 5 + (1e-9,), (0.0,) * 6, math.inf),
        ((math.nan,) + (0.0,) * 5, (1.0,) * 6, math.nan),
        ((1.0,) * 6, (math.nan,) + (1.0,) * 5, math.nan),
    ],
)
def test_rows_of_zeros_and_of_nan(then: Any, now: Any, expected: float) -> None:
    verdict = compared(with_row(complete(), 2, scores=then), with_row(complete(), 2, scores=now))
    assert verdict.largest_difference == pytest.approx(expected, nan_ok=True)
    assert verdict.holds == (expected == 0)


def top(loaded: Explanation, *columns: int, limit: int = 2) -> Explanation:
    """Only these columns of row 0, as top_k_sources returns them; of the other rows the two largest."""
    rows = list(loaded.attributions)
    for index, row in enumerate(rows):
        kept = columns if index == 0 else tuple(sorted(range(6), key=lambda i: -abs(row.scores[i]))[:2])
        rows[index] = replace(row, scores=tuple(row.scores[column] for column in kept), source_indexes=kept)
    return with_settings(replace(loaded, attributions=tuple(rows)), top_k_sources=limit)


@pytest.mark.parametrize(
    ("columns", "problems"),
    [
        ((3, 1), ()),
        ((3, 4), ()),  # column 1 has the same score
        ((1, 3), ("token 0: its scores are not sorted by magnitude",)),
        ((3, 0), ("token 0 leaves out a larger score than it has",)),
        ((3,), ("token 0 has 1 scores, not 2",)),
    ],
)
def test_the_largest_sources_are_kept_in_order(columns: tuple[int, ...], problems: tuple[str, ...]) -> None:
    verdict = compared(top(complete(), *columns), complete())
    assert verdict.problems == problems
    assert verdict.largest_difference == 0


def test_a_limit_above_the_number_of_sources_is_not_checked() -> None:
    verdict = compared(with_settings(complete(), top_k_sources=6), complete())
    assert "provenance.attribution.top_k_sources" in [field.what for field in verdict.not_checked]
    assert verdict.holds


@pytest.mark.parametrize(
    ("then", "now", "is_problem"),
    [(0.5, 0.5004, False), (0.5, 0.51, True), (None, 0.5, True), (0.5, None, True), (math.nan, math.nan, False)],
)
def test_error_estimates_are_compared_within_the_tolerance(then: Any, now: Any, is_problem: bool) -> None:
    verdict = compared(with_row(complete(), 0, error=then), with_row(complete(), 0, error=now))
    assert verdict.problems == ((f"token 0: error is {then}, replay gives {now}",) if is_problem else ())


def test_rows_of_words_are_sums_of_the_replay_by_token() -> None:
    """The rows of a file by word are compared with the sums of the replay's token scores."""
    words = (
        Source("", (0,)),
        Source("The", (1,)),
        Source("cat", (2,)),
        Source("sat", (3, 4)),
        Source("on a mat", (5,)),
    )
    by_token = complete()
    rows = tuple(
        replace(row, scores=tuple(sum(row.scores[i] for i in word.token_indexes) for word in words))
        for row in by_token.attributions
    )
    by_word = with_settings(by_token, resolution="word")
    by_word = replace(by_word, started=replace(by_word.started, sources=words), attributions=rows)
    verdict = compared(by_word, by_token)
    assert (verdict.problems, verdict.largest_difference) == ((), 0.0)
    assert "started.sources" in [field.what for field in verdict.not_checked]
    assert compared(with_row(by_word, 0, scores=(0.0, 1.0, 0.0, 2.25, 0.0)), by_token).largest_difference == 0.25
    contradiction = with_settings(by_word, resolution="token")
    assert "resolution is token, but there are 5 sources" in compared(contradiction, by_token).problems


def test_missing_rows_are_problems() -> None:
    partial = replace(complete(), attributions=complete().attributions[1:])
    assert "token 0 has no scores" in compared(partial, complete()).problems
    assert "token 0 has scores, replay gives none" in compared(complete(), partial).problems
    selected = with_settings(partial, tokens=tuple(row.token_index for row in partial.attributions))
    assert not [problem for problem in compared(selected, selected).problems if "scores" in problem]


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"id": 8}, "token 1: id is 8, replay gives 51"),
        ({"text": " bar"}, "token 1: text is ' bar', replay gives ' pur'"),
        ({"special": True}, "token 1: special is True, replay gives False"),
        ({"source_index": 0}, "token 1: source_index is 0, replay gives None"),
        ({"logprob": -1.5}, "token 1: logprob is -1.5, replay gives -1"),
        ({"alternatives": ()}, "token 1 has 0 alternatives, other tokens have 2"),
        (
            {"alternatives": (Alternative(51, " pur", -1.0), Alternative(9, " y", -2.0))},
            "token 1: alternative 1 is Alternative(id=9, text=' y', logprob=-2.0), replay gives "
            "Alternative(id=7, text=' x', logprob=-2.0)",
        ),
        (
            {"alternatives": (Alternative(51, " pur", -1.0), Alternative(7, " z", -2.0))},
            "token 1: alternative 1: text is ' z', replay gives ' x'",
        ),
        ({"alternatives": (Alternative(51, " pur", -1.0),) * 2}, "token 1: an alternative occurs twice"),
    ],
)
def test_changed_tokens_are_problems(changes: dict[str, Any], problem: str) -> None:
    assert problem in compared(with_token(complete(), 1, **changes), complete()).problems


def test_alternatives_of_equal_probability_may_change_ranks() -> None:
    first, second = Alternative(51, " pur", -1.0), Alternative(7, " x", -1.0001)
    stored = with_token(complete(), 1, alternatives=(first, second))
    again = with_token(complete(), 1, alternatives=(replace(second, logprob=-0.9999), first))
    assert compared(stored, again).problems == ()
    assert compared(stored, with_token(again, 1, alternatives=(replace(second, logprob=-0.5), first))).problems


def test_logprobs_are_close_within_the_tolerance() -> None:
    verdict = compared(with_token(complete(), 2, logprob=-1.0005), complete())
    assert verdict.problems == ()
    assert verdict.largest_logprob_difference == pytest.approx(0.0005)


def stopped(stored: Explanation, stop: str) -> Explanation:
    """The explanation of a completion that this text ended."""
    assert stored.finished is not None
    return replace(stored, finished=replace(stored.finished, reason="stop_text", stop=stop))


def test_a_stop_text_cuts_the_replayed_text() -> None:
    """The stored completion ends before " lo", within its last token; the replay has the token's whole text."""
    cut = with_token(complete(stop=(" lo",)), 3, text="", end=9)
    verdict = compared(stopped(cut, " lo"), complete(stop=(" lo",)))
    assert verdict.problems == ()
    missing = compared(stopped(cut, "zz"), complete(stop=(" lo",)))
    assert "finished.stop: the completion does not contain 'zz'" in missing.problems


# --- prompt -----------------------------------------------------------------------------------------------------------


def with_prompt(loaded: Explanation, **changes: Any) -> Explanation:
    return replace(loaded, started=replace(loaded.started, **changes))


def test_prompt_texts_that_contradict_the_tokens_are_problems() -> None:
    stored = complete()
    other = with_prompt(stored, prompt_text=stored.prompt_text.replace("cat", "dog"))
    assert compared(other, stored).problems == (
        "token 2 of the prompt is ' cat', which is not the text at its offsets",
    )
    tokens = list(other.prompt_tokens)
    tokens[2] = replace(tokens[2], text=" dog")
    assert compared(with_prompt(other, prompt_tokens=tuple(tokens)), stored).problems == (
        "token 2 of the prompt is ' dog', not ' cat'",
    )
    longer = with_prompt(stored, prompt_text=stored.prompt_text + " and more")
    assert compared(longer, stored).problems == ("the prompt's text is not that of its tokens",)


def test_problems_of_the_prompts_replay_are_the_verdicts() -> None:
    found = PromptReplay({}, is_exact=False, problems=("token 3: role is user, replay gives system",))
    verdict = compared(complete(), complete(), prompt=found)
    assert verdict.problems == found.problems
    assert not verdict.holds


@pytest.mark.parametrize("prompt", [EXACT, None])
def test_messages_without_a_place_are_compared_in_an_exact_replay(prompt: PromptReplay | None) -> None:
    stored = with_prompt(complete(), unplaced_messages=(1,))

    def reported(verdict: Verdict) -> bool:
        return "started.unplaced_messages" in [field.what for field in verdict.not_checked]

    verdict = compared(stored, complete(), prompt=prompt)
    if prompt is None:
        assert verdict.holds
        assert reported(verdict)
    else:
        assert verdict.problems == ("unplaced_messages is (1,), replay gives ()",)
    assert reported(compared(complete(), stored, prompt=prompt))  # an older file does not have them
