"""How the explainer is told of a prompt: by its messages if they are the same ids, else by the upstream's ids."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gradellm import GradellmError, PromptToken, TokenizedPrompt
from gradellm_gateway.upstream.followed_prompt import FollowedPrompt
from gradellm_gateway.upstream.followed_request import FollowedRequest

BODY = {"messages": [{"role": "user", "content": "Hi"}], "gradellm": {"segments": {"all": [0, 0, 2]}}}


class Explainer:
    """Renders messages as ids 1, 2; any ids are the text "<Hi>"."""

    def __init__(self, error: GradellmError | None = None) -> None:
        self.error = error

    async def tokenize(self, prompt: str | None = None, **keywords: Any) -> TokenizedPrompt:
        if self.error is not None:
            raise self.error
        ids = keywords.get("prompt_ids") or (1, 2)
        tokens = (PromptToken(each, "", 0, 1, None, None, "", special=False) for each in ids)
        return TokenizedPrompt("<Hi>", tuple(tokens))


def keywords(ids: tuple[int, ...] | None, *, error: GradellmError | None = None, **fields: Any) -> tuple[Any, str]:
    async def run() -> tuple[Any, str]:
        explainer: Any = Explainer(error)
        prompt = FollowedPrompt(FollowedRequest.from_json({**BODY, **fields}), explainer)
        for _ in range(2):
            if ids is not None:
                prompt.set_ids(ids)
        try:
            return await prompt.keywords(), prompt.template
        finally:
            prompt.close()

    return asyncio.run(run())


def test_the_same_ids_are_the_messages() -> None:
    expected = {"messages": ({"role": "user", "content": "Hi"},), "segments": {"all": (0, 0, 2)}}
    assert keywords((1, 2)) == (expected, "same")


@pytest.mark.parametrize(("fields", "template"), [({}, "different"), ({"tools": [{}]}, "not proved")])
def test_other_ids_are_the_prompt(fields: dict[str, Any], template: str) -> None:
    expected = {"prompt_ids": (1, 3), "message_spans": (("user", 1, 3),), "segments": {"all": (1, 3)}}
    assert keywords((1, 3), **fields) == (expected, template)


def test_no_ids_and_no_explainer() -> None:
    with pytest.raises(GradellmError, match="none of the prompt"):
        keywords(None)
    with pytest.raises(GradellmError, match="gone"):
        keywords((1, 2), error=GradellmError("gone"))
