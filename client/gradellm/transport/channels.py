"""Options of gRPC channels."""

from __future__ import annotations

from typing import Any

import grpc

from gradellm._version import __version__
from gradellm.transport import addresses

__all__ = ["CHANNEL_OPTIONS", "CONNECTED", "CONNECT_SECONDS", "REPLICA_SECONDS", "channel_options"]

_MAX_MESSAGE_BYTES = 64 << 20  # the `started` event of a long prompt exceeds gRPC's default of 4 MiB
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.primary_user_agent", f"gradellm/{__version__}"),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.lb_policy_name", "round_robin"),  # over the addresses of a dns:/// target
    # Keepalive detects a host that vanished during a call, so that the call can be resumed elsewhere.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # the effective timeout if it is longer
    # Short backoffs find a restarted server, and changed DNS records, within seconds.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ("grpc.enable_retries", 0),  # `gradellm.transport.retry` retries
)

CONNECT_SECONDS, REPLICA_SECONDS = 1.0, 0.1
"""How long the first call to a target with several addresses waits for the first connection, and then for the rest.
Without this wait gRPC would send all pending calls to the address that connects first."""
CONNECTED = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)
"""Channel states that end this wait."""


def channel_options(target: str) -> tuple[tuple[str, Any], ...]:
    """Return the options of a channel to one target, synchronous or asyncio."""
    return (*CHANNEL_OPTIONS, *addresses.proxy_options(target))
