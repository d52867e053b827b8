"""Text completion requests."""

from __future__ import annotations

import pytest

from gradellm import InvalidRequestError
from gradellm_gateway.completions.request import COMPLETION_FIELDS, CompletionRequest


def test_defaults_are_openais() -> None:
    request = CompletionRequest.from_json({"prompt": "a"})
    (choice,) = request.choices
    assert choice.keywords == {"prompt": "a", "max_new_tokens": 16, "attribution": None}
    flags = (request.is_streamed, request.echo, request.is_explained, request.token_ids, request.includes_usage)
    assert not any(flags)
    assert request.logprobs is None


def test_a_choice_for_each_prompt() -> None:
    request = CompletionRequest.from_json({"prompt": [[1, 2], [3]], "seed": 5, "logprobs": 2})
    assert [choice.prompt for choice in request.choices] == [{"prompt_ids": [1, 2]}, {"prompt_ids": [3]}]
    assert {choice.keywords["seed"] for choice in request.choices} == {5}
    assert {choice.keywords["num_alternatives"] for choice in request.choices} == {2}


@pytest.mark.parametrize("field", COMPLETION_FIELDS.keys() - {"prompt"})
def test_null_counts_as_absent(field: str) -> None:
    assert CompletionRequest.from_json({"prompt": "a", field: None}) is not None


@pytest.mark.parametrize("body", [[], "a", None, {"prompt": "a", "colour": 1}, {"prompt": "a", "echo": "yes"}])
def test_what_is_no_request_is_refused(body: object) -> None:
    with pytest.raises(InvalidRequestError):
        CompletionRequest.from_json(body)
