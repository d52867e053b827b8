"""What helps to look into a server that misbehaves; off unless an operator asks for it (`--debug`)."""

from __future__ import annotations

import faulthandler
import signal
import sys

import grpc
from grpc_channelz.v1 import channelz

CHANNELZ_NAME = "grpc.channelz.v1.Channelz"


def dump_stacks_on_signal() -> None:
    """On SIGUSR1, write where every thread is to standard error; also while one of them never lets go of Python."""
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)


def add_channelz(server: grpc.aio.Server) -> None:
    """Answer channelz, which tells of connections, their addresses and counts of calls; not of what they carry."""
    channelz.add_channelz_servicer(server)
