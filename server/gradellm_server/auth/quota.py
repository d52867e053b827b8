"""What one client takes of the server at a time and in a minute.

Tokens are charged before they are computed: when a request has been read, it takes all that it may come to (the
prompt's tokens and `max_new_tokens`), and what it did not use is given back when it ends: all that the model did not
read or choose, whether or not the client took any of it. In any 60 seconds requests are so admitted for at most the
limit, however many come at once. One that is refused, or leaves before it runs, is charged nothing. Tokenize is charged
for the tokens that it counts.

The methods of Attribute and Evaluate read tokens more than once; they count once all the same. Where that is too much
to give away, a client's `methods` leaves these calls out.
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
STREAM_RETRY_SECONDS = 1.0  # when another stream ends is not known


class QuotaError(Exception):
    """A client has taken all that it may take now.

    Attributes:
        retry_seconds: until there is room; None where a later try fails as well.
    """

    def __init__(self, message: str, retry_seconds: float | None) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class TooManyStreamsError(QuotaError):
    """As many streams of the client run as may."""


class TooManyTokensError(QuotaError):
    """The client's tokens of this minute are used up, or fewer than the request may take are left."""


class _Charge:
    """Tokens that one request has been charged."""

    def __init__(self, at: float, count: int) -> None:
        self.at, self.count = at, count


class Quota:
    """One client's use, from any thread. `now` is a clock in seconds that never goes back."""

    def __init__(self, client: Client, now: Callable[[], float] = time.monotonic) -> None:
        self.client = client  # replaced when the file says other limits
        self._now = now
        self._lock = threading.Lock()
        self._num_streams = 0
        self._charges: deque[_Charge] = deque()  # of the last minute, the oldest first
        self._num_charged = 0

    @property
    def num_streams(self) -> int:
        """Streams that run."""
        return self._num_streams

    def open_stream(self) -> None:
        """Count a stream; `close_stream` is called exactly once for each.

        Raises:
            TooManyStreamsError: where as many run as may.
        """
        with self._lock:
            limit = self.client.max_concurrent_streams
            if limit is not None and self._num_streams >= limit:
                raise TooManyStreamsError(
                    f"{self._num_streams} streams of {self.client.name} run; the limit is {limit} at a time",
                    STREAM_RETRY_SECONDS,
                )
            self._num_streams += 1

    def close_stream(self) -> None:
        """A stream is over."""
        with self._lock:
            self._num_streams -= 1

    def check(self) -> None:
        """See that anything is left, before a request is read.

        Raises:
            TooManyTokensError: where nothing is.
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
            TooManyTokensError: where they are more than what is left of this minute's.
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
        """Give back what a request did not use."""
        with self._lock:
            self._forget_before(self._now() - WINDOW_SECONDS)
            unused = max(0, charge.count - used)
            charge.count -= unused
            if self._charges and self._charges[0].at <= charge.at:  # else its minute is over
                self._num_charged -= unused

    def _refusal(self, count: int, limit: int, now: float) -> TooManyTokensError:
        asked = (
            f"the request may take {count} tokens, prompt and max_new_tokens together"
            if count > 1
            else "the request takes tokens"
        )
        whose = f"{self.client.name} may take {limit} a minute"
        if count > limit:
            return TooManyTokensError(f"{asked}; {whose}: ask for fewer", None)
        left = self._num_charged
        for charge in self._charges:
            left -= charge.count
            if left + count <= limit:
                break
        return TooManyTokensError(
            f"{asked}; {whose}, of which {max(0, limit - self._num_charged)} are left now",
            max(0.001, charge.at + WINDOW_SECONDS - now),
        )

    def _forget_before(self, at: float) -> None:
        while self._charges and self._charges[0].at <= at:
            self._num_charged -= self._charges.popleft().count


class Metered(Protocol):
    """A request's stream, as the engine knows it: tokens that it may take, those that it has, whether it ever ran."""

    max_num_tokens: int
    ids: list[int]
    has_run: bool


P = ParamSpec("P")
Result = TypeVar("Result", bound=Metered)
Counted = TypeVar("Counted")


class Meter:
    """Charges one request to the client that sent it; to nobody where the server asks for no tokens."""

    def __init__(self, quota: Quota | None) -> None:
        self._quota = quota
        self._lock = threading.Lock()
        self._stream: Metered | None = None
        self._charge: _Charge | None = None
        self._is_settled = False

    def metered(self, read: Callable[P, Result]) -> Callable[P, Result]:
        """Read a request as `read` does, and charge for the stream that it is.

        Raises:
            TooManyTokensError: when it is called, where the client has not so many left. The stream never runs then.
        """
        if self._quota is None:
            return read

        def charged(*args: P.args, **keywords: P.kwargs) -> Result:
            stream = read(*args, **keywords)
            self._take(stream)
            return stream

        return charged

    def counted(self, read: Callable[P, Counted], count: Callable[[Counted], int]) -> Callable[P, Counted]:
        """Read a request as `read` does, and charge for so many tokens as its answer counts.

        Raises:
            TooManyTokensError: when it is called, where the client has not so many left.
        """
        if self._quota is None:
            return read
        quota = self._quota

        def charged(*args: P.args, **keywords: P.kwargs) -> Counted:
            answer = read(*args, **keywords)
            quota.charge(count(answer))
            return answer

        return charged

    def check(self) -> None:
        """See that the client has anything left, before its request is read.

        Raises:
            TooManyTokensError: where it has not.
        """
        if self._quota is not None:
            self._quota.check()

    def _take(self, stream: Metered) -> None:
        with self._lock:  # against the end of a call that is cancelled while it is read
            if self._quota is not None and not self._is_settled:
                self._charge, self._stream = self._quota.charge(stream.max_num_tokens), stream

    def settle(self) -> None:
        """The request is over: give back what it did not use, and all where it never ran."""
        with self._lock:
            self._is_settled = True
            if self._quota is not None and self._charge is not None and self._stream is not None:
                self._quota.settle(self._charge, len(self._stream.ids) if self._stream.has_run else 0)
                self._charge = self._stream = None


class Quotas:
    """All clients' use, by name: it goes on when the file of tokens is loaded anew."""

    def __init__(self) -> None:
        self._quotas: dict[str, Quota] = {}

    def of(self, client: Client) -> Quota:
        """A client's use, under its limits of now."""
        quota = self._quotas.setdefault(client.name, Quota(client))
        quota.client = client
        return quota


# The caller's, as the gate found it (interceptors run in the task of the call); None where no token is asked for.
current_quota: ContextVar[Quota | None] = ContextVar("gradellm_quota", default=None)
