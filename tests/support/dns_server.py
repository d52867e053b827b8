"""A DNS server (dnsmasq) whose records tests change while it runs."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

PORT = 53
TTL_SECONDS = 5  # as CoreDNS serves a headless Service
START_SECONDS = 10.0


class DnsServer:
    """A context manager that runs dnsmasq with records set by `set_addresses`.

    Attributes:
        address: IP address that it listens on.
        port: UDP and TCP port.
    """

    def __init__(
        self,
        folder: Path,
        address: str,
        port: int = PORT,
        *,
        ttl_seconds: int = TTL_SECONDS,
        command_prefix: Sequence[str] = (),
    ) -> None:
        """Keep records and log in `folder`; `command_prefix` runs dnsmasq elsewhere, such as in a network namespace."""
        self.address, self.port, self._ttl = address, port, ttl_seconds
        self._file, self._log, self._command_prefix = folder / "hosts", folder / "dns.log", command_prefix
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DnsServer:
        self._file.write_text("")
        command = [
            *self._command_prefix,
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--user=root",
        ]
        command += ["--no-resolv", "--no-hosts", f"--addn-hosts={self._file}", f"--local-ttl={self._ttl}"]
        command += [f"--listen-address={self.address}", "--bind-interfaces", f"--port={self.port}"]
        command += ["--log-queries", f"--log-facility={self._log}"]
        self._process = subprocess.Popen(command)
        until = time.monotonic() + START_SECONDS
        while not self._log.exists() or "started" not in self._log.read_text():
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__()
                raise RuntimeError("dnsmasq did not start")
            time.sleep(0.02)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def set_addresses(self, name: str, addresses: Sequence[str]) -> None:
        """Make a name resolve to these addresses from now on."""
        assert self._process is not None
        self._file.write_text("".join(f"{address} {name}\n" for address in addresses))
        self._process.send_signal(signal.SIGHUP)

    @property
    def num_queries(self) -> int:
        """Queries received so far."""
        return self._log.read_text().count(" query[") if self._log.exists() else 0
