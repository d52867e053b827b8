"""The gateway's routes in front of an upstream: chats with a `gradellm` object are explained, all else is passed on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.types import Receive, Scope, Send

from gradellm import AsyncClient, GradellmError, PermissionDeniedError, UnauthenticatedError, UnavailableError
from gradellm_gateway.errors import RequestTooLargeError, body_of, headers_of, status_of
from gradellm_gateway.request_body import MAX_BODY_BYTES
from gradellm_gateway.upstream.answer_fields import AnswerFields
from gradellm_gateway.upstream.caller import Caller
from gradellm_gateway.upstream.comparison import ModelComparison
from gradellm_gateway.upstream.connection import Upstream, UpstreamError, UpstreamResponse
from gradellm_gateway.upstream.followed_answer import FollowedAnswer, Followers, FollowSettings
from gradellm_gateway.upstream.followed_request import FollowedRequest
from gradellm_gateway.upstream.headers import call_metadata, request_headers
from gradellm_gateway.upstream.passing import PassingRoute, pass_answer, pass_request, path_below
from gradellm_gateway.upstream.provenance import UpstreamProvenance

__all__ = ["UpstreamRoutes"]


class UpstreamRoutes:
    """What the upstream adds to the app.

    Args:
        upstream: the server that generates.
        explainer: the client of the server that explains, with the gateway's own token.
        settings: how answers are explained.
        on_other_model: is called with a message if the upstream has another model than the explainer.
    """

    def __init__(
        self,
        upstream: Upstream,
        explainer: AsyncClient,
        settings: FollowSettings,
        on_other_model: Callable[[str], object],
    ) -> None:
        self._upstream, self._explainer, self._settings = upstream, explainer, settings
        self._comparison = ModelComparison(upstream, explainer, on_other_model)
        self.passing = PassingRoute(upstream)
        self.chat = _ChatRoute(self)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compare the models beside everything else; close the connections at the end."""
        comparing = asyncio.ensure_future(self._comparison.run())
        try:
            yield
        finally:
            comparing.cancel()
            with suppress(asyncio.CancelledError):
                await comparing
            await self._upstream.close()

    async def authorize(self, headers: Mapping[str, str]) -> None:
        """Check with the upstream that a caller of the gateway's own routes may call: they use the gateway's own token.

        Raises UnauthenticatedError, PermissionDeniedError or UnavailableError.
        """
        authorization = headers.get("authorization", "")
        sent = [(b"authorization", authorization.encode("latin-1"))] if authorization else []
        try:
            status, _ = await self._upstream.call("GET", "/models", headers=sent)
        except UpstreamError as error:
            raise UnavailableError(str(error)) from error
        if status == 401:
            raise UnauthenticatedError("the upstream does not accept this key")
        if status == 403:
            raise PermissionDeniedError("the upstream does not allow this caller")

    async def health(self) -> dict[str, Any]:
        """Return the state of upstream and explainer. Raises UnavailableError if the upstream does not answer."""
        try:
            await self._upstream.call("GET", "/models")
        except UpstreamError as error:
            raise UnavailableError(str(error)) from error
        return {"status": "ok", "explains": self._comparison.found is not None}

    def about(self) -> dict[str, Any]:
        """Return what is known of the upstream, for JSON."""
        found = self._comparison.found
        if found is None:
            return {"model": None, "waits_for": self._comparison.missing}
        return {
            "model": found.model,
            "tokenizer": found.tokenizer,
            "template": found.template,
            "tells_ids": found.tells_ids,
            "dtype": self._settings.dtype,
        }

    async def explain(self, caller: Caller, body: Mapping[str, Any]) -> None:
        """Pass a chat on with its explanation. Raises UpstreamError, and InvalidRequestError for its `gradellm`."""
        request = FollowedRequest.from_json(body)
        found = self._comparison.found
        if found is None:
            waiting = UnavailableError(f"chats are not explained yet: {self._comparison.missing}")
            waiting.retry_after_seconds = 2.0
            raise waiting
        fields = AnswerFields(body, asks_for_ids=found.tells_ids, asks_for_top=found.tells_top)
        provenance = UpstreamProvenance(self._settings.dtype, found.tokenizer)
        passed = call_metadata(caller.headers)
        explainer = self._explainer.with_metadata(passed) if passed else self._explainer
        content = json.dumps(fields.request()).encode()
        headers = request_headers(caller.headers, self._upstream.host, length=len(content))
        target = path_below(caller) or b""
        async with self._upstream.send(caller.method, target, headers, content) as response:
            if _is_explainable(response, request):
                common = Followers(request, fields, explainer, provenance, self._settings)
                await FollowedAnswer(caller, common).pass_on(response)
            else:
                await pass_answer(caller, response)

    async def answer_chat(self, caller: Caller) -> None:
        """Answer a chat completion request."""
        body = await _explained_body(caller)
        if body is None:
            await pass_request(caller, self._upstream)
            return
        await self.explain(caller, body)


class _ChatRoute:
    """The endpoint of chat completions."""

    def __init__(self, routes: UpstreamRoutes) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = Caller(scope, receive, send)
        await caller.run(self._answer(caller))

    async def _answer(self, caller: Caller) -> None:
        try:
            await self._routes.answer_chat(caller)
        except GradellmError as error:
            headers = [(name.lower().encode(), value.encode()) for name, value in headers_of(error).items()]
            await caller.answer_json(status_of(error), body_of(error), headers)


async def _explained_body(caller: Caller) -> Mapping[str, Any] | None:
    """Return a request with a `gradellm` object; None for one that is passed on as it is, also for no JSON.

    Raises RequestTooLargeError for a large one.
    """
    if caller.header(b"content-type").partition(";")[0].strip().lower() != "application/json":
        return None
    read = await caller.read(MAX_BODY_BYTES)
    if b'"gradellm"' not in read:
        return None
    if len(read) > MAX_BODY_BYTES:
        raise RequestTooLargeError(
            f"a request with gradellm is larger than {MAX_BODY_BYTES:,} bytes, which is the limit; without it any size "
            "is passed on"
        )
    try:
        body = json.loads(read)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, Mapping) and body.get("gradellm") is not None else None


def _is_explainable(response: UpstreamResponse, request: FollowedRequest) -> bool:
    """Whether an answer can be read: no error, of the expected kind, and not compressed."""
    kind = "text/event-stream" if request.is_streamed else "application/json"
    is_plain = response.header(b"content-encoding") in ("", "identity")
    return response.status == 200 and is_plain and response.header(b"content-type").startswith(kind)
