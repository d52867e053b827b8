"""Log-probabilities in lists."""

from __future__ import annotations

import math

from gradellm.models import Alternative, PromptToken, Token
from gradellm_gateway.completions.logprobs import logprobs_object, of_completion, of_prompt


def token(number: int, text: str, logprob: float, *others: Alternative) -> Token:
    return Token(0, number, text, 2, 2 + len(text), logprob, others, False, None)


def test_a_completion() -> None:
    best = Alternative(7, " a", -0.5)
    logged = of_completion([token(7, " a", -0.5, best), token(8, " b", -math.inf, best)], offset=10)
    assert logprobs_object(logged) == {
        "text_offset": [12, 12],
        "token_logprobs": [-0.5, -9999.0],
        "tokens": [" a", " b"],
        "top_logprobs": [{" a": -0.5}, {" a": -0.5, " b": -9999.0}],
    }


def test_a_token_has_the_text_of_its_alternative() -> None:
    """So that clients find it among the most probable ones."""
    (logged,) = of_completion([token(7, "", -0.5, Alternative(7, "\ufffd", -0.5))], offset=0)
    assert (logged.text, logged.top) == ("\ufffd", {"\ufffd": -0.5})


def test_of_equal_texts_the_most_probable_counts() -> None:
    others = (Alternative(1, "x", -1.0), Alternative(2, "x", -2.0), Alternative(3, "y", -3.0))
    (logged,) = of_completion([token(1, "x", -1.0, *others)], offset=0)
    assert list((logged.top or {}).items()) == [("x", -1.0), ("y", -3.0)]


def test_a_prompt_has_nothing_before_its_first_token() -> None:
    prompt = [PromptToken(number, text, 3 * number, 3, "user", None, "", False) for number, text in enumerate("ab")]
    first, second = of_prompt(prompt, [token(1, "b", -0.25)])
    assert (first.text, first.offset, first.logprob, first.top) == ("a", 0, None, None)
    assert (second.text, second.offset, second.logprob, second.top) == ("b", 3, -0.25, {"b": -0.25})
    assert of_prompt([], []) == []
