"""What the gateway needs of the explainer's client, `gradellm.AsyncClient`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from gradellm import Event, ServerInfo, TokenizedPrompt

__all__ = ["Explainer", "FollowSettings", "Following"]


class Following(Protocol):
    """A call that explains tokens which come from elsewhere. Leaving its context cancels it."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> object: ...
    def __aiter__(self) -> AsyncIterator[Event]: ...
    async def append(self, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Send tokens; waits while too many are unexplained."""

    async def finish(self) -> None:
        """Say that no more tokens come."""


class Explainer(Protocol):
    """The client of the server that explains."""

    def follow(self, **keywords: Any) -> Following:  # noqa: ANN401, D102 (the SDK's keywords)
        ...

    def attribute_events(self, **keywords: Any) -> AsyncGenerator[Event, None]:  # noqa: ANN401, D102
        ...

    async def tokenize(self, prompt: str | None = None, **keywords: Any) -> TokenizedPrompt:  # noqa: ANN401, D102
        ...

    def with_metadata(self, metadata: Iterable[tuple[str, str]]) -> Explainer:
        """Return a client whose calls have more metadata."""

    async def server_info(self, **keywords: Any) -> ServerInfo:  # noqa: ANN401, D102
        ...


@dataclass(frozen=True)
class FollowSettings:
    """How answers of the upstream are explained.

    Attributes:
        dtype: the numbers that the upstream computes with, as it was declared.
        wait_seconds: how long the end of an answer waits for its last rows.
    """

    dtype: str = "bfloat16"
    wait_seconds: float = 30.0
