"""`--debug`: channelz and stack dumps, and neither without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from gradellm.v1 import explainer_pb2 as pb
from server.conftest import Serving

WAITING = """
import sys, threading
from gradellm_server.observability.debugging import dump_stacks_on_signal
dump_stacks_on_signal()
def lingering(): threading.Event().wait()
threading.Thread(target=lingering, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
print("still there", flush=True)
"""


def test_channelz_shows_calls_and_connections(serving: Serving) -> None:
    with serving(debug=True) as server:
        server.stub.Tokenize(pb.TokenizeRequest(input=pb.Input(prompt="a")))
        stub = channelz_pb2_grpc.ChannelzStub(server.channel)
        servers = stub.GetServers(channelz_pb2.GetServersRequest()).server
        busy = [server_info for server_info in servers if server_info.data.calls_succeeded >= 1]
        assert busy
        sockets = [
            socket.name
            for server_info in busy
            for socket in stub.GetServerSockets(
                channelz_pb2.GetServerSocketsRequest(server_id=server_info.ref.server_id)
            ).socket_ref
        ]
        assert any("127.0.0.1" in name for name in sockets), sockets


def test_without_the_flag_there_is_no_channelz(serving: Serving) -> None:
    with serving() as server:
        stub = channelz_pb2_grpc.ChannelzStub(server.channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.GetServers(channelz_pb2.GetServersRequest())
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_signal_dumps_all_stacks_without_stopping_the_server() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(0.2)
        output, stacks = process.communicate("")
    assert output == "still there\n"
    assert "in lingering" in stacks
    assert stacks.count("Thread 0x") + stacks.count("Current thread 0x") == 2
