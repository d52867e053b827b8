"""The parts of a choice: its prompt, where it is returned, then what the server generates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gradellm import Event, InvalidRequestError, PromptToken, TokenizedPrompt
from gradellm.models import Token
from gradellm_gateway.completions.choices import ChoiceItem, Echo, check_prompt, choice_items
from gradellm_gateway.completions.request import CompletionRequest

TOKENS = tuple(
    PromptToken(index, text, index, index + 1, "user", 0, "", special=False) for index, text in enumerate("ab")
)
TOKEN = Token(
    index=0, id=1, text="b", start=1, end=2, logprob=-0.5, alternatives=(), word=0, source_index=1, special=False
)


class FakeClient:
    """Generates one token, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def tokenize(self, **prompt: Any) -> TokenizedPrompt:
        return TokenizedPrompt("ab", TOKENS)

    async def attribute_events(self, **keywords: Any) -> AsyncGenerator[Event, None]:
        assert (keywords["prompt_ids"], keywords["completion_ids"]) == ([0], [1])
        yield Event(token=TOKEN)

    async def generate(self, **keywords: Any) -> AsyncGenerator[Event, None]:
        if self._error is not None:
            raise self._error
        yield Event(token=TOKEN)


def items(client: Any, **body: Any) -> list[ChoiceItem]:
    request = CompletionRequest.from_json({"prompt": ["x", "ab"], **body})

    async def run() -> list[ChoiceItem]:
        return [
            item
            async for item in choice_items(
                client, request, request.choices[1], lambda made, keywords: made.generate(**keywords)
            )
        ]

    return asyncio.run(run())


def test_events() -> None:
    assert items(FakeClient()) == [ChoiceItem(1, Event(token=TOKEN))]


def test_the_prompt_comes_first() -> None:
    first, second = items(FakeClient(), echo=True)
    assert first == ChoiceItem(1, Echo("ab", TOKENS, None))
    assert second.content == Event(token=TOKEN)
    first, end = items(FakeClient(), echo=True, logprobs=1, max_tokens=0)
    assert isinstance(first.content, Echo)
    assert first.content.logged is not None
    assert [each.logprob for each in first.content.logged] == [None, -0.5]
    assert end == ChoiceItem(1, None)


def test_errors_name_the_prompt() -> None:
    with pytest.raises(InvalidRequestError, match=r"prompt\[1\]"):
        items(FakeClient(InvalidRequestError.of("input", "is too long")))


def test_a_prompt_is_checked_by_what_its_completion_begins_with() -> None:
    def check(client: Any, **body: Any) -> None:
        request = CompletionRequest.from_json({"prompt": ["x", "ab"], "n": 2, **body})
        assert [choice.index for choice in request.first_choices] == [0, 2]
        asyncio.run(check_prompt(client, request, request.first_choices[1]))

    check(FakeClient())
    refusing = FakeClient(InvalidRequestError.of("input", "is too long"))
    check(refusing, echo=True, max_tokens=0)  # which tokenizes alone
    with pytest.raises(InvalidRequestError, match=r"prompt\[1\]"):
        check(refusing)
