"""`python -m trials.gpu`: a server on a GPU, with a model of a real one's size, from its start to its end.

A checkpoint with random weights is made, served by a process of its own, and met through the SDK. What was found is
written to gpu.json and gpu.md. Where there is no GPU nothing is done; `--device cpu --shape 125m` rehearses all but
what takes a GPU's memory away.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import psutil
import torch

from gradellm import AsyncClient, GradellmError
from gradellm_bench.models import SHAPES, random_llama
from trials.report import Finding, percentile, table
from trials.serving import SERVING, Served, free_port, load, result

DOCS = Path(__file__).parents[2] / "docs"
START_SECONDS = 300.0
CALL_SECONDS = 120.0
HOLD_SECONDS = 25.0  # for which another process has the GPU's memory
PROMPT, LONG_PROMPT = 128, 1024  # tokens
GIB = 2**30
WORDS = 1000  # of the vocabulary that prompts are made of


@dataclass
class Heard:
    """One stream.

    Attributes:
        first: seconds to the first token; None where none came.
        gaps: seconds between tokens.
        lags: seconds from a token to its scores.
        reason: why it failed; empty where it finished.
        seconds: all of it.
    """

    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0


@dataclass
class Started:
    """A server that was started.

    Attributes:
        served: the process and its addresses.
        metrics: where metrics are.
        log: lines of its standard error, with seconds from the start.
        ready: seconds until it was ready.
        checks: health checks meanwhile: seconds from the start, service, status or code, and seconds it took.
    """

    served: Served
    metrics: str
    log: list[tuple[float, str]]
    ready: float = 0.0
    checks: list[tuple[float, str, str, float]] = field(default_factory=list)


def words(count: int, seed: int) -> str:
    """A prompt of so many tokens of the random model, a word each."""
    draw = random.Random(seed)
    return " ".join(f"w{draw.randint(1, WORDS)}" for _ in range(count))


async def hear(client: AsyncClient, prompt: str, tokens: int, **keywords: Any) -> Heard:
    """Read one stream to its end."""
    heard, times = Heard(), [time.perf_counter()]
    try:
        async for event in client.generate(prompt, max_new_tokens=tokens, timeout=CALL_SECONDS, seed=1, **keywords):
            if event.token is not None:
                times.append(time.perf_counter())
            elif event.attribution is not None:
                heard.lags.append(time.perf_counter() - times[event.attribution.token_index + 1])
    except GradellmError as error:
        heard.reason = error.reason or type(error).__name__
    heard.seconds = time.perf_counter() - times[0]
    if len(times) > 1:
        heard.first = times[1] - times[0]
        heard.gaps = [after - before for before, after in pairwise(times[1:])]
    return heard


async def together(
    address: str, count: int, tokens: int, prompt_tokens: int = PROMPT, seed: int = 0, **keywords: Any
) -> tuple[list[Heard], float]:
    """So many streams at once, each with a prompt of its own; and the seconds from the first token to the last end."""
    async with AsyncClient(address, retry=None) as client:
        began = time.perf_counter()
        heard = await asyncio.gather(
            *(hear(client, words(prompt_tokens, 1000 * seed + i), tokens, **keywords) for i in range(count))
        )
        took = time.perf_counter() - began - min((its.first or 0.0 for its in heard), default=0.0)
    return list(heard), took


def milliseconds(seconds: float) -> str:
    """In words."""
    return f"{1e3 * seconds:.1f} ms"


def gaps_of(heard: Sequence[Heard]) -> list[float]:
    """All streams' gaps."""
    return [gap for its in heard for gap in its.gaps]


def spread(values: Sequence[float]) -> str:
    """Median, 99th percentile and largest, in words."""
    if not values:
        return "none"
    figures = (statistics.median(values), percentile(values, 99), max(values))
    return " / ".join(f"{1e3 * figure:.1f}" for figure in figures) + " ms"


# The server as a process --------------------------------------------------------------------------------------------


def make(folder: Path, shape: str, device: torch.device) -> None:
    """Save a random Llama of a named shape, with a tokenizer that has a word for each token."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, tokenizer = random_llama(shape, dtype=dtype, device=device)
    model.save_pretrained(folder, max_shard_size="4GB")
    tokenizer.save_pretrained(folder)


def command_of(model: Path | None, device: str, *arguments: str) -> list[str]:
    """Of a server."""
    named = [] if model is None else ["--model", str(model)]
    return [sys.executable, "-m", "gradellm_server", *named, "--device", device, *arguments]


@contextmanager
def started(model: Path, device: str, log: Path, *arguments: str) -> Iterator[Started]:
    """A server that is ready, with what was seen of it from its first moment on; its log goes to a file, too."""
    address, health, metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
    listening = ["--listen", address, "--health-port", health, "--metrics-listen", metrics]
    began = time.monotonic()
    process = subprocess.Popen(
        command_of(model, device, *listening, *arguments),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    its = Started(Served(process, address, health), metrics, [])
    stderr = process.stderr
    assert stderr is not None

    def read() -> None:
        with log.open("w") as file:
            for line in stderr:
                its.log.append((time.monotonic() - began, line.rstrip()))
                print(f"{its.log[-1][0]:7.1f} {its.log[-1][1]}", file=file, flush=True)

    threading.Thread(target=read, daemon=True).start()
    try:
        with grpc.insecure_channel(health) as channel:
            while not _is_ready(its, channel, began):
                if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                    raise RuntimeError("the server did not start: " + "\n".join(line for _, line in its.log[-20:]))
                time.sleep(0.1)
        its.ready = time.monotonic() - began
        yield its
    finally:
        process.kill()
        process.wait()


def _is_ready(its: Started, channel: grpc.Channel, began: float) -> bool:
    """Ask for both healths, and note what came."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub: Any = health_pb2_grpc.HealthStub(channel)
    statuses = {}
    for service in ("live", "ready"):
        asked = time.monotonic()
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
            told = "SERVING" if status == SERVING else "NOT_SERVING"
        except grpc.RpcError as error:
            told = str(getattr(error, "code")().name)  # noqa: B009 (grpc's stub does not know it)
        statuses[service] = told
        its.checks.append((asked - began, service, told, time.monotonic() - asked))
    return statuses["ready"] == "SERVING"


def scraped(address: str) -> dict[str, float]:
    """Metrics without labels, by name; of others, only that they are there."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"(gradellm_\w+)(\{.*\})? (\S+)", line):
            found[match[1]] = float(match[3])
    return found


# Trials --------------------------------------------------------------------------------------------------------------


def refused_start(model: Path | None, device: str, memory: str) -> list[Finding]:
    """More memory for keys and values than there is."""
    began = time.monotonic()
    ended = subprocess.run(
        command_of(model, device, "--listen", "127.0.0.1:0", "--metrics-listen", "none", "--kv-memory", memory),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    last = (ended.stderr.strip().splitlines() or [""])[-1]
    return [
        Finding(
            f"--kv-memory {memory}",
            f"exit {ended.returncode} after {time.monotonic() - began:.0f} s: {last}",
            "one line that says so, exit 2",
            ended.returncode == 2 and last.startswith("error: ") and "--kv-memory" in last,
        )
    ]


def start(its: Started) -> list[Finding]:
    """How it came up."""
    stages = [(at, line) for at, line in its.log if line.startswith("gradellm: ")]
    told = "; ".join(f"{at:.0f} s {line.removeprefix('gradellm: ')[:60]}" for at, line in stages)
    live = Counter(told for _, service, told, _ in its.checks if service == "live")
    answered = [at for at, service, told, _ in its.checks if service == "live" and told == "SERVING"]
    later = [check for check in its.checks if answered and check[0] >= answered[0]]
    gone = [check for check in later if check[1] == "live" and check[2] != "SERVING"]
    took = [seconds for *_, seconds in later]
    return [
        Finding("ready", f"after {its.ready:.1f} s"),
        Finding("its stages", told),
        Finding("live while it starts, once it answers", f"{len(gone)} times not, of {live.total()}", "always",
                not gone),
        Finding("health checks meanwhile, median / 99th percentile / largest", spread(took), "99th percentile 1 s",
                percentile(took, 99) < 1),
    ]  # fmt: skip


def first_streams(its: Started, tokens: int) -> list[Finding]:
    """Streams one after the other, on a server that nobody has used."""
    findings: list[Finding] = []
    for title, keywords in (
        ("first explained stream", {"attribution": "paper"}),
        ("second", {"attribution": "paper"}),
        ("in chunks", {"attribution": "paper", "delivery": "chunked"}),
        ("without explanation", {"attribution": None}),
    ):
        (heard,), _ = asyncio.run(together(its.served.address, 1, tokens, seed=len(findings), **keywords))
        value = f"{milliseconds(heard.first or 0)}; {spread(heard.gaps)}"
        if heard.lags:
            value += f"; {milliseconds(statistics.median(heard.lags))}"
        findings.append(
            Finding(
                f"{title}: to its first token; between tokens, median / 99th / largest; from token to scores",
                value + (f"; {heard.reason}" if heard.reason else ""),
                "finishes",
                not heard.reason,
            )
        )
    return findings


def concurrent(its: Started, count: int, tokens: int) -> list[Finding]:
    """Many streams at once, health asked meanwhile."""
    findings = []
    how: list[tuple[str, dict[str, Any]]] = [
        ("explained, the first time", {"attribution": "paper"}),
        ("explained", {"attribution": "paper"}),
        ("explained in chunks, the first time", {"attribution": "paper", "delivery": "chunked"}),
        ("explained in chunks", {"attribution": "paper", "delivery": "chunked"}),
        ("without explanation, the first time", {"attribution": None}),
        ("without explanation", {"attribution": None}),
    ]
    heartbeat = 0.0
    is_over = threading.Event()

    def watch() -> None:
        nonlocal heartbeat
        while not is_over.wait(0.2):
            heartbeat = max(heartbeat, scraped(its.metrics)["gradellm_engine_heartbeat_age_seconds"])

    watching = threading.Thread(target=watch)
    watching.start()
    with load("probes", its.served.health_address, seconds=5, services=["ready", "live"]) as prober:
        for seed, (title, keywords) in enumerate(how, start=10):
            heard, took = asyncio.run(together(its.served.address, count, tokens, seed=seed, **keywords))
            wrong = Counter(one.reason for one in heard if one.reason)
            speed = sum(len(one.gaps) + 1 for one in heard) / took
            findings.append(
                Finding(
                    f"{count} streams {title}: tokens a second; between tokens, median / 99th / largest; to the first",
                    f"{speed:,.0f}; {spread(gaps_of(heard))}; {spread([one.first for one in heard if one.first])}"
                    + (f"; {dict(wrong)}" if wrong else ""),
                    "no errors",
                    not wrong,
                )
            )
            if seed == 10:
                probed = result(prober, 60)
    is_over.set()
    watching.join()
    health = probed["seconds"]
    others = {name: number for name, number in probed["statuses"].items() if name != str(SERVING)}
    return [
        *findings,
        Finding("health checks beside the first of them", spread(health), "99th percentile 1 s, always SERVING",
                percentile(health, 99) < 1 and not others),
        Finding("longest that the engine was seen in one pass", f"{heartbeat:.1f} s", "120 s", heartbeat < 120),
    ]  # fmt: skip


def metrics(its: Started) -> list[Finding]:
    """What Prometheus is told."""
    found = scraped(its.metrics)
    shown = ("kv_cache_tokens", "max_running_requests", "generation_tokens_total", "attribution_tokens_total")
    values = ", ".join(f"{name} {found.get(f'gradellm_{name}', float('nan')):,.0f}" for name in shown)
    memory = {name: value for name, value in found.items() if "device_memory" in name}
    told = ", ".join(f"{name} {value / GIB:.1f} GiB" for name, value in memory.items()) or "none"
    return [Finding("metrics", f"{len(found)} names; {values}"), Finding("of them, of the GPU's memory", told)]


def evaluation(its: Started, tokens: int, rounds: int, **question: Any) -> list[Finding]:
    """An evaluation alone, and what interactive streams notice of one."""
    address = its.served.address
    question = {"max_new_tokens": 32, "methods": ["grad_ellm", "knockout", "random"], **question}

    async def alone() -> tuple[int, float]:
        async with AsyncClient(address, retry=None) as client:
            began, count = time.perf_counter(), 0
            async for event in client.evaluate_events(words(PROMPT, 1), **question):
                count += event.item is not None
            return count, time.perf_counter() - began

    async def beside(streams: int) -> tuple[list[float], list[float], int]:
        """Gaps without and with an evaluation, in turns, and the items that came meanwhile."""
        without: list[float] = []
        with_it: list[float] = []
        items = 0

        async def evaluate(client: AsyncClient, seed: int) -> None:
            nonlocal items
            while True:
                async for event in client.evaluate_events(words(PROMPT, seed), stride=1, **question):
                    items += event.item is not None

        async def some(client: AsyncClient, seed: int) -> list[float]:
            prompts = [words(PROMPT, 100 * seed + i) for i in range(streams)]
            heard = await asyncio.gather(*(hear(client, prompt, tokens, attribution="paper") for prompt in prompts))
            return gaps_of(heard)

        async with AsyncClient(address, retry=None) as client:
            for turn in range(-1, rounds):
                gaps = await some(client, 50 + 2 * turn)
                evaluating = asyncio.create_task(evaluate(client, turn + 7))
                await asyncio.sleep(0.5)  # it is under way
                more = await some(client, 51 + 2 * turn)
                evaluating.cancel()
                await asyncio.gather(evaluating, return_exceptions=True)
                if turn >= 0:
                    without += gaps
                    with_it += more
        return without, with_it, items

    asyncio.run(alone())  # the first finds out what passes take
    count, seconds = asyncio.run(alone())
    findings = [Finding("an evaluation alone: items a second", f"{count / seconds:.1f} ({count} in {seconds:.1f} s)")]
    for streams in (1, 8):
        without, with_it, items = asyncio.run(beside(streams))
        means = statistics.mean(without), statistics.mean(with_it)
        tails = percentile(without, 99), percentile(with_it, 99)
        ratios = means[1] / means[0], tails[1] / tails[0]
        findings.append(
            Finding(
                f"gaps of {streams} explained stream{'s' * (streams > 1)} without and with an evaluation beside: mean; "
                "99th percentile",
                f"{1e3 * means[0]:.2f} and {1e3 * means[1]:.2f} ms, {ratios[0]:.2f} times; "
                f"{1e3 * tails[0]:.2f} and {1e3 * tails[1]:.2f} ms, {ratios[1]:.2f} times; "
                f"of {len(with_it):,}; {items} items meanwhile",
                "1.5 times",
                max(ratios) <= 1.5,
            )
        )
    return findings


def does_not_fit(its: Started) -> list[Finding]:
    """Requests that are larger than what the server has."""

    async def asked() -> list[str]:
        async with AsyncClient(its.served.address, retry=None) as client:
            info = await client.server_info()
            most = info.limits.max_prompt_tokens
            said = []
            for what in (
                client.explain(words(most + 1, 0), max_new_tokens=1),
                client.explain(words(most - 10, 0), max_new_tokens=1000),
                client.attribute(words(most - 600, 0), completion_ids=[5] * 512, method="saliency"),
            ):
                try:
                    await what
                    said.append("answered")
                except GradellmError as error:
                    said.append(f"{type(error).__name__}: {str(error)[:150]}")
            return said

    titles = ("a prompt that is too long", "a completion that is", "a method's work that is too large")
    said = asyncio.run(asked())
    return [
        Finding(title, value, "refused with the limit", value.startswith("InvalidRequestError"))
        for title, value in zip(titles, said, strict=True)
    ]


def out_of_memory(its: Started, count: int, tokens: int) -> list[Finding]:
    """Another process takes nearly all the GPU's memory while requests come."""
    address = its.served.address

    async def heavy() -> str:
        """A request that needs gigabytes of its own."""
        async with AsyncClient(address, retry=None) as client:
            try:
                await client.attribute(
                    words(600, 3), completion_ids=list(range(5, 37)), method="saliency", timeout=CALL_SECONDS
                )
            except GradellmError as error:
                return error.reason or f"{type(error).__name__}: {error}"
            return "OK"

    def all_of(seed: int, prompt_tokens: int) -> tuple[str, list[Heard]]:
        heard, _ = asyncio.run(
            together(address, count, tokens, prompt_tokens, seed, attribution="paper", delivery="per_token")
        )
        reasons = Counter(one.reason or "OK" for one in heard)
        return ", ".join(f"{number} {reason}" for reason, number in reasons.items()), heard

    before, (_, calm) = asyncio.run(heavy()), all_of(30, PROMPT)
    log_before = len(its.log)
    hog = subprocess.Popen(
        [sys.executable, "-m", "trials.gpu", "--hold-memory", str(HOLD_SECONDS)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert hog.stdout is not None
        left = json.loads(hog.stdout.readline())["free_bytes"]
        with load("probes", its.served.health_address, seconds=8, services=["ready", "live"]) as prober:
            during = asyncio.run(heavy())
            told, _ = all_of(31, PROMPT)
            told_long, _ = all_of(32, LONG_PROMPT)
            probed = result(prober, 60)
        is_held = hog.poll() is None
        hog.wait(HOLD_SECONDS + 60)
    finally:
        hog.kill()
        hog.wait()
    after, (told_after, again) = asyncio.run(heavy()), all_of(33, PROMPT)
    told_again, _ = all_of(34, LONG_PROMPT)
    warned = Counter(
        re.sub(r"\d+", "N", line)[:140] for _, line in its.log[log_before:] if "WARNING" in line or "rror" in line
    )
    is_well = all(its.served.health(service) == SERVING for service in ("live", "ready"))
    allowed = {"OK", "OUT_OF_MEMORY"}
    speeds = [statistics.median(gaps_of(heard)) for heard in (calm, again)]
    seconds = probed["seconds"]
    return [
        Finding("a request of some GiB, before", before, "OK", before == "OK"),
        Finding("memory that another process has left", f"{left / 2**20:,.0f} MiB, held on: {is_held}"),
        Finding("the same request then", during, "OUT_OF_MEMORY", during == "OUT_OF_MEMORY"),
        Finding(f"{count} streams after {PROMPT} tokens then", told, "OK or OUT_OF_MEMORY",
                {part.split()[1] for part in told.split(", ")} <= allowed),
        Finding(f"{count} streams after {LONG_PROMPT} tokens then", told_long, "OK or OUT_OF_MEMORY",
                {part.split()[1] for part in told_long.split(", ")} <= allowed),
        Finding("health checks meanwhile", spread(seconds), "99th percentile 1 s", percentile(seconds, 99) < 1),
        Finding("what the log says", "; ".join(f"{n} times {line}" for line, n in warned.items()) or "nothing"),
        Finding("the large request, once memory is free again", after, "OK", after == "OK"),
        Finding("the streams then", f"{told_after}; {told_again}", "all OK",
                {told_after, told_again} == {f"{count} OK"}),
        Finding("their median gap, before and after", " and ".join(map(milliseconds, speeds)), "+20%",
                speeds[1] < 1.2 * speeds[0]),
        Finding("live and ready then", str(is_well), "both", is_well),
    ]  # fmt: skip


def hold_memory(seconds: float) -> None:
    """Take all the GPU's memory there is, and what becomes free, for so long."""
    held, until, is_told = [], time.monotonic() + seconds, False
    size = GIB
    while time.monotonic() < until:
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            if size > 2**21:
                size //= 2
                continue
            if not is_told:
                print(json.dumps({"free_bytes": torch.cuda.mem_get_info()[0]}), flush=True)
                is_told = True
            time.sleep(0.02)


def drained(its: Started, count: int, tokens: int) -> list[Finding]:
    """SIGTERM under streams."""

    async def run() -> tuple[list[Heard], float]:
        async with AsyncClient(its.served.address, retry=None) as client:
            streams = [
                asyncio.create_task(hear(client, words(PROMPT, 9000 + i), tokens, attribution="paper"))
                for i in range(count)
            ]
            await asyncio.sleep(1.0)
            began = time.monotonic()
            its.served.process.send_signal(signal.SIGTERM)
            heard = await asyncio.gather(*streams)
            code = await asyncio.to_thread(its.served.process.wait, 60)
            assert code is not None
            return list(heard), time.monotonic() - began

    heard, took = asyncio.run(run())
    lost = [one for one in heard if one.reason or len(one.gaps) != tokens - 1]
    status = its.served.process.returncode
    return [
        Finding(f"SIGTERM under {count} streams of {tokens} tokens: lost", str(len(lost)), "none", not lost),
        Finding("exit", f"{status}, after {took:.1f} s", "0, within 10 s", status == 0 and took < 12),
    ]


# All of it -----------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run the trials; 1 where something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m trials.gpu", description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3-8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--streams", type=int, default=32, help="that run at once (default: 32)")
    parser.add_argument("--new-tokens", type=int, default=128, help="of each (default: 128)")
    parser.add_argument("--rounds", type=int, default=4, help="of streams beside an evaluation (default: 4)")
    parser.add_argument("--scratch", type=Path, help="where the checkpoint is made (default: a folder that is removed)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where gpu.json and gpu.md go")
    parser.add_argument("--parts", nargs="+", help="their titles (default: all)")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="where the server's own log goes")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--hold-memory", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.device == "cpu"):
        print("there is no GPU: nothing is tried", file=sys.stderr)
        return 0
    if options.hold_memory:
        hold_memory(options.hold_memory)
        return 0
    if options.make:
        make(options.make, options.shape, torch.device(options.device))
        return 0
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was started is ended
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        return trial(options, Path(folder))


def trial(options: argparse.Namespace, folder: Path) -> int:
    """All of them; what is found is written after each."""
    device, holds = options.device, True
    options.docs.mkdir(exist_ok=True)
    path = options.docs / "gpu.json"
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def found(title: str, findings: Callable[[], list[Finding]]) -> None:
        nonlocal holds
        if options.parts and title not in options.parts:
            return
        began = time.monotonic()
        try:
            its = findings()
        except Exception:  # what else there is to find is found
            its = [Finding("broke off", traceback.format_exc()[-1500:], "", False)]
        holds &= all(finding.holds is not False for finding in its)
        document[title] = {
            "at": datetime.now(UTC).isoformat(timespec="minutes"),
            "machine": _machine(device),
            "model": f"{options.shape}, {options.streams} streams at most",
            "seconds": round(time.monotonic() - began),
            "findings": [asdict(finding) for finding in its],
        }
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        (options.docs / "gpu.md").write_text(page(document))
        print(part(title, document[title]), flush=True)

    if device != "cpu":
        found("Memory that is not there", lambda: refused_start(None, device, "200GiB"))
    began = time.monotonic()
    made = [sys.executable, "-m", "trials.gpu", "--make", str(folder), "--shape", options.shape, "--device", device]
    subprocess.run(made, check=True, timeout=START_SECONDS)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"a checkpoint of {size / 1e9:.1f} GB in {time.monotonic() - began:.0f} s", flush=True)
    count, tokens = options.streams, options.new_tokens
    question: dict[str, Any] = {"pis": [0.5], "samples": 1} if device == "cpu" else {}
    with started(folder, device, options.log, "--max-running", str(count)) as its:
        found("Start", lambda: start(its))
        found("The first streams", lambda: first_streams(its, tokens))
        found("Many streams", lambda: concurrent(its, count, tokens))
        found("Requests that do not fit", lambda: does_not_fit(its))
        if device != "cpu":
            found("Memory that runs out", lambda: out_of_memory(its, count, tokens))
        found("Evaluations", lambda: evaluation(its, tokens, options.rounds, **question))
        found("Metrics", lambda: metrics(its))
        found("Stop", lambda: drained(its, 16, 2 * tokens))
    return 0 if holds else 1


def _machine(device: str) -> str:
    named = (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    memory = f"{psutil.virtual_memory().total / GIB:.0f} GiB of memory"
    if device == "cpu":
        return f"{named}, {memory}"
    total = torch.cuda.get_device_properties(0).total_memory
    return f"{torch.cuda.get_device_name()} of {total / GIB:.0f} GiB, {named}"


def page(document: dict[str, Any]) -> str:
    """All that was found, as Markdown."""
    head = (
        "# A server on a GPU\n\n"
        "What must hold of it, found by `python -m trials.gpu` (in tests/): the load comes through the SDK from a\n"
        "process on the same machine. Models have a real one's shape and random weights; prompts are of "
        f"{PROMPT} tokens where\nnothing else is said.\n"
    )
    return head + "".join(part(title, its) for title, its in document.items())


def part(title: str, its: dict[str, Any]) -> str:
    """One trial, as Markdown; what a person noted of it in the JSON stands below."""
    caption = f"{its['at']}, {its['model']}; {its['machine']}; {its['seconds']} s."
    return table(title, caption, its["findings"]) + (f"\n{its['note']}\n" if "note" in its else "")


if __name__ == "__main__":
    sys.exit(main())
