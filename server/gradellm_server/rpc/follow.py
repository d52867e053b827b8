"""The requests of a call of Follow: read one by one, checked, and passed to the job that explains them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from google.protobuf.message import Message

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine, InvalidRequestError
from gradellm_server.engine_loop.errors import FollowIdleError
from gradellm_server.engine_loop.job import Job
from gradellm_server.observability.call_stats import CallStats
from gradellm_server.rpc.follow_from_wire import read_appended
from gradellm_server.rpc.requests_from_wire import parse

DEFAULT_FLUSH_SECONDS = 0.25
MAX_FLUSH_SECONDS = 60.0
MAX_PENDING_TOKENS = 1024  # sent and not explained; no more are read then, and HTTP/2 holds the client back


class FollowRequests:
    """The stream of one call's requests, on the event loop.

    Args:
        requests: the messages as bytes.
        engine: what explains them, with its limits.
        idle_seconds: how long nothing may be sent.
        stats: the call's, which count tokens as they arrive.
    """

    def __init__(self, requests: AsyncIterator[bytes], engine: Engine, idle_seconds: float, stats: CallStats) -> None:
        self._requests, self._engine, self._idle_seconds, self._stats = requests, engine, idle_seconds, stats
        self._num_sent = self._num_explained = 0
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def start(self) -> tuple[pb.FollowStart, int]:
        """The first message, and its size in bytes.

        Raises:
            InvalidRequestError: if it is another one, or there is none.
            FollowIdleError: if it does not come.
        """
        payload = await self._next()
        if payload is None:
            raise InvalidRequestError("start", "there is none: the first message must be start")
        request = parse(pb.FollowRequest, payload)
        if (kind := request.WhichOneof("request")) != "start":
            raise InvalidRequestError(
                "start", f"is missing: the first message was {kind or 'empty'}, and must be start"
            )
        return request.start, len(payload)

    async def feed(self, job: Job[Message]) -> None:
        """Pass tokens on to a job until the last message, or the end of the stream; an error ends the job."""
        try:
            while (payload := await self._next()) is not None and self._take(job, payload):
                await self._has_room.wait()
            job.finish()
        except Exception as error:
            job.responses.end(error)
            job.cancel()

    def on_response(self, response: Message) -> None:
        """After a message that was sent: another token may be explained."""
        if isinstance(response, pb.FollowResponse) and response.HasField("token"):
            self._num_explained += 1
            self._note_room()

    def _take(self, job: Job[Message], payload: bytes) -> bool:
        """Pass on a message; whether more may come."""
        request = parse(pb.FollowRequest, payload)
        match request.WhichOneof("request"):
            case "append":
                ids, logprobs = read_appended(request.append, self._engine.info.vocab_size, self._engine.max_new_tokens)
                self._num_sent += len(ids)
                self._note_room()
                self._stats.on_appended(len(ids), time.monotonic())
                job.append(ids, logprobs)
            case "start":
                raise InvalidRequestError("start", "comes twice: a call follows one completion")
            case "finish":
                return False
            case _:
                raise InvalidRequestError(
                    "request", "has neither append nor finish; is the client newer than the server?"
                )
        return True

    def _note_room(self) -> None:
        if self._num_sent - self._num_explained < MAX_PENDING_TOKENS:
            self._has_room.set()
        else:
            self._has_room.clear()

    async def _next(self) -> bytes | None:
        """The next message; None at the end."""
        try:
            async with asyncio.timeout(self._idle_seconds):
                return await anext(self._requests, None)
        except TimeoutError:
            raise FollowIdleError(self._idle_seconds) from None


def flush_seconds(start: pb.FollowStart) -> float:
    """Seconds after which fewer tokens than a chunk are explained.

    Raises:
        InvalidRequestError: if they are out of range.
    """
    seconds = start.flush_seconds if start.HasField("flush_seconds") else DEFAULT_FLUSH_SECONDS
    if not 0 <= seconds <= MAX_FLUSH_SECONDS:
        raise InvalidRequestError("start.flush_seconds", f"must be 0 to {MAX_FLUSH_SECONDS:g}, was {seconds:g}")
    return seconds
