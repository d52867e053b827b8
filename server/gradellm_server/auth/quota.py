"""Quotas of one client: concurrent streams, and tokens in any 60 seconds (a sliding window).

Tokens are charged before they are computed. When a request has been read, it reserves the most that it can use: the
prompt's tokens and `max_new_tokens`. At its end it gives back every token that the model neither read nor chose,
whether or not the client took the responses. Requests admitted in any 60 seconds therefore reserve at most the limit,
however many arrive at once. A request that is refused, or cancelled before it runs, is charged nothing. Tokenize is
charged for the tokens that it counts.

The methods of Attribute and Evaluate run several passes over the same tokens, which are charged once. To exclude their
cost, leave these RPCs out of a client's `methods`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, Protocol, TypeVar

from gradellm_server.auth.tokens import Client

WINDOW_SECONDS = 60.0
STREAM_RETRY_SECONDS = 1.0  # when another stream of the client ends cannot be estimated


class QuotaError(Exception):
    """A client has reached a limit.

    Attributes:
        retry_seconds: until there is room; None if a retry fails as well.
    """

    def __init__(self, message: str, retry_seconds: float | None) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class TooManyStreamsError(QuotaError):
    """The client's limit of concurrent streams is reached."""


class TooManyTokensError(QuotaError):
    """The client has fewer tokens left in this window than the request may use."""


class _Charge:
    """Tokens that were charged to a client at one moment."""

    def __init__(self, at: float, count: int) -> None:
        self.at, self.count = at, count


class Quota:
    """The use of one client; safe to use from any thread. `now` is a monotonic clock in seconds."""

    def __init__(self, client: Client, now: Callable[[], float] = time.monotonic) -> None:
        self.client = client  # replaced when the file of tokens changes
        self._now = now
        self._lock = threading.Lock()
        self._num_streams = 0
        self._charges: deque[_Charge] = deque()  # within the window, oldest first
        self._num_charged = 0

    @property
    def num_streams(self) -> int:
        """Streams that run."""
        return self._num_streams

    def open_stream(self) -> None:
        """Count a stream; `close_stream` must be called once for each.

        Raises:
            TooManyStreamsError: at the limit.
        """
        with self._lock:
            limit = self.client.max_concurrent_streams
            if limit is not None and self._num_streams >= limit:
                raise TooManyStreamsError(
                    f"{self.client.name} has {self._num_streams} concurrent streams; the limit is {limit}",
                    STREAM_RETRY_SECONDS,
                )
            self._num_streams += 1

    def close_stream(self) -> None:
        """Count a stream's end."""
        with self._lock:
            self._num_streams -= 1

    def check(self) -> None:
        """Check that a token is left, before a request is read.

        Raises:
            TooManyTokensError: if none is.
        """
        with self._lock:
            now = self._now()
            self._forget_before(now - WINDOW_SECONDS)
            limit = self.client.tokens_per_minute
            if limit is not None and self._num_charged + 1 > limit:
                raise self._refusal(1, limit, now)

    def charge(self, count: int) -> _Charge:
        """Charge tokens.

        Raises:
            TooManyTokensError: if fewer are left in the window.
        """
        with self._lock:
            now = self._now()
            self._forget_before(now - WINDOW_SECONDS)
            limit = self.client.tokens_per_minute
            if limit is not None and self._num_charged + count > limit:
                raise self._refusal(count, limit, now)
            charge = _Charge(now, count)
            self._charges.append(charge)
            self._num_charged += count
            return charge

    def settle(self, charge: _Charge, used: int) -> None:
        """Return the tokens that a request did not use."""
        with self._lock:
            self._forget_before(self._now() - WINDOW_SECONDS)
            unused = max(0, charge.count - used)
            charge.count -= unused
            if self._charges and self._charges[0].at <= charge.at:  # else the charge has left the window
                self._num_charged -= unused

    def _refusal(self, count: int, limit: int, now: float) -> TooManyTokensError:
        need = (
            f"the request may take {count} tokens, prompt and max_new_tokens together"
            if count > 1
            else "the request takes tokens"
        )
        allowance = f"{self.client.name} may take {limit} a minute"
        if count > limit:
            return TooManyTokensError(f"{need}; {allowance}: ask for fewer", None)
        left = self._num_charged
        for charge in self._charges:
            left -= charge.count
            if left + count <= limit:
                break
        return TooManyTokensError(
            f"{need}; {allowance}, of which {max(0, limit - self._num_charged)} are left now",
            max(0.001, charge.at + WINDOW_SECONDS - now),
        )

    def _forget_before(self, at: float) -> None:
        while self._charges and self._charges[0].at <= at:
            self._num_charged -= self._charges.popleft().count


class MeteredRequest(Protocol):
    """The engine's request: tokens that it may use, those that it has, and whether it has run."""

    max_num_tokens: int
    ids: list[int]
    has_run: bool


P = ParamSpec("P")
ReadRequest = TypeVar("ReadRequest", bound=MeteredRequest)
Response = TypeVar("Response")


class QuotaReservation:
    """The tokens that one request reserves of its client's quota; none if the server needs no tokens."""

    def __init__(self, quota: Quota | None) -> None:
        self._quota = quota
        self._lock = threading.Lock()
        self._request: MeteredRequest | None = None
        self._charge: _Charge | None = None
        self._is_settled = False

    def reserving(self, read: Callable[P, ReadRequest]) -> Callable[P, ReadRequest]:
        """Wrap `read`, so that the request that it returns reserves its tokens.

        The wrapper raises TooManyTokensError if the client has fewer left; the request never runs then.
        """
        if self._quota is None:
            return read

        def reserve(*args: P.args, **keywords: P.kwargs) -> ReadRequest:
            request = read(*args, **keywords)
            self._reserve(request)
            return request

        return reserve

    def charging(self, answer: Callable[P, Response], count: Callable[[Response], int]) -> Callable[P, Response]:
        """Wrap `answer`, so that the tokens that `count` finds in its response are charged.

        The wrapper raises TooManyTokensError if the client has fewer left.
        """
        if self._quota is None:
            return answer
        quota = self._quota

        def charge(*args: P.args, **keywords: P.kwargs) -> Response:
            response = answer(*args, **keywords)
            quota.charge(count(response))
            return response

        return charge

    def check(self) -> None:
        """Check that the client has a token left, before its request is read.

        Raises:
            TooManyTokensError: if it has not.
        """
        if self._quota is not None:
            self._quota.check()

    def settle(self) -> None:
        """End the request: return the tokens that it did not use, and all of them if it never ran."""
        with self._lock:
            self._is_settled = True
            if self._quota is not None and self._charge is not None and self._request is not None:
                self._quota.settle(self._charge, len(self._request.ids) if self._request.has_run else 0)
                self._charge = self._request = None

    def _reserve(self, request: MeteredRequest) -> None:
        with self._lock:  # the call may be cancelled, and settled, while its request is read
            if self._quota is not None and not self._is_settled:
                self._charge, self._request = self._quota.charge(request.max_num_tokens), request


class Quotas:
    """The quotas of all clients, by name; use is kept when the file of tokens changes."""

    def __init__(self) -> None:
        self._quotas: dict[str, Quota] = {}

    def of(self, client: Client) -> Quota:
        """A client's quota, with its present limits."""
        quota = self._quotas.setdefault(client.name, Quota(client))
        quota.client = client
        return quota


# The caller's quota, set by the auth interceptor (which runs in the call's task); None if the server needs no tokens.
current_quota: ContextVar[Quota | None] = ContextVar("gradellm_quota", default=None)
