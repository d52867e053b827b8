"""Debugging aids for operators: channelz and stack dumps; off by default (`--debug`)."""

from __future__ import annotations

import faulthandler
import signal
import sys

import grpc
from grpc_channelz.v1 import channelz

CHANNELZ_NAME = "grpc.channelz.v1.Channelz"


def dump_stacks_on_signal() -> None:
    """Write the stacks of all threads to standard error on SIGUSR1, also while a thread holds the GIL."""
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)


def add_channelz(server: grpc.aio.Server) -> None:
    """Serve channelz: connections, their addresses and counts of calls, and none of their content."""
    channelz.add_channelz_servicer(server)
