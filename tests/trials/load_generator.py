"""Load on a server, as a process of its own, so that it neither waits for the server's interpreter nor holds it up.

`python -m trials.load_generator KIND ADDRESS JSON`: what it found goes to standard output, as JSON; times are in
seconds.
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
    """Of many calls."""

    def __init__(self) -> None:
        self.codes: Counter[str] = Counter()
        self.refusal_seconds: list[float] = []
        self.gaps: list[float] = []
        self.unfinished = 0

    def told(self) -> dict[str, Any]:
        return {
            "codes": dict(self.codes),
            "refusal_seconds": self.refusal_seconds,
            "gaps": self.gaps,
            "unfinished": self.unfinished,
        }


async def stream(channel: grpc.aio.Channel, request: Any, outcomes: Outcomes, call: str = "Generate") -> None:
    """One stream, read to its end."""
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
    began, is_finished, last, is_started = time.monotonic(), False, 0.0, False
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
            outcomes.refusal_seconds.append(time.monotonic() - began)
        else:
            outcomes.unfinished += 1
    outcomes.codes[code] += 1
    if code == "OK" and not is_finished:
        outcomes.unfinished += 1


async def closed(address: str, streams: int, seconds: float, tokens: int = 24) -> dict[str, Any]:
    """So many streams at any time."""
    outcomes, until = Outcomes(), time.monotonic() + seconds
    request = pb.GenerateRequest()
    request.CopyFrom(EXPLAINED)
    request.max_new_tokens = tokens

    async def one(channel: grpc.aio.Channel) -> None:
        while time.monotonic() < until:
            await stream(channel, request, outcomes)

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(one(channel) for _ in range(streams)))
    return outcomes.told()


async def opened(address: str, rate: float, seconds: float) -> dict[str, Any]:
    """New streams at random moments, `rate` a second, whatever becomes of those before."""
    outcomes, draw, tasks = Outcomes(), random.Random(0), set()
    async with grpc.aio.insecure_channel(address) as channel:
        now = time.monotonic()
        until, due = now + seconds, now
        while due < until:
            due += draw.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(stream(channel, EXPLAINED, outcomes))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    return outcomes.told()


async def probes(address: str, seconds: float, services: list[str]) -> dict[str, Any]:
    """Health checks, ten a second, each on a connection of its own as a kubelet makes it."""
    took: list[float] = []
    statuses: Counter[int] = Counter()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for service in services:
            began = time.monotonic()
            async with grpc.aio.insecure_channel(address) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            took.append(time.monotonic() - began)
            statuses[answer.status] += 1
        await asyncio.sleep(0.1)
    return {"seconds": took, "statuses": {str(key): count for key, count in statuses.items()}}


async def mixed(address: str, seconds: float, streams: int) -> dict[str, Any]:
    """Every kind of call, some of which are left early or are wrong."""
    outcomes, draw, until = Outcomes(), random.Random(1), time.monotonic() + seconds
    wrong: Counter[str] = Counter()

    async def one(channel: grpc.aio.Channel) -> None:
        while time.monotonic() < until:
            prompt = pb.Input(prompt=" ".join(draw.choices(["good", "bad", "film", "a", "the", "was"], k=20)))
            options = pb.AttributionOptions(delivery=draw.choice([pb.DELIVERY_PER_TOKEN, pb.DELIVERY_CHUNKED]))
            generate = pb.GenerateRequest(input=prompt, max_new_tokens=draw.randint(1, 60), attribution=options)
            match draw.randrange(6):
                case 0 | 1:
                    await stream(channel, generate, outcomes)
                case 2:
                    generate.ClearField("attribution")
                    await stream(channel, generate, outcomes)
                case 3:
                    method = draw.choice(["saliency", "occlusion", "lime", "relevance"])
                    asked = pb.AttributionOptions(method=method, samples=20 if method == "lime" else None)
                    request = pb.AttributeRequest(input=prompt, completion=" good film", attribution=asked)
                    await stream(channel, request, outcomes, "Attribute")
                case 4:
                    task = asyncio.create_task(stream(channel, generate, Outcomes()))
                    await asyncio.sleep(draw.random() * 0.3)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                case _:
                    unary: Any = channel.unary_unary(SERVICE + "Tokenize")
                    try:
                        await unary(draw.randbytes(20), timeout=CALL_SECONDS)
                    except grpc.aio.AioRpcError as error:
                        wrong[error.code().name] += 1

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(one(channel) for _ in range(streams)))
    return {**outcomes.told(), "gaps": [], "wrong": dict(wrong)}


# Of a client that takes nothing ahead: what gRPC's library reads for it, by default megabytes, is 64 KiB.
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65535)]


async def unread(address: str, seconds: float, small_window: bool) -> dict[str, Any]:
    """A client that asks for a long stream and reads nothing of it after the first event."""
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


ANSWER_SECONDS = 10.0  # within which a hostile request must have any answer


async def hostile(address: str, requests: str, seconds: float, rate: float) -> dict[str, Any]:
    """Requests of a file, `rate` a second; how long each waits for its first answer."""
    lines = [json.loads(line) for line in await asyncio.to_thread(_lines, requests)]
    codes: Counter[str] = Counter()
    took: list[tuple[float, str]] = []

    async def one(channel: grpc.aio.Channel, call: str, payload: bytes, what: str) -> None:
        running: Any = None
        began = time.monotonic()
        try:
            if call == "Tokenize":
                unary: Any = channel.unary_unary(SERVICE + call)
                await unary(payload, timeout=ANSWER_SECONDS)
            else:
                streaming: Any = channel.unary_stream(SERVICE + call)
                running = streaming(payload, timeout=ANSWER_SECONDS)
                await running.read()
            code = "OK"
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        took.append((time.monotonic() - began, f"{what}: {code}"))
        codes[code] += 1
        if code == "OK" and running is not None:
            await asyncio.sleep(1)  # it runs for a while, as an evaluation does
            running.cancel()

    tasks = []
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        until = time.monotonic() + seconds
        for call, payload, what in lines:
            if time.monotonic() > until:
                break
            tasks.append(asyncio.create_task(one(channel, call, bytes.fromhex(payload), what)))
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*tasks)
    return {"codes": dict(codes), "seconds": [each for each, _ in took], "slowest": max(took)}


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
