"""SIGTERM under load, and an engine thread that dies under load."""

from __future__ import annotations

import signal
import time
from collections import Counter
from typing import Any

import grpc

from gradellm_server.fault_injection import VARIABLE
from trials.calls import explained_request, generate_call, status_of
from trials.report import Finding
from trials.serving import SERVING, served


def shutdown(scale: float) -> list[Finding]:
    """SIGTERM must drain running streams; a dead engine must fail them all and turn the health status."""
    return [*_drain(), *_dead_engine()]


def _drain() -> list[Finding]:
    with served("--grace-seconds", "60") as server, grpc.insecure_channel(server.address) as channel:
        calls = [generate_call(channel)(explained_request(120)) for _ in range(16)]
        for call in calls:
            next(call)
        server.process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        time.sleep(0.05)
        ready = server.health("ready") == SERVING
        try:
            list(generate_call(channel)(explained_request(1)))
            new_call = "accepted"
        except grpc.RpcError as error:
            failed: Any = error
            new_call = failed.code().name
        lost = 0
        for call in calls:
            try:
                lost += not list(call)[-1].HasField("finished")
            except grpc.RpcError:
                lost += 1
        exit_code = server.process.wait(30)
        drain_seconds = time.monotonic() - start
    return [
        Finding("streams lost by SIGTERM under 16", str(lost), "none", lost == 0),
        Finding("after SIGTERM", f"ready: {ready}, a new call: {new_call}", "not ready, UNAVAILABLE",
                not ready and new_call == "UNAVAILABLE"),
        Finding("exit", f"{exit_code}, after {drain_seconds:.1f} s", "0", exit_code == 0),
    ]  # fmt: skip


def _dead_engine() -> list[Finding]:
    kill = {VARIABLE: "engine=kill@40"}
    with served("--allow-faults", environment=kill) as server, grpc.insecure_channel(server.address) as channel:
        calls = [generate_call(channel)(explained_request(300)) for _ in range(24)]  # some of them are queued
        codes = Counter(status_of(call) for call in calls)
        start = time.monotonic()
        while server.health("live") == SERVING or server.health("ready") == SERVING:
            time.sleep(0.02)
        noticed_seconds = time.monotonic() - start
    return [
        Finding("24 streams when the engine thread is killed",
                ", ".join(f"{number} {name}" for name, number in codes.items()), "all UNAVAILABLE",
                set(codes) == {"UNAVAILABLE"}),
        Finding("NOT_SERVING after the last of them", f"{noticed_seconds:.2f} s", "2 s", noticed_seconds < 2),
    ]  # fmt: skip
