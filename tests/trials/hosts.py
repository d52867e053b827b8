"""Replicas as hosts of their own, found by one name: cut off, killed, added, mended, far away."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradellm import Explanation
from trials.diff import compared, unchanged
from trials.network import ENVIRONMENT, Host, Network, why_not
from trials.report import Finding
from trials.serving import START_SECONDS, served
from trials.streams import Call, read

STREAMING_RPCS, FAR_STREAMS, TOKENS = 48, 12, 32
NAME, PORT, METRICS_PORT = "models.test", 50051, 9090
ADDED_SECONDS = 30.0  # in which a new host must have load
UNEVEN = 0.2  # of an even share, at most
SILENT_SECONDS = 30.0 + 5.0  # keepalive's 20 s and 10 s, and the way to another host
FAR_SECONDS, FAR_LOSS = 0.05, 0.05  # each way
LOAD_SECONDS = 600.0  # at most
SCORES = 1e-4  # what rows may differ by; streams that nobody disturbs differ by some 1e-5 in other company

ASKED: list[dict[str, Any]] = [
    {
        "prompt": f"Once upon a time, there was a {('cat', 'dog', 'bear', 'girl')[place % 4]} who",
        "max_new_tokens": TOKENS,
        "num_alternatives": 2,
        "seed": place,
        "temperature": 1.0 if place % 2 else 0.0,
        "delivery": "chunked" if place % 4 >= 2 else "per_token",
    }
    for place in range(STREAMING_RPCS)
]
ALONE: dict[str, Any] = {"prompt": "Once", "max_new_tokens": 200, "num_alternatives": 2}


def hosts(scale: float) -> list[Finding]:
    """48 callers and four hosts; one is added, one cut off in silence, one killed. Then one stream, and a far host."""
    if reason := why_not():
        return [Finding("not tried", reason)]
    with tempfile.TemporaryDirectory() as folder, Network() as network:
        site = Site(network, Path(folder))
        undisturbed = site.undisturbed()
        return [
            *_many(site, undisturbed, max(8.0, 20.0 * scale)),
            *_alone(site, undisturbed),
            *_far(site, undisturbed),
        ]


def _many(site: Site, undisturbed: Sequence[Explanation], seconds: float) -> list[Finding]:
    """Callers without pause; `seconds` is how long calls are counted, each time."""
    first = [site.server(f"host{number}", 10 + number) for number in range(1, 5)]
    for server in first:
        server.wait_until_ready()
    cut, killed = first[:2]
    site.tell(first)
    even: dict[str, list[int]] = {}
    with Watch(first) as watch, site.load(f"dns:///{NAME}:{PORT}", "many", ASKED) as load:
        watch.until(lambda: watch.total >= STREAMING_RPCS, START_SECONDS)
        even[f"the first {STREAMING_RPCS} at once, of a client that has just connected"] = watch.counts(first)
        even["over 4 hosts"] = watch.during(seconds, first)

        added = site.server("host5", 15)
        added.wait_until_ready()
        watch.servers.append(added)
        site.tell([*first, added])
        found_seconds = watch.until(lambda: watch.count(added) > 0, 3 * ADDED_SECONDS)
        even["over 5, one of them new"] = watch.during(seconds, [*first, added])

        disturbed_at = time.monotonic()
        cut.host.cut()
        time.sleep(5)
        killed.process.kill()
        left = [*first[2:], added]
        site.tell([cut, *left])  # as an orchestrator does, which does not know yet of the one that is cut off
        time.sleep(max(0.0, disturbed_at + SILENT_SECONDS - time.monotonic()))
        even["over the 3 that are left"] = watch.during(seconds, left)

        before = watch.count(cut)
        cut.host.mend()
        mended_seconds = watch.until(lambda: watch.count(cut) > before, 3 * ADDED_SECONDS)
    calls, answers = read(load)
    lost = [call for call in calls if call.answer is None]
    silences = [call.silent_seconds for call in calls if call.ended > disturbed_at]
    silence = max(silences)
    pairs = [(_of(call, answers), undisturbed[call.request]) for call in calls]
    early = compared([pair for pair, call in zip(pairs, calls, strict=True) if call.ended < disturbed_at])
    found = compared(pairs)
    whole_seconds = max(call.ended for call in calls) - min(call.began for call in calls)
    return [
        Finding(
            "streams",
            f"{len(calls):,} by {STREAMING_RPCS} callers in {whole_seconds:.0f} s, on 4 hosts behind one name, with "
            f"{site.names.num_queries} questions to its name server; one added, one cut off in silence, one killed",
        ),
        Finding("streams lost", f"{len(lost)}{f': {lost[0].error}' if lost else ''}", "none", not lost),
        *(
            Finding(
                f"calls by host, {name}: furthest from even",
                f"{_furthest(counts):.0%} ({', '.join(map(str, counts))})",
                f"{UNEVEN:.0%}",
                _furthest(counts) <= UNEVEN,
            )
            for name, counts in even.items()
        ),
        Finding(
            "load on the new host, after the name had its address",
            f"{found_seconds:.1f} s",
            f"{ADDED_SECONDS:.0f} s",
            found_seconds <= ADDED_SECONDS,
        ),
        Finding(
            "longest silence of a stream, once a host was cut off and another one killed",
            f"{silence:.1f} s, of {sum(one >= 5 for one in silences)} that waited for 5 s or more",
            f"{SILENT_SECONDS:.0f} s",
            silence <= SILENT_SECONDS,
        ),
        Finding("load on the host that was cut off, after its cable was back", f"{mended_seconds:.1f} s"),
        *unchanged(found, SCORES),
        Finding("the same, of those that ended before", f"{early.largest:.1e}, of {early.rows:,} rows"),
    ]


def _alone(site: Site, undisturbed: Sequence[Explanation]) -> list[Finding]:
    """One long stream, whose host is cut off while nobody sends anything there: keepalive alone can notice."""
    running = [server for server in site.servers if server.process.poll() is None]
    site.tell(running)
    with Watch(running) as watch:
        time.sleep(1)
        before = {server: watch.count(server) for server in running}
        with site.load(f"dns:///{NAME}:{PORT}", "alone", [ALONE], 0.0) as load:
            watch.until(lambda: any(watch.count(server) > before[server] for server in running), START_SECONDS)
            host = next(server.host for server in running if watch.count(server) > before[server])
            time.sleep(0.2)  # for some tokens
            host.cut()
    host.mend()
    (call,), answers = read(load)
    found = compared([(_of(call, answers), undisturbed[STREAMING_RPCS])])
    is_whole = not (found.broken or found.other_texts)
    return [
        Finding(
            f"one stream of {ALONE['max_new_tokens']} tokens alone, its host cut off: its silence",
            f"{call.silent_seconds:.1f} s; {'whole and unchanged' if is_whole else call.error or 'changed'}",
            f"{SILENT_SECONDS:.0f} s, whole",
            is_whole and call.silent_seconds <= SILENT_SECONDS,
        )
    ]


def _far(site: Site, undisturbed: Sequence[Explanation]) -> list[Finding]:
    """Streams to a host at the other end of a bad line, beside the same over a good one."""
    for server in site.servers:
        server.end()
    near, far = site.server("near", 21), site.server("far", 22, delay_seconds=FAR_SECONDS, loss=FAR_LOSS)
    pairs: list[tuple[Explanation | None, Explanation | None]] = []
    told: list[str] = []
    for server in (near, far):
        server.wait_until_ready()
    for server in (near, far):
        target = f"{server.host.address}:{PORT}"
        with site.load(target, server.host.name, ASKED[:FAR_STREAMS], 0.0) as load:
            pass
        calls, answers = read(load)
        pairs += [(_of(call, answers), undisturbed[call.request]) for call in calls]
        waits = statistics.median(call.silent_seconds for call in calls)
        whole = statistics.median(call.ended - call.began for call in calls)
        told.append(f"{whole:.1f} s, of which the longest wait for anything {waits:.1f} s")
    found = compared(pairs)
    line = f"{1000 * FAR_SECONDS:.0f} ms and {FAR_LOSS:.0%} loss each way"
    return [
        Finding(
            f"{FAR_STREAMS} streams over a line of {line}: median",
            f"{told[1]}; over a good line {told[0]}",
        ),
        Finding(
            "of these lost or changed",
            f"{found.broken + found.other_texts}, and {found.ties} at ties",
            "none but at ties",
            not found.broken and not found.other_texts,
        ),
    ]


def _of(call: Call, answers: Sequence[Explanation]) -> Explanation | None:
    return None if call.answer is None else answers[call.answer]


def _furthest(counts: Sequence[int]) -> float:
    """How far the furthest is from an even share, of that share."""
    share = sum(counts) / len(counts)
    return max(abs(count - share) for count in counts) / max(share, 1.0)


COUNTED = re.compile(
    r"""^gradellm_(?:rpc_requests_total\{[^}]*rpc="Generate"[^}]*\}|num_requests_(?:running|waiting)) (\S+)$""",
    re.MULTILINE,
)


class Served:
    """A server process on a host."""

    def __init__(self, network: Network, host: Host, folder: Path) -> None:
        self.host = host
        self._log = folder / f"{host.name}.log"
        command = [sys.executable, "-m", "gradellm_server", "--insecure", "--threads", "1"]
        command += ["--listen", f"{host.address}:{PORT}", "--metrics-listen", f"{host.address}:{METRICS_PORT}"]
        # Threads that spin would take the cores of the others; the load goes first.
        command = ["env", "GOMP_SPINCOUNT=10000", "nice", "-n", "5", *command]
        self.process = network.start(host, command, self._log)

    def wait_until_ready(self) -> None:
        """Until it says that it serves."""
        limit = time.monotonic() + START_SECONDS
        while "serving" not in self._log.read_text():
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"the server on {self.host.name} did not start: {self._log.read_text()}")
            time.sleep(0.1)

    def num_calls(self) -> int:
        """Streams that came to it: ended, running and waiting, as it tells Prometheus."""
        url = f"http://{self.host.address}:{METRICS_PORT}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
        return sum(int(float(number)) for number in COUNTED.findall(text))

    def end(self) -> None:
        """End it, at once."""
        self.process.kill()
        self.process.wait()


class Watch:
    """Counts the calls that come to each server, from its own host, so that it is seen where none can reach it."""

    def __init__(self, servers: Sequence[Served]) -> None:
        self.servers = list(servers)
        self._counts: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            for server in list(self.servers):
                try:
                    self._counts[server.host.name] = server.host.call(server.num_calls)
                except OSError:  # killed: its last count stays
                    continue

    @property
    def total(self) -> int:
        """Calls to all of them."""
        return sum(self._counts.values())

    def count(self, server: Served) -> int:
        """Calls that have come to it."""
        return self._counts.get(server.host.name, 0)

    def counts(self, servers: Sequence[Served]) -> list[int]:
        """Calls that have come to each."""
        return [self.count(server) for server in servers]

    def during(self, seconds: float, servers: Sequence[Served]) -> list[int]:
        """Calls that come to each in the next so many seconds."""
        before = self.counts(servers)
        time.sleep(seconds)
        return [now - then for now, then in zip(self.counts(servers), before, strict=True)]

    def until(self, holds: Callable[[], bool], limit_seconds: float) -> float:
        """Seconds until something holds; the limit where it does not."""
        began = time.monotonic()
        while not holds() and time.monotonic() - began < limit_seconds:
            time.sleep(0.02)
        return time.monotonic() - began


class Site:
    """A network with a name server and a client's host.

    Attributes:
        names: the name server.
        servers: those that were started.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        self._network, self._folder = network, folder
        self.names = network.names(network.host("names", 2), folder)
        self.servers: list[Served] = []
        self._client = network.host("client", 1)
        network.asks(self._client, self.names)

    def server(self, name: str, number: int, *, delay_seconds: float = 0.0, loss: float = 0.0) -> Served:
        """Start a server on a host of its own."""
        host = self._network.host(name, number, delay_seconds=delay_seconds, loss=loss)
        self.servers.append(Served(self._network, host, self._folder))
        return self.servers[-1]

    def tell(self, servers: Sequence[Served]) -> None:
        """The name stands for these from now on."""
        self.names.tell(NAME, [server.host.address for server in servers])

    def undisturbed(self) -> list[Explanation]:
        """What one server answers that nobody disturbs, in the order of what is asked: the many, then the one alone."""
        folder = self._folder / "undisturbed"
        with served() as server, _streams(server.address, folder, [*ASKED, ALONE], 0.0):
            pass
        calls, answers = read(folder)
        found = {call.request: _of(call, answers) for call in calls}
        whole = [answer for place in range(STREAMING_RPCS + 1) if (answer := found[place]) is not None]
        if len(whole) <= STREAMING_RPCS:
            raise RuntimeError("not even undisturbed streams all finish")
        return whole

    @contextmanager
    def load(
        self, target: str, name: str, asked: Sequence[Mapping[str, Any]], seconds: float = LOAD_SECONDS
    ) -> Iterator[Path]:
        """Callers on the client's host, until this is left; then their answers lie in the folder."""
        folder = self._folder / name
        with _streams(target, folder, asked, seconds, self._client):
            yield folder


@contextmanager
def _streams(
    target: str, folder: Path, asked: Sequence[Mapping[str, Any]], seconds: float, host: Host | None = None
) -> Iterator[None]:
    """A process of `trials.streams`; it is told to stop, and has written what came, when this is left."""
    folder.mkdir()
    (folder / "asked.jsonl").write_text("".join(json.dumps(keywords) + "\n" for keywords in asked))
    command = [sys.executable, "-m", "trials.streams", target, str(folder), str(seconds)]
    own = {name: text for name, text in ENVIRONMENT.items() if not name.lower().endswith("_proxy")}
    process = subprocess.Popen(
        command if host is None else host.command(*command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=own
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate(timeout=300)  # closes its standard input
        if process.returncode:
            raise RuntimeError(f"the load ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()
