"""The port that Prometheus scrapes: bound early, so that a taken one is known before a model is loaded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server

from gradellm_server.settings import ListenError, split_address


class MetricsPort:
    """Serves a registry over HTTP, in threads of its own, from when it is made until it is closed.

    Attributes:
        address: host:port, with the port that was taken where 0 was asked for.
    """

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        """Bind.

        Raises:
            ListenError: where the address is taken or is none.
        """
        host, port = split_address(listen)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ListenError(
                f"cannot listen on {listen} for metrics: {error.strerror or error}; say --metrics-listen HOST:PORT, "
                "or --metrics-listen none"
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
