"""Why a caller is not let in."""

from __future__ import annotations

from gradellm_server.auth.tokens import METHODS, Client


class UnknownClientError(Exception):
    """No token, one that is nobody's, or one that has expired: which of them is not told."""

    def __init__(self) -> None:
        super().__init__(
            "a token is needed that this server knows and that has not expired: metadata `authorization: Bearer TOKEN`"
        )


class MethodNotAllowedError(Exception):
    """A client that may not call this."""

    def __init__(self, client: Client, method: str) -> None:
        allowed = ", ".join(name for name in METHODS if name in (client.methods or ())) or "nothing"
        super().__init__(f"{client.name} may not call {method}; it may call {allowed}")
