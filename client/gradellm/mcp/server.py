"""The tools of the MCP server, over a client of an explanation server."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

from gradellm._version import __version__
from gradellm.errors import GradellmError, InvalidRequestError
from gradellm.evaluation.report import EvaluationReport
from gradellm.explanation.explanation import Explanation
from gradellm.mcp.results import CitedAnswer, ExplainedAnswer, Faithfulness, cited, evaluated, explained
from gradellm.wire.documents import with_documents

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from gradellm.aio import AsyncClient
    from gradellm.models import Event

__all__ = ["MAX_NEW_TOKENS", "mcp_server"]

MAX_NEW_TOKENS = 1024
INSTRUCTIONS = """\
Asks a local language model, and says which words of its prompt each word of its answer was drawn from (attributions by
Grad-ELLM). They tell what the model read, not whether the answer is true. `evaluate` tells how far to trust them.
"""

Prompt = Annotated[str, Field(description="the user's message to the explained model")]
Completion = Annotated[str, Field(description="the model's answer, which is explained as it stands", min_length=1)]
Documents = Annotated[
    dict[str, str] | None,
    Field(description="texts by name, put before the prompt; sentences of the answer then cite them"),
]
NewTokens = Annotated[int, Field(description="at most so many tokens are generated", ge=1, le=MAX_NEW_TOKENS)]
NumSources = Annotated[int, Field(description="sources for each word, the strongest first", ge=1, le=20)]
Words = Annotated[
    str | None,
    Field(description="a regular expression: only words of the answer in which it is found; all by default"),
]


def mcp_server(client: AsyncClient) -> MCPServer[Any]:
    """An MCP server whose tools call an explanation server."""
    server = MCPServer("gradellm", title="gradellm", instructions=INSTRUCTIONS, version=__version__)
    tools = _Tools(client)
    for tool, title in (
        (tools.explain, "Answer, and explain each word"),
        (tools.attribute, "Explain a given answer"),
        (tools.citations, "Cite documents for each sentence"),
        (tools.evaluate, "Measure how far explanations can be trusted"),
    ):
        server.add_tool(tool, title=title, annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    return server


class _Tools:
    """The tools: their docstrings and annotations are what agents read."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def explain(
        self,
        prompt: Prompt,
        ctx: Context[Any],
        documents: Documents = None,
        max_new_tokens: NewTokens = 128,
        num_sources: NumSources = 3,
        words: Words = None,
    ) -> ExplainedAnswer:
        """Let the model answer a prompt, and tell which words of the prompt each word of the answer was drawn from."""
        with _errors():
            _check_expression(words)
            keywords = await self._input(prompt, documents)
            events = self._client.generate(**keywords, max_new_tokens=max_new_tokens, temperature=0.0)
            return await _explained(events, ctx, num_sources, words, max_new_tokens)

    async def attribute(
        self,
        prompt: Prompt,
        completion: Completion,
        ctx: Context[Any],
        documents: Documents = None,
        num_sources: NumSources = 3,
        words: Words = None,
    ) -> ExplainedAnswer:
        """Tell for each word of a given answer which words of the prompt the model draws it from."""
        with _errors():
            _check_expression(words)
            keywords = await self._input(prompt, documents)
            events = self._client.attribute_events(**keywords, completion=completion)
            return await _explained(events, ctx, num_sources, words)

    async def citations(
        self,
        question: Prompt,
        documents: Annotated[dict[str, str], Field(description="texts by name", min_length=1)],
        ctx: Context[Any],
        answer: Annotated[str | None, Field(description="an answer to cite for; the model's own by default")] = None,
        max_new_tokens: NewTokens = 128,
    ) -> CitedAnswer:
        """Answer a question from documents, and tell for each sentence which documents it was drawn from, if any."""
        with _errors():
            keywords = await self._input(question, documents)
            if answer is None:
                events = self._client.generate(**keywords, max_new_tokens=max_new_tokens, temperature=0.0)
            else:
                events = self._client.attribute_events(**keywords, completion=answer)
            return cited(Explanation.from_events(await _collected(events, ctx, max_new_tokens)))

    async def evaluate(
        self,
        prompt: Prompt,
        ctx: Context[Any],
        completion: Annotated[str | None, Field(description="an answer; the model's own by default")] = None,
        max_new_tokens: Annotated[int, Field(description="of the model's own answer", ge=1, le=128)] = 16,
        stride: Annotated[int, Field(description="evaluate every N-th token", ge=1)] = 5,
        samples: Annotated[int, Field(description="masks for each share of retained tokens", ge=1, le=10)] = 1,
    ) -> Faithfulness:
        """Measure how faithful attributions of an answer are (pi-Soft-NS, pi-Soft-NC), by perturbation; slow."""
        with _errors():
            keywords = await self._input(prompt, None)
            keywords |= {"max_new_tokens": max_new_tokens} if completion is None else {"completion": completion}
            events = self._client.evaluate_events(
                **keywords, stride=stride, samples=samples, pis=[0.1, 0.3, 0.5, 0.7, 0.9]
            )
            return evaluated(EvaluationReport.from_events(await _collected(events, ctx)))

    async def _input(self, question: str, documents: dict[str, str] | None) -> dict[str, Any]:
        """The input's keywords: a user message, or a plain prompt for a model without a chat template."""
        text, places = with_documents(question, (documents or {}).items(), "documents")
        is_chat = (await self._client.server_info()).model.has_chat_template
        keywords: dict[str, Any] = {"messages": [("user", text)]} if is_chat else {"prompt": text}
        if places:
            keywords["segments"] = {name: (0, *span) if is_chat else span for name, span in places.items()}
        return keywords


async def _explained(
    events: AsyncGenerator[Event, None],
    ctx: Context[Any],
    num_sources: int,
    words: str | None,
    total: int | None = None,
) -> ExplainedAnswer:
    explanation = Explanation.from_events(await _collected(events, ctx, total))
    return explained(explanation, num_sources=num_sources, words=words)


async def _collected(
    events: AsyncGenerator[Event, None], ctx: Context[Any], total: int | None = None
) -> Sequence[Event]:
    """All events of a call, which is cancelled with the tool's; its progress is reported to the caller."""
    collected: list[Event] = []
    num_tokens = 0
    try:
        async for event in events:
            collected.append(event)
            if event.token is not None:
                num_tokens += 1
                await ctx.report_progress(num_tokens, total)
            elif event.progress is not None:
                await ctx.report_progress(event.progress.done, 1.0)
    finally:
        await events.aclose()
    return collected


@contextmanager
def _errors() -> Iterator[None]:
    """Errors of the SDK, which say what to do, as the tool's own."""
    try:
        yield
    except GradellmError as error:
        raise ToolError(str(error)) from error


def _check_expression(words: str | None) -> None:
    try:
        re.compile(words or "")
    except re.error as error:
        raise InvalidRequestError.of("words", f"is not a regular expression: {error}") from error
