"""HTTP to the upstream: pooled connections, timeouts, and its failures as errors with a status."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from gradellm import InvalidRequestError
from gradellm_gateway.upstream.headers import Headers

__all__ = ["Timeouts", "Upstream", "UpstreamError", "UpstreamResponse"]

_CONNECTIONS = 1024  # at once; the gateway limits its own callers' connections
_KEEP_ALIVE_SECONDS = 2.0  # less than what servers close idle connections after: uvicorn after 5 s
_OWN_SECONDS = 30.0  # that an answer to a request of the gateway's own may take to begin
_MAX_JSON_BYTES = 8 << 20


@dataclass(frozen=True)
class Timeouts:
    """Timeouts of a request to the upstream, in seconds.

    Attributes:
        connect: for a connection.
        idle: for the next bytes of an answer, also the first, and for the upstream to take bytes of a request.
    """

    connect: float = 5.0
    idle: float = 600.0


class UpstreamError(Exception):
    """The upstream could not be reached, or its answer broke off.

    Attributes:
        status: the HTTP status for a caller to whom no answer has begun.
        code: of OpenAI's error object.
    """

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class UpstreamResponse:
    """An answer of the upstream, whose body is still to be read.

    Attributes:
        status: its HTTP status.
        headers: as the upstream sent them.
    """

    def __init__(self, response: httpx2.Response, address: str) -> None:
        self._response, self._address = response, address
        self.status: int = response.status_code
        self.headers: Headers = list(response.headers.raw)

    def header(self, name: bytes) -> str:
        """Return a header's first value in lower case; empty if it is absent."""
        values = (value for key, value in self.headers if key.lower() == name)
        return next(values, b"").decode("latin-1").lower()

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes, in its content encoding. Raises UpstreamError where it breaks off."""
        stream: Any = self._response.stream
        with _failures(self._address):
            async for data in stream:
                yield data

    async def json(self) -> Any:  # noqa: ANN401 (any JSON value)
        """Read the whole body as JSON; None for a body that is not JSON, or larger than 8 MiB."""
        body = bytearray()
        async for data in self.body():
            body += data
            if len(body) > _MAX_JSON_BYTES:
                return None
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return None


class Upstream:
    """The server that the gateway is in front of.

    Args:
        url: the base of its OpenAI API, such as http://localhost:8000/v1.
        timeouts: of its requests.
        token: bearer token of the gateway's own requests, which compare tokenisations.

    Raises InvalidRequestError for a URL that is none.
    """

    def __init__(self, url: str, *, timeouts: Timeouts | None = None, token: str | None = None) -> None:
        try:
            self._url = httpx2.URL(url.rstrip("/"))
        except (httpx2.InvalidURL, ValueError) as error:
            raise InvalidRequestError.of("upstream", f"{url} is not a URL: {error}") from error
        if self._url.scheme not in ("http", "https") or not self._url.host or self._url.query or self._url.fragment:
            raise InvalidRequestError.of("upstream", "must be http://HOST:PORT/v1, or https")
        if self._url.userinfo:
            raise InvalidRequestError.of("upstream", "must have no user and password; callers send their own key")
        self._timeouts = timeouts or Timeouts()
        self._token = token
        self.address = str(self._url)
        self.host: bytes = self._url.netloc
        self._path: bytes = self._url.raw_path.rstrip(b"/")
        # No redirects, no cookies, and no proxy of the environment.
        self._transport = httpx2.AsyncHTTPTransport(
            trust_env=False,
            limits=httpx2.Limits(
                max_connections=_CONNECTIONS,
                max_keepalive_connections=_CONNECTIONS,
                keepalive_expiry=_KEEP_ALIVE_SECONDS,
            ),
        )

    @asynccontextmanager
    async def send(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        content: bytes | AsyncIterator[bytes] = b"",
        *,
        idle_seconds: float | None = None,
    ) -> AsyncIterator[UpstreamResponse]:
        """Send a request to a path below the base URL, with its query; leaving the context closes the answer.

        `idle_seconds` is by default that of the timeouts. Raises UpstreamError if no answer begins.
        """
        stream = httpx2.ByteStream(content) if isinstance(content, bytes) else _Body(content)
        connect, idle = self._timeouts.connect, idle_seconds or self._timeouts.idle
        timeout = {"connect": connect, "read": idle, "write": idle, "pool": connect}
        extensions = {"timeout": timeout, "target": self._path + target}
        request = httpx2.Request(method, self._url, headers=headers, stream=stream, extensions=extensions)
        with _failures(self.address):
            response = await self._transport.handle_async_request(request)
        try:
            yield UpstreamResponse(response, self.address)
        finally:
            await response.aclose()

    async def call(
        self, method: str, target: str, body: object = None, *, headers: Headers | None = None
    ) -> tuple[int, Any]:
        """Make a request of the gateway's own; the status and the JSON of the answer, None if it is none.

        `headers` are those of authorization, by default the gateway's own. Raises UpstreamError if there is no answer.
        """
        content = b"" if body is None else json.dumps(body).encode()
        sent = [(b"host", self.host), (b"accept", b"application/json"), (b"accept-encoding", b"identity")]
        if body is not None:
            sent += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
        if headers is None and self._token is not None:
            headers = [(b"authorization", b"Bearer " + self._token.encode())]
        sent += headers or []
        async with self.send(
            method, target.encode(), sent, content, idle_seconds=min(_OWN_SECONDS, self._timeouts.idle)
        ) as response:
            return response.status, await response.json()

    def beside(self) -> Upstream:
        """Return the upstream with the base URL without its last part, below which vLLM has /tokenize."""
        other = copy.copy(self)
        other._path = self._path.rpartition(b"/")[0]
        return other

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class _Body(httpx2.AsyncByteStream):
    """A request's body, streamed as its caller sends it."""

    def __init__(self, content: AsyncIterator[bytes]) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._content:
            yield data


@contextmanager
def _failures(address: str) -> Iterator[None]:
    """Raise UpstreamError for what the HTTP client raises."""
    try:
        yield
    except (httpx2.ConnectTimeout, httpx2.ConnectError, httpx2.PoolTimeout) as error:
        message = f"no upstream answers at {address}: {_reason(error)}"
        raise UpstreamError(message, 503, "upstream_unavailable") from error
    except httpx2.TimeoutException as error:
        raise UpstreamError(f"the upstream at {address} sent nothing for too long", 504, "upstream_timeout") from error
    except httpx2.TransportError as error:
        message = f"the upstream at {address} broke off its answer: {_reason(error)}"
        raise UpstreamError(message, 502, "upstream_broke_off") from error


def _reason(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:200] or type(error).__name__
