"""A choice is explained beside its tokens, which never wait; what lacks is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from client.explanation.conftest import explanation as without_end
from gradellm import (
    Event,
    GradellmError,
    InvalidRequestError,
    OverloadedError,
    PromptToken,
    TokenizedPrompt,
    UnavailableError,
)
from gradellm.models import Finished, Timings, Usage
from gradellm_gateway.upstream.answer_fields import ChoiceTokens
from gradellm_gateway.upstream.followed_prompt import FollowedPrompt
from gradellm_gateway.upstream.followed_request import FollowedRequest
from gradellm_gateway.upstream.following import ChoiceFollower, Incomplete, Said
from gradellm_gateway.upstream.provenance import UpstreamProvenance

EVENTS = tuple(without_end().events())


class FakeFollowing:
    """Says a stored explanation's events, one token and its row for each that is appended."""

    def __init__(self, explainer: FakeExplainer, keywords: dict[str, Any]) -> None:
        self._explainer, self.keywords = explainer, keywords
        self.appended: list[tuple[Any, ...]] = []
        self.is_finished = asyncio.Event()
        self.is_left = False

    async def __aenter__(self) -> FakeFollowing:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.is_left = True

    async def append(self, *written: Any) -> None:
        self.appended.append(written)
        await asyncio.sleep(self._explainer.append_seconds)

    async def finish(self) -> None:
        self.is_finished.set()

    async def __aiter__(self) -> AsyncIterator[Event]:
        yield EVENTS[0]
        if self._explainer.error is not None:
            raise self._explainer.error
        await self.is_finished.wait()
        for event in self._explainer.events:
            yield event


class FakeExplainer:
    """The explainer's client."""

    def __init__(self, events: Sequence[Event] = (), error: GradellmError | None = None) -> None:
        self.events, self.error = events, error
        self.append_seconds = 0.0
        self.calls: list[FakeFollowing] = []

    def follow(self, **keywords: Any) -> FakeFollowing:
        self.calls.append(FakeFollowing(self, keywords))
        return self.calls[-1]

    async def attribute_events(self, **keywords: Any) -> AsyncIterator[Event]:
        yield EVENTS[0]
        for event in self.events:
            yield event

    async def tokenize(self, prompt: str | None = None, **keywords: Any) -> TokenizedPrompt:
        if self.error is not None:
            raise self.error
        return TokenizedPrompt("Hi", (PromptToken(1, "Hi", 0, 2, "user", 0, "", special=False),))


FINISHED = Event(finished=Finished("end_of_completion", "", Usage(6, 4, 3, 0), Timings(0.0, 0.1, 0.2, 0.3)))
REST = (*EVENTS[1:], FINISHED)
TEXT = "".join(event.token.text for event in EVENTS if event.token)
ROWS = sum(event.attribution is not None for event in EVENTS)
REQUEST = FollowedRequest.from_json(
    {"messages": [{"role": "user", "content": "Hi"}], "gradellm": {"resolution": "word"}}
)


class Choice:
    """A follower, and what it said."""

    def __init__(self, explainer: FakeExplainer, request: FollowedRequest = REQUEST) -> None:
        self.said: list[Said] = []
        client: Any = explainer
        self.prompt = FollowedPrompt(request, client)
        self.prompt.set_ids((1,))
        self.follower = ChoiceFollower(request, client, self.prompt, UpstreamProvenance("float32"), self._say)

    async def _say(self, said: Said) -> None:
        self.said.append(said)

    async def end(self, seconds: float = 5.0) -> dict[str, Any] | None:
        """What lacks at the end."""
        self.follower.end()
        await self.follower.wait(asyncio.get_running_loop().time() + seconds)
        self.prompt.close()
        return self.said[-1].gradellm.get("incomplete") if self.said else None


def tokens(content: str, *ids: int, logprob: float = -0.5) -> ChoiceTokens:
    return ChoiceTokens(0, ids, (logprob,) * len(ids), ((-0.5, -2.0),) * len(ids), content)


def follow(explainer: FakeExplainer, *parts: ChoiceTokens, request: FollowedRequest = REQUEST) -> tuple[Choice, Any]:
    async def run() -> tuple[Choice, Any]:
        choice = Choice(explainer, request)
        for part in parts:
            choice.follower.add(part)
            await asyncio.sleep(0)
        return choice, await choice.end()

    return asyncio.run(run())


def test_tokens_are_appended_and_events_said() -> None:
    explainer = FakeExplainer(REST)
    choice, lacks = follow(explainer, tokens(TEXT[:2], 5, 6), tokens(TEXT[2:], 7, 8))
    assert lacks is None
    (call,) = explainer.calls
    assert call.keywords == {"resolution": "word", "messages": REQUEST.plain_messages, "upstream_dtype": "float32"}
    assert call.appended[0] == ((5, 6), (-0.5, -0.5), ((-0.5, -2.0), (-0.5, -2.0)))
    assert call.appended[1][0] == (7, 8)
    assert call.is_left
    assert [said.event for said in choice.said] == [EVENTS[0], *REST]
    assert "upstream" in choice.said[0].gradellm
    assert choice.said[-1].gradellm["upstream"]["template"] == "same"


def test_logprobs_of_constrained_sampling_are_not_compared() -> None:
    request = replace(REQUEST, has_free_logprobs=False)
    explainer = FakeExplainer(REST)
    follow(explainer, tokens(TEXT, 5), request=request)
    assert explainer.calls[0].appended == [((5,),)]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnavailableError("no server"), "explainer_unavailable"),
        (OverloadedError("full"), "explainer_full"),
        (InvalidRequestError.of("method", "is not known"), "refused"),
        (GradellmError("?"), "explainer_failed"),
    ],
)
def test_an_explainer_that_fails_is_told(error: GradellmError, code: str) -> None:
    _choice, lacks = follow(FakeExplainer(REST, error), tokens(TEXT, 5), tokens("more", 6))
    assert lacks["code"] == code
    assert str(error) in lacks["message"]
    assert (lacks["tokens"], lacks["explained_tokens"]) == (2, 0)


def test_an_explainer_that_is_slow_is_told_and_cancelled() -> None:
    async def run() -> None:
        explainer = FakeExplainer(REST)
        explainer.append_seconds = 60.0
        choice = Choice(explainer)
        choice.follower.add(tokens(TEXT, 5))
        lacks = await choice.end(seconds=0.05)
        assert lacks is not None
        assert lacks["code"] == "timeout"
        assert "--explain-wait" in lacks["message"]
        assert explainer.calls[0].is_left

    asyncio.run(run())


def test_a_call_that_ends_early_is_told() -> None:
    _, lacks = follow(FakeExplainer(REST[:-2]), tokens(TEXT, 5))
    assert lacks["code"] == "explainer_failed"
    assert lacks["explained_tokens"] == ROWS or lacks["explained_tokens"] == ROWS - 1


def test_another_text_than_that_of_the_ids_is_told() -> None:
    _, lacks = follow(FakeExplainer(REST), tokens("something else", 5))
    assert lacks["code"] == "other_text"


def test_text_without_ids_is_tokenised_again() -> None:
    choice, lacks = follow(FakeExplainer(REST), ChoiceTokens(0, None, content=TEXT))
    assert lacks is None
    assert choice.said[-1].gradellm["upstream"]["ids"] == "tokenised again"


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ((tokens("a", 5), ChoiceTokens(0, None, content="b")), "ids_missing"),
        ((ChoiceTokens(0, None, content="a"), tokens("b", 5)), "ids_missing"),
        ((ChoiceTokens(0, None, content="a", reasoning="reasoning"),), "ids_missing"),
    ],
)
def test_ids_that_are_missing_are_told(parts: tuple[ChoiceTokens, ...], code: str) -> None:
    _, lacks = follow(FakeExplainer(REST), *parts)
    assert lacks["code"] == code


def test_an_empty_answer_lacks_nothing() -> None:
    choice, lacks = follow(FakeExplainer(REST), ChoiceTokens(0, None))
    assert (choice.said, lacks) == ([], None)


def test_the_first_reason_to_stop_counts() -> None:
    async def run() -> None:
        choice = Choice(FakeExplainer(REST))
        choice.follower.stop(Incomplete("first", "."))
        choice.follower.stop(Incomplete("second", "."))
        choice.follower.add(tokens("a", 5))
        assert ((await choice.end()) or {})["code"] == "first"

    asyncio.run(run())


def test_where_the_content_begins_in_the_text() -> None:
    choice, _ = follow(FakeExplainer(REST), ChoiceTokens(0, (5,), content=TEXT[3:], reasoning=TEXT[:3]))
    first = next(event.token.start for event in EVENTS if event.token)
    assert choice.follower.content == TEXT[3:]
    assert choice.follower.content_offset == first + 3
