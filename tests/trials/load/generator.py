"""A load generator in a separate process, so that neither interpreter waits for the other's lock.

`python -m trials.load.generator KIND ADDRESS OPTIONS` (OPTIONS is JSON) writes the outcome to standard output as JSON;
times are in seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradellm.v1 import explainer_pb2 as pb

SERVICE = "/gradellm.v1.ExplainerService/"
CALL_SECONDS = 120.0
EXPLAINED = pb.GenerateRequest(
    input=pb.Input(prompt="Review: I like the film, it is great.\nSentiment:"),
    max_new_tokens=24,
    attribution=pb.AttributionOptions(),
)


class Outcomes:
    """Statuses and times of many calls."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.rejection_seconds: list[float] = []
        self.gaps: list[float] = []
        self.unfinished = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "codes": dict(self.codes),
            "rejection_seconds": self.rejection_seconds,
            "gaps": self.gaps,
            "unfinished": self.unfinished,
        }


async def stream(channel: grpc.aio.Channel, request: Any, outcomes: Outcomes, call: str = "Generate") -> None:
    """Read one stream to its end and record its outcome."""
    kinds: dict[str, Any] = {
        "Generate": (pb.GenerateRequest, pb.GenerateResponse),
        "Attribute": (pb.AttributeRequest, pb.AttributeResponse),
        "Evaluate": (pb.EvaluateRequest, pb.EvaluateResponse),
    }
    method: Any = channel.unary_stream(
        SERVICE + call,
        request_serializer=kinds[call][0].SerializeToString,
        response_deserializer=kinds[call][1].FromString,
    )
    start, is_finished, last, is_started = time.monotonic(), False, 0.0, False
    try:
        async for event in method(request, timeout=CALL_SECONDS):
            is_started = True
            is_finished |= event.HasField("finished")
            if event.HasField("token"):
                now = time.monotonic()
                if last:
                    outcomes.gaps.append(now - last)
                last = now
        code = "OK"
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        if code == "RESOURCE_EXHAUSTED" and not is_started:
            outcomes.rejection_seconds.append(time.monotonic() - start)
        else:
            outcomes.unfinished += 1
    outcomes.codes[code] += 1
    if code == "OK" and not is_finished:
        outcomes.unfinished += 1


async def closed(address: str, streams: int, seconds: float, tokens: int = 24) -> dict[str, Any]:
    """Closed loop: `streams` callers, each of which starts its next stream when the last one ends."""
    outcomes, until = Outcomes(), time.monotonic() + seconds
    request = pb.GenerateRequest()
    request.CopyFrom(EXPLAINED)
    request.max_new_tokens = tokens

    async def caller(channel: grpc.aio.Channel) -> None:
        while time.monotonic() < until:
            await stream(channel, request, outcomes)

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(caller(channel) for _ in range(streams)))
    return outcomes.as_dict()


async def opened(address: str, rate: float, seconds: float) -> dict[str, Any]:
    """Open loop: Poisson arrivals, `rate` a second, however many streams are still running."""
    outcomes, rng, tasks = Outcomes(), random.Random(0), set()
    async with grpc.aio.insecure_channel(address) as channel:
        now = time.monotonic()
        until, due = now + seconds, now
        while due < until:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(stream(channel, EXPLAINED, outcomes))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    return outcomes.as_dict()


async def probes(address: str, seconds: float, services: list[str]) -> dict[str, Any]:
    """Health checks, ten a second, each on a new connection as a kubelet makes them."""
    durations: list[float] = []
    statuses: Counter[int] = Counter()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for service in services:
            start = time.monotonic()
            async with grpc.aio.insecure_channel(address) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            durations.append(time.monotonic() - start)
            statuses[answer.status] += 1
        await asyncio.sleep(0.1)
    return {"seconds": durations, "statuses": {str(key): count for key, count in statuses.items()}}


async def mixed(address: str, seconds: float, streams: int) -> dict[str, Any]:
    """Calls of every kind, some of them cancelled early or malformed."""
    outcomes, rng, until = Outcomes(), random.Random(1), time.monotonic() + seconds
    malformed: Counter[str] = Counter()

    async def caller(channel: grpc.aio.Channel) -> None:
        while time.monotonic() < until:
            prompt = pb.Input(prompt=" ".join(rng.choices(["good", "bad", "film", "a", "the", "was"], k=20)))
            options = pb.AttributionOptions(delivery=rng.choice([pb.DELIVERY_PER_TOKEN, pb.DELIVERY_CHUNKED]))
            generate = pb.GenerateRequest(input=prompt, max_new_tokens=rng.randint(1, 60), attribution=options)
            match rng.randrange(6):
                case 0 | 1:
                    await stream(channel, generate, outcomes)
                case 2:
                    generate.ClearField("attribution")
                    await stream(channel, generate, outcomes)
                case 3:
                    method = rng.choice(["saliency", "occlusion", "lime", "relevance"])
                    attribution = pb.AttributionOptions(method=method, samples=20 if method == "lime" else None)
                    request = pb.AttributeRequest(input=prompt, completion=" good film", attribution=attribution)
                    await stream(channel, request, outcomes, "Attribute")
                case 4:
                    task = asyncio.create_task(stream(channel, generate, Outcomes()))
                    await asyncio.sleep(rng.random() * 0.3)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                case _:
                    unary: Any = channel.unary_unary(SERVICE + "Tokenize")
                    try:
                        await unary(rng.randbytes(20), timeout=CALL_SECONDS)
                    except grpc.aio.AioRpcError as error:
                        malformed[error.code().name] += 1

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(caller(channel) for _ in range(streams)))
    return {**outcomes.as_dict(), "gaps": [], "malformed": dict(malformed)}


# gRPC's library reads megabytes ahead by default; this limits it to 64 KiB, as in a client without read-ahead.
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535)]


async def unread(address: str, seconds: float, small_window: bool) -> dict[str, Any]:
    """A client that starts a long stream and reads only its first event."""
    request = pb.GenerateRequest(
        input=pb.Input(prompt="Once upon a time"),
        max_new_tokens=450,
        num_alternatives=20,
        attribution=pb.AttributionOptions(sources=pb.SOURCES_PREFIX),
    )
    async with grpc.aio.insecure_channel(address, options=SMALL_WINDOW if small_window else []) as channel:
        method: Any = channel.unary_stream(SERVICE + "Generate", request_serializer=type(request).SerializeToString)
        call = method(request)
        await call.read()
        await asyncio.sleep(seconds)
        call.cancel()
    return {}


RESPONSE_SECONDS = 10.0  # in which a hostile request must get its first response or a status


async def hostile(address: str, requests: str, seconds: float, rate: float) -> dict[str, Any]:
    """Send a file's requests, `rate` a second, and time each one's first response."""
    lines = [json.loads(line) for line in await asyncio.to_thread(_lines, requests)]
    codes: Counter[str] = Counter()
    durations: list[tuple[float, str]] = []

    async def send(channel: grpc.aio.Channel, call: str, payload: bytes, what: str) -> None:
        running: Any = None
        start = time.monotonic()
        try:
            if call == "Tokenize":
                unary: Any = channel.unary_unary(SERVICE + call)
                await unary(payload, timeout=RESPONSE_SECONDS)
            else:
                streaming: Any = channel.unary_stream(SERVICE + call)
                running = streaming(payload, timeout=RESPONSE_SECONDS)
                await running.read()
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        durations.append((time.monotonic() - start, f"{what}: {code}"))
        codes[code] += 1
        if code == "OK" and running is not None:
            await asyncio.sleep(1)  # let it use the engine for a while
            running.cancel()

    tasks = []
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        until = time.monotonic() + seconds
        for call, payload, what in lines:
            if time.monotonic() > until:
                break
            tasks.append(asyncio.create_task(send(channel, call, bytes.fromhex(payload), what)))
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*tasks)
    return {"codes": dict(codes), "seconds": [seconds for seconds, _ in durations], "slowest": max(durations)}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


KINDS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "closed": closed,
    "open": opened,
    "probes": probes,
    "mixed": mixed,
    "unread": unread,
    "hostile": hostile,
}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(KINDS[sys.argv[1]](sys.argv[2], **json.loads(sys.argv[3])))))  # type: ignore[arg-type]
