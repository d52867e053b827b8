"""Errors of the queue and the engine thread."""

from __future__ import annotations

RESTART_SECONDS = 5.0  # default retry delay of a stopping or failed server, until its own start-up time is measured


class RejectedError(Exception):
    """A request that the server did not take or did not finish, through no fault of the request.

    Attributes:
        retry_seconds: estimated time until a retry can succeed.
    """

    def __init__(self, message: str, retry_seconds: float) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class QueueFullError(RejectedError):
    """The queue has reached its limit of requests or of tokens."""

    def __init__(self, what: str, retry_seconds: float = 1.0) -> None:
        super().__init__(f"queue full: {what}", retry_seconds)


class ShuttingDownError(RejectedError):
    """The server is stopping."""

    def __init__(self, retry_seconds: float = RESTART_SECONDS) -> None:
        super().__init__("the server is shutting down; try another replica, or retry later", retry_seconds)


class EngineFailedError(RejectedError):
    """The engine thread has ended, or is stalled in a pass."""

    def __init__(self, what: str, retry_seconds: float = RESTART_SECONDS) -> None:
        super().__init__(f"the engine {what}; the server must be restarted", retry_seconds)


class ReadingFailedError(Exception):
    """Native code panicked while it read a request; no other request is affected."""

    def __init__(self) -> None:
        super().__init__("the request could not be read: the model's tokenizer fails on it")


class SlowConsumerError(Exception):
    """A client has not read its stream for longer than the reader timeout."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the client has not read the stream for {seconds:g} s (the limit); read responses as they come"
        )


class FollowIdleError(Exception):
    """A client has sent nothing to the completion that it follows for longer than the limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"nothing was sent for {seconds:g} s, which is the limit: send `finish` at the end of a completion, or "
            "raise the server's --follow-idle-seconds"
        )
