"""The state and the decisions that both clients share: everything but their gRPC channels and how they wait."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import grpc

from gradellm.errors import GradellmError, OverloadedError, UnavailableError
from gradellm.transport.credentials import Credentials
from gradellm.transport.load_balancing import Rotation, check_ports, resolves_to_many, split
from gradellm.transport.retry import Attempts, Retry
from gradellm.transport.rpc_errors import from_rpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Self

    from gradellm.models import Event
    from gradellm.transport.calls import Call
    from gradellm.transport.credentials import Tls
    from gradellm.transport.resumable_stream import ResumableStream

__all__ = ["Session"]


class Session:
    """Targets, credentials, retries and load balancing of a client.

    Its arguments are those of `gradellm.Client`.

    Raises InvalidRequestError for a malformed target, unreadable certificates, or a token that would be sent without
    encryption.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        token: str | None,
        tls: bool | Tls,
        credentials: grpc.ChannelCredentials | None,
        retry: Retry | None,
    ) -> None:
        self.targets = split(target)
        self.credentials = Credentials(self.targets, channel=credentials, tls=tls, token=token)
        if self.credentials.channel is None:
            check_ports(self.targets)
        self.retry = retry
        self.rotation = Rotation(len(self.targets))
        self.has_connections = [not resolves_to_many(target) for target in self.targets]
        """By target: whether its connections have been awaited, or need not be."""

    def with_token(self, token: str | None) -> Self:
        """Return this session for another caller; retries and load balancing are shared."""
        session = copy.copy(self)
        session.credentials = Credentials(self.targets, channel=self.credentials.channel, token=token)
        return session

    def with_metadata(self, metadata: Iterable[tuple[str, str]]) -> Self:
        """Return this session with more gRPC metadata, which is sent with every call."""
        session = copy.copy(self)
        session.credentials = copy.copy(self.credentials)
        session.credentials.metadata = (*self.credentials.metadata, *metadata)
        return session

    def attempts(self, call: Call[Any], retry: Retry | None) -> Attempts:
        """Return the retry state of a call; with retry=None its first failure is raised."""
        return Attempts(
            retry or Retry(attempts=1, resume_seconds=0),
            call.timeout,
            num_targets=len(self.targets),
            has_replicas=any(map(resolves_to_many, self.targets)),
        )

    def next_delay(
        self, failure: grpc.RpcError | UnavailableError, call: Call[Any], attempts: Attempts, index: int
    ) -> float:
        """Return the delay in seconds before the next attempt. Raises the error of the call if there is none."""
        error: GradellmError
        if isinstance(failure, grpc.RpcError):
            target = self.targets[index]
            error = from_rpc(failure, target=target, timeout=call.timeout, has_begun=attempts.has_begun)
        else:
            error = failure
        has_other = False
        # Reasons that begin with CLIENT_ are limits of this caller, not failures of the server.
        if isinstance(error, UnavailableError | OverloadedError) and not error.reason.startswith("CLIENT_"):
            has_other = self.rotation.mark_down(index, error.retry_after_seconds)
        try:
            return attempts.next_delay(error, has_other=has_other)
        except GradellmError:
            raise error from (failure if failure is not error else None)

    def accept(
        self,
        response: Any,  # noqa: ANN401  (one of four messages)
        stream: ResumableStream,
        attempts: Attempts,
        index: int,
        on_event: Callable[[Event], object] | None,
    ) -> Event | None:
        """Pass a stream's message to `on_event`. Return the event to yield; None for repeated and progress events."""
        event = stream.take(response, self.targets[index])
        if event is None:
            return None
        attempts.progressed()
        if on_event is not None:
            on_event(event)
        return event if event.prompt_progress is None else None
