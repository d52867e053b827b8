"""Streams cancelled at random moments must not leak resources in the server."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import psutil

from gradellm_engine import Engine
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer
from trials.calls import CALL_SECONDS, explained_request, text_of
from trials.report import Finding


@contextmanager
def in_process_server() -> Iterator[RunningServer]:
    """A server in this process, so that its threads, descriptors and KV cache can be counted."""
    server = RunningServer(Engine.load(), ServerSettings(listen="127.0.0.1:0", max_queued=64))
    try:
        yield server
    finally:
        server.close()


def cancel(scale: float) -> list[Finding]:
    """Cancel nine of ten streams at a random moment; the tenth must finish with an unchanged text."""
    count, rng = max(50, round(1000 * scale)), random.Random(0)
    request = explained_request(40)
    with in_process_server() as server:
        expected = text_of(server.stub.Generate(request))
        process = psutil.Process()
        delays = [rng.expovariate(2.0) for _ in range(count)]

        def run_stream(index: int) -> bool | None:
            """Whether a stream that is not cancelled has the expected text; None for a cancelled stream."""
            call = server.stub.Generate(request, timeout=CALL_SECONDS)
            if index % 10 == 0:
                return text_of(call) == expected
            timer = threading.Timer(delays[index], call.cancel)
            timer.start()
            try:
                for _ in call:
                    pass
            except grpc.RpcError:
                pass
            timer.cancel()
            timer.join()
            return None

        with ThreadPoolExecutor(24) as pool:
            list(pool.map(run_stream, range(24)))  # warms up: thread pools and channels exist before the first count
        gc.collect()
        before = process.num_threads(), process.num_fds()
        with ThreadPoolExecutor(24) as pool:
            survivors = [same for same in pool.map(run_stream, range(count)) if same is not None]
        thread = server.server.engine_thread
        limit = time.monotonic() + 10
        while thread.num_unfinished and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(1)
        after = process.num_threads(), process.num_fds()
        kv = server.engine.model.runner.pool
        free, total, placed = kv.num_free_tokens, kv.num_tokens, thread.num_unfinished
    return [
        Finding("streams", f"{count:,}, of which {len(survivors)} were not cancelled"),
        Finding("requests left in the engine", str(placed), "none", placed == 0),
        Finding("KV cache slots free or in the prefix cache", f"{free:,} of {total:,}", "all", free == total),
        Finding("threads, before and after", f"{before[0]}, {after[0]}", "no more", after[0] <= before[0]),
        Finding("descriptors, before and after", f"{before[1]}, {after[1]}", "no more", after[1] <= before[1]),
        Finding("surviving texts unchanged", f"{sum(survivors)} of {len(survivors)}", "all", all(survivors)),
    ]
