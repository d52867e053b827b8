"""Replicas on hosts of a virtual network behind one DNS name, and callers on another host."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trials.network.namespaces import ENVIRONMENT, Host, Network
from trials.serving import START_SECONDS

NAME, PORT, METRICS_PORT = "models.test", 50051, 9090
LOAD_SECONDS = 600.0  # at most

CALL_METRICS = re.compile(
    r"""^gradellm_(?:rpc_requests_total\{[^}]*rpc="Generate"[^}]*\}|num_requests_(?:running|waiting)) (\S+)$""",
    re.MULTILINE,
)


class Replica:
    """A server process on a host."""

    def __init__(self, network: Network, host: Host, folder: Path) -> None:
        self.host = host
        self._log = folder / f"{host.name}.log"
        command = [sys.executable, "-m", "gradellm_server", "--insecure", "--threads", "1"]
        command += ["--listen", f"{host.address}:{PORT}", "--metrics-listen", f"{host.address}:{METRICS_PORT}"]
        # Spinning OpenMP threads would take the other replicas' cores; the load generator has priority.
        command = ["env", "GOMP_SPINCOUNT=10000", "nice", "-n", "5", *command]
        self.process = network.start(host, command, self._log)

    def wait_until_ready(self) -> None:
        """Wait until it logs that it serves."""
        limit = time.monotonic() + START_SECONDS
        while "serving" not in self._log.read_text():
            if self.process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"the server on {self.host.name} did not start: {self._log.read_text()}")
            time.sleep(0.1)

    def num_calls(self) -> int:
        """Generate calls so far, by its metrics: ended, running and queued."""
        url = f"http://{self.host.address}:{METRICS_PORT}/metrics"
        with urllib.request.urlopen(url, timeout=5) as response:
            text = response.read().decode()
        return sum(int(float(number)) for number in CALL_METRICS.findall(text))

    def kill(self) -> None:
        """Kill it (SIGKILL)."""
        self.process.kill()
        self.process.wait()


class CallCounter:
    """Counts each replica's calls while it is entered.

    It reads metrics from the replica's own host, so that it sees replicas that are cut off from the network.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = list(replicas)
        self._counts: dict[str, int] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> CallCounter:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.1):
            for replica in list(self.replicas):
                try:
                    self._counts[replica.host.name] = replica.host.call(replica.num_calls)
                except OSError:  # killed: keep its last count
                    continue

    @property
    def total(self) -> int:
        """Calls of all replicas."""
        return sum(self._counts.values())

    def count(self, replica: Replica) -> int:
        """A replica's calls so far."""
        return self._counts.get(replica.host.name, 0)

    def counts(self, replicas: Sequence[Replica]) -> list[int]:
        """Calls so far, by replica."""
        return [self.count(replica) for replica in replicas]

    def during(self, seconds: float, replicas: Sequence[Replica]) -> list[int]:
        """Calls in the next `seconds`, by replica."""
        before = self.counts(replicas)
        time.sleep(seconds)
        return [now - then for now, then in zip(self.counts(replicas), before, strict=True)]

    def wait_until(self, condition: Callable[[], bool], limit_seconds: float) -> float:
        """Seconds until a condition holds; the limit where it does not."""
        start = time.monotonic()
        while not condition() and time.monotonic() - start < limit_seconds:
            time.sleep(0.02)
        return time.monotonic() - start


class Cluster:
    """A virtual network with a DNS server and a client's host.

    Attributes:
        dns: the DNS server.
        replicas: all replicas that were started.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        self._network, self.folder = network, folder
        self.dns = network.dns_server(network.host("dns", 2), folder)
        self.replicas: list[Replica] = []
        self._client = network.host("client", 1)
        network.set_resolver(self._client, self.dns)

    def start_replica(self, name: str, number: int, *, delay_seconds: float = 0.0, loss: float = 0.0) -> Replica:
        """Start a server on a new host."""
        host = self._network.host(name, number, delay_seconds=delay_seconds, loss=loss)
        self.replicas.append(Replica(self._network, host, self.folder))
        return self.replicas[-1]

    def set_dns(self, replicas: Sequence[Replica]) -> None:
        """Make the DNS name resolve to these replicas."""
        self.dns.set_addresses(NAME, [replica.host.address for replica in replicas])

    @contextmanager
    def load(
        self, target: str, name: str, requests: Sequence[Mapping[str, Any]], seconds: float = LOAD_SECONDS
    ) -> Iterator[Path]:
        """Run callers on the client's host until the context is left; then the folder has their explanations."""
        folder = self.folder / name
        with run_callers(target, folder, requests, seconds, self._client):
            yield folder


@contextmanager
def run_callers(
    target: str, folder: Path, requests: Sequence[Mapping[str, Any]], seconds: float, host: Host | None = None
) -> Iterator[None]:
    """Run a `trials.load.callers` process; leaving the context stops it and waits until it has written its outcome."""
    folder.mkdir()
    (folder / "requests.jsonl").write_text("".join(json.dumps(keywords) + "\n" for keywords in requests))
    command = [sys.executable, "-m", "trials.load.callers", target, str(folder), str(seconds)]
    variables = {name: text for name, text in ENVIRONMENT.items() if not name.lower().endswith("_proxy")}
    process = subprocess.Popen(
        command if host is None else host.command(*command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=variables,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.communicate(timeout=300)  # closes its standard input
        if process.returncode:
            raise RuntimeError(f"the load generator ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()
