"""Answers of the upstream with their explanation: streamed ones chunk by chunk, others as a whole.

| of the upstream's answer | what its caller gets |
| --- | --- |
| a chunk | the same, without what was asked for beside the caller's own fields |
| an event that is no JSON, or too large | its bytes; explaining ends, with the reason |
| `[DONE]`, the end | it waits for the last rows, for a while |
| half an event at the end | nothing, as server-sent events are defined |
| it breaks off | an error event, as vLLM's, and the connection is closed |

Rows are chunks of their own, of a choice with an empty delta.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool

from gradellm import AsyncClient
from gradellm.explanation.explanation import Collector
from gradellm.models import UpstreamDtype
from gradellm_gateway.documents import source_event
from gradellm_gateway.errors import error_object
from gradellm_gateway.upstream.answer_fields import AnswerFields, MalformedAnswerError
from gradellm_gateway.upstream.caller import Caller
from gradellm_gateway.upstream.connection import UpstreamError, UpstreamResponse
from gradellm_gateway.upstream.followed_prompt import FollowedPrompt
from gradellm_gateway.upstream.followed_request import FollowedRequest
from gradellm_gateway.upstream.following import ChoiceFollower, Incomplete, Said
from gradellm_gateway.upstream.headers import response_headers
from gradellm_gateway.upstream.provenance import UpstreamProvenance
from gradellm_gateway.upstream.sse import DONE, EventSplitter, ServerSentEvent, event_bytes

__all__ = ["MAX_ANSWER_BYTES", "FollowSettings", "FollowedAnswer", "Followers"]

MAX_ANSWER_BYTES = 32 << 20
"""Of an answer that is not streamed; larger ones are passed on without an explanation."""
_MAX_INLINE_BYTES = 1 << 20  # of JSON that is parsed without a thread of its own
_HEAD = ("id", "object", "created", "model")
_MAX_QUEUED = 16  # events for a caller who reads more slowly than they come; each has at most 8 MiB


@dataclass(frozen=True)
class FollowSettings:
    """How answers of the upstream are explained.

    Attributes:
        dtype: the numbers that the upstream computes with, as it was declared.
        wait_seconds: how long the end of an answer waits for its last rows.
    """

    dtype: UpstreamDtype = "bfloat16"
    wait_seconds: float = 30.0


@dataclass(frozen=True)
class Followers:
    """What the followers of an answer's choices have in common.

    Attributes:
        request: the caller's.
        fields: that are asked for beside its own.
        explainer: the client of the server that explains.
        provenance: of the upstream.
        settings: how answers are explained.
    """

    request: FollowedRequest
    fields: AnswerFields
    explainer: AsyncClient
    provenance: UpstreamProvenance
    settings: FollowSettings


class FollowedAnswer:
    """One answer of the upstream on its way to the caller."""

    def __init__(self, caller: Caller, common: Followers) -> None:
        self._caller, self._common = caller, common
        self._fields = common.fields
        self._prompt = FollowedPrompt(common.request, common.explainer)
        self._choices: dict[int, ChoiceFollower] = {}
        self._incomplete: Incomplete | None = None  # of all choices, also those to come
        self._head: dict[str, Any] = {}
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_QUEUED)
        self._said: dict[int, list[Said]] = {}  # of an answer that is not streamed
        self._sayer = self._send_said if common.request.is_streamed else self._collect_said
        self._has_ended = False

    async def pass_on(self, response: UpstreamResponse) -> None:
        """Send the answer, and its explanation, to the caller. Raises UpstreamError where it breaks off."""
        try:
            if self._common.request.is_streamed:
                await self._pass_stream(response)
            else:
                await self._pass_whole(response)
        finally:
            self._prompt.close()
            for follower in self._choices.values():
                await follower.close()

    # --- what is read ----------------------------------------------------------------------------------------------

    def _take(self, answer: dict[str, Any]) -> None:
        """Take the tokens of a chunk or an answer. Raises MalformedAnswerError."""
        prompt_ids = self._fields.prompt_ids(answer)
        if prompt_ids is not None:
            self._prompt.set_ids(prompt_ids)
        for tokens in self._fields.choices(answer):
            self._choice(tokens.index).add(tokens)

    def _choice(self, index: int) -> ChoiceFollower:
        if index not in self._choices:
            common = self._common
            say = partial(self._sayer, index)
            follower = ChoiceFollower(common.request, common.explainer, self._prompt, common.provenance, say)
            if self._incomplete is not None:
                follower.stop(self._incomplete)
            self._choices[index] = follower
            self._said[index] = []
        return self._choices[index]

    def _stop(self, code: str, message: str) -> None:
        """Explain no more of the answer, which goes on."""
        self._incomplete = self._incomplete or Incomplete(code, message)
        for follower in self._choices.values():
            follower.stop(self._incomplete)

    async def _end(self) -> None:
        """Wait for the last rows of all choices."""
        if self._has_ended:
            return
        self._has_ended = True
        if self._incomplete is not None:
            self._choice(0)  # which says it, if there is no other
        for follower in self._choices.values():
            follower.end()
        deadline = asyncio.get_running_loop().time() + self._common.settings.wait_seconds
        for follower in self._choices.values():
            await follower.wait(deadline)

    # --- streamed --------------------------------------------------------------------------------------------------

    async def _pass_stream(self, response: UpstreamResponse) -> None:
        headers = response_headers(response.headers, is_changed=True)
        await self._caller.begin(response.status, [*headers, (b"x-accel-buffering", b"no")])
        reading = asyncio.ensure_future(self._read_stream(response.body()))
        try:
            while (data := await self._outbox.get()) is not None:
                await self._caller.write(data)
            await reading
        finally:
            reading.cancel()
            await asyncio.wait({reading})
        await self._caller.end()

    async def _read_stream(self, body: AsyncIterator[bytes]) -> None:
        splitter = EventSplitter()
        try:
            async for data in body:
                for event in splitter.add(data):
                    await self._on_event(event)
            if splitter.has_rest:
                self._stop("upstream_broke_off", "the upstream's stream ended within an event")
            await self._end()
            await self._outbox.put(None)
        except UpstreamError as error:
            await self._outbox.put(event_bytes(error_object(str(error), "server_error", code=error.code)))
            await self._outbox.put(None)
            raise
        except Exception:
            await self._outbox.put(None)
            raise

    async def _on_event(self, event: ServerSentEvent) -> None:
        data = event.data
        if data == DONE:
            await self._end()
            await self._outbox.put(event.raw)
            return
        if not event.is_whole:
            self._stop("upstream_malformed", "the upstream sent an event of more than 8 MiB")
        passed: bytes | None = event.raw
        if data:
            try:
                passed = self._read_chunk(event.raw, data)
            except MalformedAnswerError as error:
                self._stop("upstream_malformed", f"a chunk of the upstream {error}")
        if passed is not None:
            await self._outbox.put(passed)

    def _read_chunk(self, raw: bytes, data: bytes) -> bytes | None:
        """Return what is passed on of a chunk; None for nothing. Raises MalformedAnswerError."""
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise MalformedAnswerError("is no JSON") from error
        if not isinstance(chunk, dict):
            raise MalformedAnswerError("is no object")
        if chunk.get("error"):
            self._stop("upstream_error", "the upstream ended its answer with an error")
            return raw
        stripped = self._fields.stripped(chunk)
        self._head = self._head or {name: chunk[name] for name in _HEAD if name in chunk}
        try:
            self._take(chunk)
        except MalformedAnswerError as error:
            self._stop("upstream_malformed", f"a chunk of the upstream {error}")
        if stripped is None:
            return None
        return raw if stripped == chunk else event_bytes(stripped)

    async def _send_said(self, index: int, said: Said) -> None:
        for chunk in self._chunks(index, said):
            await self._outbox.put(event_bytes(chunk))

    def _chunks(self, index: int, said: Said) -> list[dict[str, Any]]:
        """Return the chunks for what was said of a choice."""
        annotations = self._annotations(self._choices[index], said)
        sources = self._common.request.documents.sources(said.citations)
        chunks = [self._chunk(index, {}) | source_event(source) for source in sources]
        chunks.append(
            self._chunk(index, {"annotations": annotations} if annotations else {}) | {"gradellm": said.gradellm}
        )
        return chunks

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._head, "choices": [choice]}

    def _annotations(self, follower: ChoiceFollower, said: Said) -> list[dict[str, Any]]:
        offset = follower.content_offset if said.citations else None
        if offset is None:
            return []
        return self._common.request.documents.annotations(said.citations, offset, len(follower.content))

    # --- not streamed ------------------------------------------------------------------------------------------------

    async def _pass_whole(self, response: UpstreamResponse) -> None:
        body = bytearray()
        chunks = response.body()
        async for data in chunks:
            body += data
            if len(body) > MAX_ANSWER_BYTES:
                await self._pass_unread(response, bytes(body), chunks, "the answer is larger than 32 MiB")
                return
        try:
            answer = json.loads(body) if len(body) < _MAX_INLINE_BYTES else await run_in_threadpool(json.loads, body)
            if not isinstance(answer, dict):
                raise MalformedAnswerError("is no object")
            self._take(answer)
        except (ValueError, RecursionError, MalformedAnswerError) as error:
            why = str(error) if isinstance(error, MalformedAnswerError) else "is no JSON"
            await self._pass_unread(response, bytes(body), chunks, f"the answer of the upstream {why}")
            return
        await self._end()
        explained = self._fields.stripped(answer) or {}
        for choice in explained.get("choices", ()):
            place = explained if len(self._choices) == 1 else choice
            place |= self._explanation(choice.get("index", 0), choice)
        headers = response_headers(response.headers, is_changed=True)
        await self._caller.answer(response.status, headers, json.dumps(explained, separators=(",", ":")).encode())

    async def _pass_unread(self, response: UpstreamResponse, read: bytes, rest: AsyncIterator[bytes], why: str) -> None:
        """Send an answer on as it is, with a header that says why it is not explained."""
        headers = response_headers(response.headers)
        await self._caller.begin(response.status, [*headers, (b"gradellm-incomplete", why.encode())])
        await self._caller.write(read)
        async for data in rest:
            await self._caller.write(data)
        await self._caller.end()

    async def _collect_said(self, index: int, said: Said) -> None:
        self._said[index].append(said)

    def _explanation(self, index: int, choice: dict[str, Any]) -> dict[str, Any]:
        """Return what an answer has beside the upstream's: the explanation of a choice, and what lacks of it."""
        collector = Collector()
        made: dict[str, Any] = {"gradellm": None}
        for said in self._said[index]:
            event = said.event
            if event is not None and any((event.started, event.token, event.attribution, event.finished)):
                collector.add(event)
            made |= {
                f"gradellm_{name}": said.gradellm[name] for name in ("upstream", "incomplete") if name in said.gradellm
            }
            if "citations" in said.gradellm:
                made["gradellm_citations"] = said.citations
                made["sources"] = self._common.request.documents.sources(said.citations)
                choice["message"] = {**choice["message"], "annotations": self._annotations(self._choices[index], said)}
        if any(said.event is not None for said in self._said[index]):
            made["gradellm"] = json.loads(collector.explanation().to_json())
        return made
