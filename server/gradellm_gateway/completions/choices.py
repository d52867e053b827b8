"""What the server returns for each choice of an answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from gradellm import AsyncClient, Event, InvalidRequestError
from gradellm.models import PromptToken, Token
from gradellm_gateway.completions.logprobs import LoggedToken, of_prompt
from gradellm_gateway.completions.request import ChoiceRequest, CompletionRequest
from gradellm_gateway.request_body import converted

__all__ = ["ChoiceItem", "Echo", "check_prompt", "choice_items"]


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
        raise choice.names.error(error) from error


async def check_prompt(client: AsyncClient, request: CompletionRequest, choice: ChoiceRequest) -> None:
    """Ask the server whether it takes the prompt of a choice: the completion is begun, and not gone on with.

    Raises InvalidRequestError with the caller's field names.
    """
    try:
        if not request.generates:
            await client.tokenize(**choice.prompt)
            return
        async with aclosing(await converted(lambda: client.generate(**choice.keywords))) as events:
            await anext(events)
    except InvalidRequestError as error:
        raise choice.names.error(error) from error


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
