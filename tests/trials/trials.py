"""What must hold, a function each: it makes the numbers, says what was asked of them, and takes a bounded time."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import psutil

from gradellm import AsyncClient, Client, Explanation, GradellmError
from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine
from gradellm_server.fault_injection import VARIABLE
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer
from support import fuzzing
from trials.diff import TIE, Compared, compared, unchanged
from trials.hostile import hostile as hostile
from trials.hostile import reading as reading
from trials.hosts import hosts as hosts
from trials.on_ray import ray as ray
from trials.report import Finding, percentile
from trials.serving import SERVING, free_port, load, played, result, served

MIB = 2**20
CALL_SECONDS = 300.0


def generate_call(channel: grpc.Channel) -> Any:
    """Generate on a channel."""
    return channel.unary_stream(
        fuzzing.SERVICE + "Generate",
        request_serializer=pb.GenerateRequest.SerializeToString,
        response_deserializer=pb.GenerateResponse.FromString,
    )


def explained(num_tokens: int, prompt: str = "Once upon a time") -> pb.GenerateRequest:
    """A request that is explained at each token."""
    return pb.GenerateRequest(
        input=pb.Input(prompt=prompt), max_new_tokens=num_tokens, attribution=pb.AttributionOptions()
    )


def fuzz(scale: float) -> list[Finding]:
    """Requests of any kind, twice the same."""
    requests = fuzzing.many(max(200, round(20_000 * scale)))
    codes: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    memory: list[int] = []
    with served() as server:
        for _ in range(2):
            with grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor(8) as pool:

                def send(request: fuzzing.Request, channel: grpc.Channel = channel) -> float:
                    began = time.monotonic()
                    code, said = fuzzing.send(channel, request, 120)
                    codes[code.name] += 1
                    if code not in fuzzing.ALLOWED:
                        wrong.append(f"{code.name} {said} {request}")
                    return time.monotonic() - began

                slowest = max(slowest, *pool.map(send, requests))
            time.sleep(2)
            memory.append(server.memory_bytes)
        is_alive = server.process.poll() is None and server.health("live") == SERVING
    growth = memory[1] / memory[0] - 1
    told = ", ".join(f"{count:,} {name}" for name, count in codes.most_common())
    return [
        Finding("requests", f"2 x {len(requests):,}: {told}"),
        Finding("crash, hang, INTERNAL or UNKNOWN", f"{len(wrong)}{f': {wrong[0]}' if wrong else ''}", "none",
                not wrong and is_alive),
        Finding("slowest answer", f"{slowest:.1f} s"),
        Finding("memory after the second pass", f"{growth:+.2%} of {memory[0] / MIB:.0f} MiB", "within 2%",
                abs(growth) <= 0.02),
    ]  # fmt: skip


@contextmanager
def in_process() -> Iterator[RunningServer]:
    """A server in this process, whose inside can be looked at."""
    server = RunningServer(Engine.load(), ServerSettings(listen="127.0.0.1:0", max_queued=64))
    try:
        yield server
    finally:
        server.close()


def cancel(scale: float) -> list[Finding]:
    """Streams that are cancelled at random moments, among some that are not."""
    count, draw = max(50, round(1000 * scale)), random.Random(0)
    request = explained(40)
    with in_process() as server:
        expected = _text(server.stub.Generate(request))
        own = psutil.Process()

        def one(index: int) -> bool | None:
            if index % 10 == 0:
                return _text(server.stub.Generate(request, timeout=300)) == expected
            call = server.stub.Generate(request, timeout=300)
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

        delays = [draw.expovariate(2.0) for _ in range(count)]
        with ThreadPoolExecutor(24) as pool:
            list(pool.map(one, range(24)))  # so that what is made once is there
        gc.collect()
        before = own.num_threads(), own.num_fds()
        with ThreadPoolExecutor(24) as pool:
            survivors = [same for same in pool.map(one, range(count)) if same is not None]
        thread = server.server.engine_thread
        limit = time.monotonic() + 10
        while thread.num_unfinished and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(1)
        after = own.num_threads(), own.num_fds()
        kv = server.engine.model.runner.pool
        free, total, placed = kv.num_free_tokens, kv.num_tokens, thread.num_unfinished
    return [
        Finding("streams", f"{count:,}, of which {len(survivors)} were not cancelled"),
        Finding("places left taken", str(placed), "none", placed == 0),
        Finding("key-value places free or kept", f"{free:,} of {total:,}", "all", free == total),
        Finding("threads, before and after", f"{before[0]}, {after[0]}", "no more", after[0] <= before[0]),
        Finding("descriptors, before and after", f"{before[1]}, {after[1]}", "no more", after[1] <= before[1]),
        Finding("surviving texts unchanged", f"{sum(survivors)} of {len(survivors)}", "all", all(survivors)),
    ]


def _text(call: Any) -> str:
    return "".join(event.token.text for event in call if event.HasField("token"))


def overload(scale: float) -> list[Finding]:
    """Four times the load that the server can take."""
    seconds = max(10.0, 60.0 * scale)
    with served() as server:
        with load("closed", server.address, streams=24, seconds=10) as process:
            capacity = result(process, 60)["codes"]["OK"] / 10
        with (
            load("probes", server.address, seconds=seconds, services=["ready", "live"]) as prober,
            load("open", server.address, rate=4 * capacity, seconds=seconds) as generator,
        ):
            offered = result(generator, seconds + 180)
            probed = result(prober, 60)
        is_alive = server.health("live") == SERVING
    health = percentile(probed["seconds"], 99)
    refused = percentile(offered["refusal_seconds"], 99)
    codes = offered["codes"]
    others = {name: number for name, number in codes.items() if name not in ("OK", "RESOURCE_EXHAUSTED")}
    return [
        Finding("load", f"{4 * capacity:.0f} streams a second for {seconds:.0f} s, 4 times what was taken"),
        Finding("streams", ", ".join(f"{number:,} {name}" for name, number in codes.items())),
        Finding("health, 99th percentile", f"{health * 1000:.0f} ms of {len(probed['seconds'])}", "1 s", health < 1),
        Finding("health that was not SERVING", str(len(probed["statuses"]) - 1), "none",
                is_alive and set(probed["statuses"]) == {str(SERVING)}),
        Finding("admitted and not finished", str(offered["unfinished"]), "none",
                offered["unfinished"] == 0 and not others),
        Finding("refusal, 99th percentile",
                f"{refused * 1000:.0f} ms (median {1000 * percentile(offered['refusal_seconds'], 50):.0f} ms)",
                "100 ms", refused < 0.1),
    ]  # fmt: skip


def ends(scale: float) -> list[Finding]:
    """SIGTERM under streams; and an engine thread that dies under streams."""
    with served("--grace-seconds", "60") as server, grpc.insecure_channel(server.address) as channel:
        calls = [generate_call(channel)(explained(120)) for _ in range(16)]
        for call in calls:
            next(call)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        time.sleep(0.05)
        ready = server.health("ready") == SERVING
        try:
            list(generate_call(channel)(explained(1)))
            refusal = "taken"
        except grpc.RpcError as error:
            failed: Any = error
            refusal = failed.code().name
        lost = 0
        for call in calls:
            try:
                lost += not list(call)[-1].HasField("finished")
            except grpc.RpcError:
                lost += 1
        code = server.process.wait(30)
        drained = time.monotonic() - began
    kill = {VARIABLE: "engine=kill@40"}
    with served("--allow-faults", environment=kill) as server, grpc.insecure_channel(server.address) as channel:
        calls = [generate_call(channel)(explained(300)) for _ in range(24)]  # some of them wait
        codes = Counter(_end_of(call) for call in calls)
        began = time.monotonic()
        while server.health("live") == SERVING or server.health("ready") == SERVING:
            time.sleep(0.02)
        noticed = time.monotonic() - began
    return [
        Finding("streams lost by SIGTERM under 16", str(lost), "none", lost == 0),
        Finding("after SIGTERM", f"ready: {ready}, a new call: {refusal}", "not ready, UNAVAILABLE",
                not ready and refusal == "UNAVAILABLE"),
        Finding("exit", f"{code}, after {drained:.1f} s", "0", code == 0),
        Finding("24 streams when the engine thread is killed",
                ", ".join(f"{number} {name}" for name, number in codes.items()), "all UNAVAILABLE",
                set(codes) == {"UNAVAILABLE"}),
        Finding("NOT_SERVING after the last of them", f"{noticed:.2f} s", "2 s", noticed < 2),
    ]  # fmt: skip


def _end_of(call: Any) -> str:
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        failed: Any = error
        return str(failed.code().name)
    return "OK"


def unread(scale: float) -> list[Finding]:
    """The gaps of four streams: alone, beside a client that never reads, and beside one that does."""
    rounds, seconds, before = max(2, round(6 * scale)), 6.0, 4.0
    beside: dict[str, tuple[str, dict[str, Any]] | None] = {
        "alone": None,
        "never": ("unread", {"small_window": True}),
        "ahead": ("unread", {"small_window": False}),
        "reads": ("closed", {"streams": 1, "tokens": 450}),
    }
    gaps: dict[str, list[float]] = {kind: [] for kind in beside}
    with served() as server:
        for _ in range(rounds):
            for kind, other in beside.items():
                with ExitStack() as running:
                    if other is not None:
                        running.enter_context(load(other[0], server.address, seconds=seconds + before + 4, **other[1]))
                    time.sleep(before)
                    four = running.enter_context(load("closed", server.address, streams=4, seconds=seconds, tokens=100))
                    gaps[kind] += result(four, 60)["gaps"]
    medians = {kind: statistics.median(its) for kind, its in gaps.items()}

    def told(kind: str) -> str:
        return f"{medians[kind] * 1000:.1f} ms, {medians[kind] / medians['alone'] - 1:+.0%}"

    return [
        Finding("median gap of 4 streams", f"{medians['alone'] * 1000:.1f} ms, of {len(gaps['alone']):,}"),
        Finding("beside a client that never reads", told("never"), "+20%", medians["never"] <= 1.2 * medians["alone"]),
        Finding("beside one whose library reads ahead for it, as gRPC's does", told("ahead")),
        Finding("beside one that reads", told("reads")),
    ]


SURVIVORS, ROUNDS = 24, 4


def survive(scale: float) -> list[Finding]:
    """Streams over three servers, each of which is killed once, against the same streams that nobody disturbs.

    Once with batch-invariant results, of which exact numbers are asked, and once without: there a row's rounding
    depends on the rows beside it, and a token that is read again as part of a resumed stream has other rows beside it.
    """
    asked = [
        {
            "prompt": f"Once upon a time, there was a {('cat', 'dog', 'bear', 'girl')[i % 4]} who",
            "max_new_tokens": 96,
            "num_alternatives": 2,
            "seed": i,
            "temperature": 1.0 if i % 2 else 0.0,
            "delivery": "chunked" if i % 4 >= 2 else "per_token",
        }
        for i in range(SURVIVORS)
    ]
    rounds = max(1, round(ROUNDS * scale))
    return [*_invariant(_survived(asked, rounds, "--batch-invariant")), *_default(_survived(asked, rounds))]


@dataclass(frozen=True)
class Survived:
    """What came of streams whose servers were killed.

    Attributes:
        num_runs: of all streams together.
        num_kills: while they ran.
        found: of all of them, beside the undisturbed run.
        rounding: of undisturbed ones, each alone, likewise.
        exact: of all of them, beside what a server in float64 says of the undisturbed run's tokens.
        undisturbed: the undisturbed run itself, likewise.
    """

    num_runs: int
    num_kills: int
    found: Compared
    rounding: Compared
    exact: Compared
    undisturbed: Compared

    @property
    def told(self) -> list[Finding]:
        """What was done."""
        how = f"{self.num_runs} times {SURVIVORS} over 3 servers, each killed (SIGKILL) and started anew once"
        return [Finding("streams", how), Finding("kills while they ran", str(self.num_kills), "3", self.num_kills == 3)]

    @property
    def from_exact(self) -> tuple[str, str]:
        """How far from float64."""
        return (
            "from what a server in float64 says of the same tokens, of 1 or its row's largest",
            f"{self.exact.largest:.1e} (undisturbed: {self.undisturbed.largest:.1e})",
        )


def _invariant(its: Survived) -> list[Finding]:
    """What must hold with batch-invariant results."""
    found, alone = its.found, its.rounding
    return [
        *(replace(finding, what=f"with --batch-invariant: {finding.what}") for finding in its.told),
        *unchanged(found),
        Finding(
            "rows of scores that differ in any bit",
            f"{found.rows_other} of {found.rows:,}",
            "none",
            found.rows_other == 0,
        ),
        Finding(
            "the same, undisturbed, but each stream alone",
            f"{alone.rows_other} of {alone.rows:,}",
            "none",
            alone.rows_other == 0,
        ),
        Finding(*its.from_exact, f"{TIE:.0e}", its.exact.largest <= TIE),
    ]


def _default(its: Survived) -> list[Finding]:
    """What holds without: whole streams and texts; of scores it is told how far they are."""
    found, alone = its.found, its.rounding
    texts = [
        replace(finding, limit="", holds=None) if "score" in finding.what else finding for finding in unchanged(found)
    ]
    return [
        *(replace(finding, what=f"without: {finding.what}") for finding in its.told),
        *texts,
        Finding(
            "the same, of its row's largest alone",
            f"{found.largest_relative:.1e}, above 1e-05 in {found.rows_above} rows; undisturbed, but each stream "
            f"alone: {alone.largest_relative:.1e}, above 1e-05 in {alone.rows_above} of {alone.rows:,}: float32's "
            "rounding, which depends on the rows that are computed together",
        ),
        Finding(*its.from_exact),
    ]


def _survived(asked: Sequence[Any], rounds: int, *arguments: str) -> Survived:
    """Ask three servers, kill each once, and compare; `arguments` are the servers'."""
    with served(*arguments) as server:
        undisturbed = asyncio.run(_streams([server.address], asked, 1))[0]
        alone = [asyncio.run(_streams([server.address], [keywords], 1))[0][0] for keywords in asked]
    rng = random.Random(0)
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    kills: list[float] = []
    with ExitStack() as stack:
        servers = [stack.enter_context(served(*arguments, address=address)) for address in addresses]

        def kill_each() -> None:
            for place in rng.sample(range(3), 3):
                time.sleep(rng.uniform(1.0, 3.0))
                kills.append(time.monotonic())
                servers[place].process.kill()
                servers[place].process.wait()
                servers[place] = stack.enter_context(served(*arguments, address=addresses[place]))

        killer = threading.Thread(target=kill_each)
        killer.start()
        runs = asyncio.run(_streams(addresses, asked, rounds, until=lambda: not killer.is_alive()))
        killer.join()
    exact = _exactly(undisturbed)
    return Survived(
        num_runs=len(runs),
        num_kills=len(kills),
        found=compared([pair for run in runs for pair in zip(run, undisturbed, strict=True)]),
        rounding=compared(list(zip(alone, undisturbed, strict=True))),
        exact=compared([pair for run in runs for pair in zip(run, exact, strict=True)]),
        undisturbed=compared(list(zip(undisturbed, exact, strict=True))),
    )


def _exactly(explanations: Sequence[Explanation | None]) -> list[Explanation | None]:
    """Their tokens, explained in float64."""
    with served("--dtype", "float64") as server, Client(server.address) as client:
        return [
            its
            and client.attribute(
                its.started.prompt_text, completion_ids=[token.id for token in its.tokens], timeout=CALL_SECONDS
            )
            for its in explanations
        ]


async def _streams(
    targets: Sequence[str], asked: Sequence[Any], rounds: int, until: Callable[[], bool] = lambda: True
) -> list[list[Explanation | None]]:
    """All of them together, so many times, and again until something is over; None for one that failed."""
    runs: list[list[Explanation | None]] = []
    async with AsyncClient(targets) as client:

        async def one(keywords: Any) -> Explanation | None:
            try:
                explanation = await client.explain(timeout=CALL_SECONDS, **keywords)
            except GradellmError:
                return None
            return explanation if explanation.finished is not None else None

        while len(runs) < rounds or not until():
            runs.append(list(await asyncio.gather(*map(one, asked))))
    return runs


def client(scale: float) -> list[Finding]:
    """What the SDK costs its process, beside a server that only plays."""
    count, num_scores = max(100, round(2000 * scale)), 2000
    with played(count, num_scores, 0.0) as address, grpc.insecure_channel(address) as channel, Client(address) as sdk:

        def bare() -> float:
            began = time.process_time()
            for _ in generate_call(channel)(explained(count)):
                pass
            return time.process_time() - began

        def whole() -> float:
            began = time.process_time()
            for _ in sdk.generate("Once upon a time"):
                pass
            return time.process_time() - began

        seconds = [(bare(), whole()) for _ in range(16)][1:]  # the first warms up
        beyond = statistics.median(1e6 * (theirs - ours) / count for ours, theirs in seconds)
        alone = statistics.median(1e6 * ours / count for ours, _ in seconds)
    held, num_streams, num_tokens = 0, 200, 40
    with played(num_tokens, 200, 0.25) as address:
        began = time.monotonic()
        runs = asyncio.run(_streams([address], [{"prompt": "Once", "max_new_tokens": num_tokens}] * num_streams, 1))
        held = sum(one is not None and len(one.tokens) == num_tokens for one in runs[0])
        took = time.monotonic() - began
    return [
        Finding(
            f"processor time of a token and its {num_scores:,} scores, beyond the bare stub's {alone:.0f} us",
            f"{beyond:.0f} us",
            "100 us",
            beyond < 100,
        ),
        Finding(
            f"streams that one AsyncClient held at once, each of {num_tokens} tokens in {0.25 * num_tokens:g} s",
            f"{held}, done after {took:.1f} s",
            "200",
            held == num_streams,
        ),
    ]


def soak(minutes: float) -> list[Finding]:
    """Mixed traffic."""
    seconds = 60.0 * minutes
    samples: list[tuple[float, int]] = []
    with served() as server, load("mixed", server.address, seconds=seconds, streams=8) as process:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            time.sleep(min(2.0, seconds / 20))
            samples.append((time.monotonic() - began, server.memory_bytes))
        found = result(process, 180)
        live = server.health("live") == SERVING
    later = [memory for at, memory in samples if at >= min(60.0, seconds / 2)]
    tenth = max(1, len(later) // 10)
    first, last = statistics.mean(later[:tenth]), statistics.mean(later[-tenth:])
    growth = last / first - 1
    calls = ", ".join(f"{number:,} {name}" for name, number in found["codes"].items())
    return [
        Finding("traffic", f"{minutes:g} minutes: {calls}; wrong ones: {found['wrong']}"),
        Finding("memory, first minute to end", f"{growth:+.2%} of {first / MIB:.0f} MiB", "flat, within 2%",
                abs(growth) <= 0.02),
        Finding("streams that did not finish", str(found["unfinished"]), "none", found["unfinished"] == 0 and live),
    ]  # fmt: skip
