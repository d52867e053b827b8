"""Explains a streaming response of the `openai` package while it is read.

Ask a vLLM server for token ids and log-probabilities:

    chunks = openai_client.chat.completions.create(
        model=..., messages=messages, stream=True, logprobs=True, top_logprobs=8, extra_body={"return_token_ids": True}
    )
    for item in client.follow_openai(chunks):
        ...

The prompt is then the one that the server read, and the completion is explained while it comes. A server that tells no
token ids gives a text: with `messages` (or `prompt`) its completion is explained at the end, from its text. The chunks
are read by their attributes; the openai package is not imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from gradellm.errors import InvalidRequestError
from gradellm.following.openai_logprobs import field_of, told_logprobs
from gradellm.following.openai_requests import TEMPLATE_OPTIONS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Iterator, Sequence
    from typing import Unpack

    from gradellm.following.asynchronous import AsyncFollowing
    from gradellm.following.synchronous import Following
    from gradellm.models import Event
    from gradellm.wire.keywords import AttributeKeywords, FollowKeywords

__all__ = ["ChoiceReader", "OpenAIItem", "follow_openai", "follow_openai_async"]

Written = tuple[list[int], list[float | None], list[list[float]]]
"""Arguments of `Following.append`: ids, log-probabilities, and those of the most probable tokens at each."""

_NO_IDS = (
    'the other server tells no token ids (ask for them with extra_body={"return_token_ids": True}; in a log, '
    '"return_token_ids": true)'
)
_PROMPTS = ("prompt", "prompt_ids", "messages")
_PARSED = ("tool_calls", "function_call", "reasoning_content", "reasoning")
"""Parts of a message that an engine's parsers make of the text, which is then not told."""
_FOLLOW_ALONE = ("max_new_tokens", "upstream_dtype", "flush_seconds")


class Explainer(Protocol):
    """The calls of `Client` that are used here."""

    def follow(self, **keywords: Unpack[FollowKeywords]) -> Following: ...

    def attribute_events(self, **keywords: Unpack[AttributeKeywords]) -> Generator[Event, None, None]: ...


class AsyncExplainer(Protocol):
    """The calls of `AsyncClient` that are used here."""

    def follow(self, **keywords: Unpack[FollowKeywords]) -> AsyncFollowing: ...

    def attribute_events(self, **keywords: Unpack[AttributeKeywords]) -> AsyncGenerator[Event, None]: ...


@dataclass(frozen=True, slots=True)
class OpenAIItem:
    """A chunk of the other server, or an event of its explanation: exactly one of the two is not None."""

    chunk: Any = None
    """The chunk as it came."""
    event: Event | None = None


@dataclass
class ChoiceReader:
    """What has come of one choice of a response."""

    choice: int
    keywords: FollowKeywords
    text: str = ""
    prompt_ids: Sequence[int] = ()
    tells_ids: bool = False
    parsed: str = ""
    """The first part of the message that is not text as the model wrote it, by the name of its field."""
    tokens: list[Written] = field(default_factory=list)

    def add(self, chunk: Any) -> None:  # noqa: ANN401 (a chunk of the openai package, or a mapping)
        """Take a chunk into account."""
        self.prompt_ids = self.prompt_ids or field_of(chunk, "prompt_token_ids") or ()
        for choice in field_of(chunk, "choices") or ():
            if (field_of(choice, "index") or 0) != self.choice:
                continue
            self.prompt_ids = self.prompt_ids or field_of(choice, "prompt_token_ids") or ()
            message = field_of(choice, "delta") or field_of(choice, "message")
            self.text += field_of(message, "content") or field_of(choice, "text") or ""
            self.parsed = self.parsed or next((name for name in _PARSED if field_of(message, name)), "")
            if ids := field_of(choice, "token_ids"):
                self.tells_ids = True
                self.tokens.append((list(ids), *told_logprobs(choice, len(ids))))

    def take(self) -> list[Written]:
        """Return the tokens since the last call, with their log-probabilities, and those of the most probable ones."""
        tokens, self.tokens = self.tokens, []
        return tokens

    def follow_keywords(self) -> FollowKeywords:
        """Return the keywords of `follow`: the prompt is the one that the server read, if it tells."""
        if not self.prompt_ids or self.keywords.get("prompt_ids") is not None:
            return self.keywords
        shared = {name: value for name, value in self.keywords.items() if name not in (*_PROMPTS, *TEMPLATE_OPTIONS)}
        return cast("FollowKeywords", {**shared, "prompt_ids": list(self.prompt_ids)})

    def attribute_keywords(self) -> AttributeKeywords:
        """Return the keywords of `attribute` for the text.

        Raises InvalidRequestError where the keywords do not say the prompt, or the text is not all that was written.
        """
        keywords = self.follow_keywords()
        if not any(keywords.get(name) is not None for name in _PROMPTS):
            raise InvalidRequestError.of("messages", f"are needed: {_NO_IDS}, so that its text is explained")
        if self.parsed:
            raise InvalidRequestError.of(
                f"choices[{self.choice}].message.{self.parsed}",
                f"is not the text that the model wrote, and {_NO_IDS}",
            )
        shared = {name: value for name, value in keywords.items() if name not in _FOLLOW_ALONE}
        return cast("AttributeKeywords", {**shared, "completion": self.text})


def follow_openai(
    client: Explainer, chunks: Iterable[Any], choice: int, keywords: FollowKeywords
) -> Iterator[OpenAIItem]:
    """Yield the chunks as they come, and events between them; see `Client.follow_openai`."""
    response, following = ChoiceReader(choice, keywords), None
    try:
        for chunk in chunks:
            yield OpenAIItem(chunk=chunk)
            response.add(chunk)
            if following is None and response.tells_ids:
                following = client.follow(**response.follow_keywords())
            if following is not None:
                for written in response.take():
                    following.append(*written)
                for event in following.poll():
                    yield OpenAIItem(event=event)
        if following is not None:
            following.finish()
            for event in following:
                yield OpenAIItem(event=event)
        elif response.text or response.parsed:
            for event in client.attribute_events(**response.attribute_keywords()):
                yield OpenAIItem(event=event)
    finally:
        if following is not None:
            following.close()


async def follow_openai_async(
    client: AsyncExplainer, chunks: AsyncIterable[Any], choice: int, keywords: FollowKeywords
) -> AsyncGenerator[OpenAIItem, None]:
    """Yield the chunks as they come, and events between them; see `AsyncClient.follow_openai`."""
    response, following = ChoiceReader(choice, keywords), None
    try:
        async for chunk in chunks:
            yield OpenAIItem(chunk=chunk)
            response.add(chunk)
            if following is None and response.tells_ids:
                following = client.follow(**response.follow_keywords())
            if following is not None:
                for written in response.take():
                    await following.append(*written)
                for event in following.poll():
                    yield OpenAIItem(event=event)
        if following is not None:
            await following.finish()
            async for event in following:
                yield OpenAIItem(event=event)
        elif response.text or response.parsed:
            async for event in client.attribute_events(**response.attribute_keywords()):
                yield OpenAIItem(event=event)
    finally:
        if following is not None:
            await following.aclose()
