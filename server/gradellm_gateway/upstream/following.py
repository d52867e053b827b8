"""Explains one choice of an answer of the upstream, while its tokens come or once its text is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from gradellm import (
    AsyncClient,
    DeadlineExceededError,
    Event,
    GradellmError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from gradellm.following.asynchronous import AsyncFollowing
from gradellm_gateway.event_objects import EventObjects
from gradellm_gateway.upstream.answer_fields import ChoiceTokens
from gradellm_gateway.upstream.followed_prompt import FollowedPrompt
from gradellm_gateway.upstream.followed_request import FollowedRequest
from gradellm_gateway.upstream.provenance import UpstreamProvenance

__all__ = ["ChoiceFollower", "Incomplete", "Said"]

_log = logging.getLogger("uvicorn.error")
_CODES: tuple[tuple[type[GradellmError], str], ...] = (
    (InvalidRequestError, "refused"),
    (OverloadedError, "explainer_full"),
    (DeadlineExceededError, "explainer_timeout"),
    (UnavailableError, "explainer_unavailable"),
    (UnauthenticatedError, "explainer_denied"),
    (PermissionDeniedError, "explainer_denied"),
)
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Said:
    """What is said of a choice beside its tokens.

    Attributes:
        event: of the explainer; None for one that says what lacks.
        gradellm: the object of a chunk.
        citations: of the answer, in its last event.
    """

    event: Event | None
    gradellm: dict[str, Any]
    citations: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Incomplete:
    """Why a choice was not explained, or not all of it.

    Attributes:
        code: for programs.
        message: for people.
    """

    code: str
    message: str


class ChoiceFollower:
    """Takes the tokens of one choice, and hands on what the explainer says of them. Taking them never waits.

    Args:
        request: the caller's.
        explainer: the client of the server that explains.
        prompt: of the answer.
        provenance: of the upstream, for what is said.
        say: is called with everything that is said, in order.
    """

    def __init__(
        self,
        request: FollowedRequest,
        explainer: AsyncClient,
        prompt: FollowedPrompt,
        provenance: UpstreamProvenance,
        say: Callable[[Said], Awaitable[None]],
    ) -> None:
        self._request, self._explainer, self._prompt, self._say = request, explainer, prompt, say
        self._provenance = provenance
        self._objects = EventObjects(request.extras)
        self._pending: list[ChoiceTokens] = []
        self._has_more = asyncio.Event()  # tokens to send, or the end
        self._has_ended = False
        self._content: list[str] = []  # of the upstream, as is the next
        self._reasoning: list[str] = []
        self._text: list[str] = []  # of the explainer's tokens
        self._first_start = 0  # of these
        self._num_tokens = self._num_rows = 0
        self._is_finished = False  # the explainer has said everything
        self._incomplete: Incomplete | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def content(self) -> str:
        """The message's content so far, as the upstream sent it."""
        return "".join(self._content)

    @property
    def content_offset(self) -> int | None:
        """Where the content begins in the explainer's text, which may have reasoning before it; None if nowhere."""
        found = "".join(self._text).find(self.content)
        return None if found < 0 else self._first_start + found

    def add(self, tokens: ChoiceTokens) -> None:
        """Take tokens of the choice."""
        has_text = bool(tokens.content or tokens.reasoning)
        had_text = bool(self._content or self._reasoning)
        self._content += [tokens.content] if tokens.content else []
        self._reasoning += [tokens.reasoning] if tokens.reasoning else []
        num_before = self._num_tokens
        self._num_tokens += len(tokens.ids or ())
        if self._incomplete is not None:
            return
        if tokens.ids:
            if had_text and num_before == 0:
                self.stop(Incomplete("ids_missing", "the upstream told no ids of the first tokens"))
                return
            self._pending.append(tokens)
            self._has_more.set()
            self._start(self._follow)
        elif has_text and self._num_tokens:
            self.stop(Incomplete("ids_missing", f"the upstream told no ids after {self._num_tokens} tokens"))

    def end(self) -> None:
        """Say that the answer is complete. An answer without ids is tokenised again now."""
        self._has_ended = True
        self._has_more.set()
        if self._incomplete is None and self._task is None:
            if self._content or self._reasoning or self._request.plain_messages is None:
                self._start(self._tokenise_again)
            else:
                self._is_finished = True  # there is nothing to explain

    def stop(self, reason: Incomplete) -> None:
        """Explain no more of the choice. The first reason counts."""
        self._incomplete = self._incomplete or reason
        if self._task is not None:
            self._task.cancel()

    async def wait(self, deadline: float) -> None:
        """Wait until everything was said, or for the event loop's time `deadline`; then say what lacks, if anything."""
        loop = asyncio.get_running_loop()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=max(0.0, deadline - loop.time()))
            if not self._task.done():
                message = "the explainer has not said everything within the wait for it, --explain-wait"
                self.stop(Incomplete("timeout", message))
            await self.close()
        self._incomplete = self._incomplete or self._check()
        if self._incomplete is not None:
            lacks = self._lacks(self._incomplete)
            await self._say(Said(None, {"incomplete": lacks, "upstream": self._provenance.to_dict()}))

    async def close(self) -> None:
        """Cancel the explainer's call, if it has not ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    # --- the explainer's call ------------------------------------------------------------------------------------

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        if self._task is None:
            self._task = asyncio.ensure_future(self._unless_it_fails(work))

    async def _unless_it_fails(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except GradellmError as error:
            code = next((code for kind, code in _CODES if isinstance(error, kind)), "explainer_failed")
            self._incomplete = self._incomplete or Incomplete(code, f"the explainer: {error}")
        except Exception:
            _log.exception("Explaining an answer of the upstream failed; the answer goes on")
            self._incomplete = self._incomplete or Incomplete("gateway_failed", "the gateway failed; see its log")

    async def _follow(self) -> None:
        """Explain the tokens as they come."""
        prompt = await self._prompt.keywords()
        self._provenance = replace(self._provenance, template=self._prompt.template)
        keywords = {**self._request.keywords, **prompt, "upstream_dtype": self._provenance.dtype}
        async with self._explainer.follow(**keywords) as following:
            sending = asyncio.ensure_future(self._send(following))
            try:
                await self._hand_on(aiter(following))
            finally:
                sending.cancel()
                with suppress(asyncio.CancelledError, GradellmError):  # the call's error is raised above
                    await sending

    async def _send(self, following: AsyncFollowing) -> None:
        while True:
            await self._has_more.wait()
            self._has_more.clear()
            pending, self._pending = self._pending, []
            for tokens in pending:
                logprobs = (tokens.logprobs, tokens.top_logprobs) if self._request.has_free_logprobs else ()
                await following.append(tokens.ids or (), *logprobs)
            if self._has_ended and not self._pending:
                await following.finish()
                return

    async def _tokenise_again(self) -> None:
        """Explain an answer whose tokens are not known, by its text."""
        if self._request.plain_messages is None or self._reasoning:
            what = "the prompt of this request" if self._request.plain_messages is None else "what the model reasoned"
            message = f"the upstream tells no token ids, and {what} cannot be made again without them"
            self._incomplete = Incomplete("ids_missing", message)
            return
        self._provenance = self._provenance.tokenised_again()
        keywords = {**self._request.keywords, "messages": self._request.plain_messages, "completion": self.content}
        if self._request.segments:
            keywords["segments"] = self._request.segments
        events = self._explainer.attribute_events(**keywords)
        async with aclosing(events):
            await self._hand_on(events)

    async def _hand_on(self, events: AsyncIterator[Event]) -> None:
        async for event in events:
            if event.token is not None:
                self._first_start = self._first_start if self._text else event.token.start
                self._text.append(event.token.text)
            self._num_rows += event.attribution is not None
            self._provenance = self._provenance.after(event)
            said = self._objects.of(event)
            if event.started is not None or event.finished is not None:
                said["upstream"] = self._provenance.to_dict()
            citations = said.get("citations") or []
            self._is_finished = self._is_finished or event.finished is not None
            await self._say(Said(event, said, citations))

    # --- what lacks ------------------------------------------------------------------------------------------------

    def _check(self) -> Incomplete | None:
        """Return what is wrong with an explanation that has come to its end."""
        if not self._is_finished:
            return Incomplete("explainer_failed", "the explainer's call ended early")
        text = "".join(self._text)
        for sent in (self.content, "".join(self._reasoning)):
            if REPLACEMENT not in sent and sent.strip() not in text:
                message = "the upstream's token ids are another text than it sent; the rows are those of the ids"
                return Incomplete("other_text", message)
        return None

    def _lacks(self, reason: Incomplete) -> dict[str, Any]:
        return {
            "code": reason.code,
            "message": reason.message,
            "tokens": max(self._num_tokens, len(self._text)),
            "explained_tokens": self._num_rows,
        }
