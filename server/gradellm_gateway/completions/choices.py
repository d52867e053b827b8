"""What the server returns for each choice of an answer, merged into one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from gradellm import AsyncClient, Event, InvalidRequestError
from gradellm.models import PromptToken, Token
from gradellm_gateway.completions.logprobs import LoggedToken, of_prompt
from gradellm_gateway.completions.request import ChoiceRequest, CompletionRequest

__all__ = ["ChoiceItem", "Echo", "choice_items", "merged"]

MAX_CONCURRENT = 8  # choices of one request: all of a large one at once would fill the server's queue

Item = TypeVar("Item")


@dataclass(frozen=True)
class Echo:
    """A choice's prompt, where it is returned.

    Attributes:
        text: of the prompt.
        tokens: of the prompt.
        logged: their log-probabilities; None if the request asks for none.
    """

    text: str
    tokens: tuple[PromptToken, ...]
    logged: list[LoggedToken] | None


@dataclass(frozen=True)
class ChoiceItem:
    """The next part of a choice.

    Attributes:
        index: the choice's.
        content: its prompt, an event, or None at the end of a choice without completion.
    """

    index: int
    content: Echo | Event | None


async def choice_items(
    client: AsyncClient,
    request: CompletionRequest,
    choice: ChoiceRequest,
    generate: Callable[[AsyncClient, Mapping[str, Any]], AsyncGenerator[Event, None]],
) -> AsyncGenerator[ChoiceItem, None]:
    """Yield the parts of one choice; `generate` makes its completion from keywords.

    Raises InvalidRequestError with the caller's field names.
    """
    try:
        if request.echo:
            yield ChoiceItem(choice.index, await _echo(client, request, choice))
        if not request.generates:
            yield ChoiceItem(choice.index, None)
            return
        async with aclosing(generate(client, choice.keywords)) as events:
            async for event in events:
                yield ChoiceItem(choice.index, event)
    except InvalidRequestError as error:
        raise choice.error(error) from error


async def _echo(client: AsyncClient, request: CompletionRequest, choice: ChoiceRequest) -> Echo:
    prompt = await client.tokenize(**choice.prompt)
    if request.logprobs is None:
        return Echo(prompt.prompt_text, prompt.tokens, None)
    ids = [token.id for token in prompt.tokens]
    scored: list[Token] = []
    if len(ids) > 1:
        # The prompt after its first token, as a given completion. Of its attributions the cheapest one is asked for.
        read = client.attribute_events(
            prompt_ids=ids[:1],
            completion_ids=ids[1:],
            num_alternatives=request.logprobs,
            method="random",
            tokens=[0],
        )
        async with aclosing(read) as events:
            scored += [event.token async for event in events if event.token is not None]
    return Echo(prompt.prompt_text, prompt.tokens, of_prompt(prompt.tokens, scored))


async def merged(
    streams: Sequence[AsyncGenerator[Item, None]], limit: int = MAX_CONCURRENT
) -> AsyncGenerator[Item, None]:
    """Yield the items of several streams as they come, at most `limit` streams at a time.

    The first exception of a stream ends all; closing the generator does, too.
    """
    items: asyncio.Queue[Item | BaseException | None] = asyncio.Queue(maxsize=limit)
    waiting = iter(streams)

    async def work() -> None:
        try:
            for stream in waiting:
                async with aclosing(stream):
                    async for item in stream:
                        await items.put(item)
            await items.put(None)
        except Exception as error:
            await items.put(error)

    workers = [asyncio.ensure_future(work()) for _ in range(min(limit, len(streams)))]
    left = len(workers)
    try:
        while left:
            item = await items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for worker in workers:
            worker.cancel()
        for worker in workers:
            with suppress(asyncio.CancelledError):
                await worker
