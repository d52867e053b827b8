"""A real, small name server, whose records change while it is asked."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

PORT = 53
TTL_SECONDS = 5  # as Kubernetes tells of a headless Service
START_SECONDS = 10.0


class NameServer:
    """dnsmasq with the records that it is told to have, while it is entered.

    Attributes:
        address: where it answers.
        port: as well.
    """

    def __init__(
        self,
        folder: Path,
        address: str,
        port: int = PORT,
        *,
        ttl_seconds: int = TTL_SECONDS,
        within: Sequence[str] = (),
    ) -> None:
        """Keeps its records and its log in `folder`; `within` is the command that runs it elsewhere, if any."""
        self.address, self.port, self._ttl = address, port, ttl_seconds
        self._file, self._log, self._within = folder / "hosts", folder / "names.log", within
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> NameServer:
        self._file.write_text("")
        command = [
            *self._within,
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
                raise RuntimeError("the name server did not start")
            time.sleep(0.02)
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def tell(self, name: str, addresses: Sequence[str]) -> None:
        """From now on the name has these addresses."""
        assert self._process is not None
        self._file.write_text("".join(f"{address} {name}\n" for address in addresses))
        self._process.send_signal(signal.SIGHUP)

    @property
    def num_queries(self) -> int:
        """How often it was asked."""
        return self._log.read_text().count(" query[") if self._log.exists() else 0
