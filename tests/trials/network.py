"""Hosts on a network of their own: namespaces of this machine, a switch between them, and a name server.

Nothing of the machine's own network is touched: the switch is a bridge in a namespace, and no link leads out. Needs
Linux, root, iproute2's `ip` and, for names, `dnsmasq` (Debian: dnsmasq-base).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from support.dns_server import NameServer

Result = TypeVar("Result")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}  # of processes that import this package

NETNS = Path("/etc/netns")  # what `ip netns exec` lays over /etc, a folder a namespace


def why_not() -> str | None:
    """Why there can be no such network here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if missing := [name for name in ("ip", "dnsmasq") if shutil.which(name) is None]:
        return f"{' and '.join(missing)} not found (Debian: iproute2, dnsmasq-base)"
    if subprocess.run(["ip", "netns", "add", _own("try")], stderr=subprocess.DEVNULL).returncode:
        return "network namespaces may not be made here"
    _ip("netns", "del", _own("try"))
    return None


def _own(name: str) -> str:
    return f"gradellm-{os.getpid()}-{name}"


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Host:
    """One machine of the network.

    Attributes:
        name: what it is called.
        namespace: where its processes run.
        address: its IPv4 address.
        port: the switch's end of its link.
        switch: the switch's namespace.
    """

    name: str
    namespace: str
    address: str
    mac: str
    port: str
    switch: str
    _inside: ThreadPoolExecutor

    def command(self, *command: str) -> list[str]:
        """A command to be run there, by the process that is started: its id is the program's own."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function that opens sockets there, in a thread that lives there."""
        return self._inside.submit(function, *arguments).result()

    def cut(self) -> None:
        """Pull its cable: what is sent to it is lost, and nobody is told."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def mend(self) -> None:
        """Put its cable back."""
        _ip("-n", self.switch, "link", "set", self.port, "up")


class Network:
    """A switch and its hosts, while it is entered.

    Nothing of it is left after a failure or SIGTERM, either; what SIGKILL leaves, the next one takes away.
    """

    def __init__(self, prefix: str = "10.99.0") -> None:
        """Addresses are `prefix`.N; they exist inside these namespaces alone."""
        self._prefix = prefix
        self._stack = ExitStack()
        self._hosts: list[Host] = []
        self._switch = _own("switch")

    def __enter__(self) -> Network:
        _remove_leftovers()
        with self._stack:
            if threading.current_thread() is threading.main_thread():
                self._stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _leave))
            self._add_namespace(self._switch)
            _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "switch", "up")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def host(self, name: str, number: int, *, delay_seconds: float = 0.0, loss: float = 0.0) -> Host:
        """Add a host at address `number`; a slow link delays and loses each packet, in both directions."""
        namespace, port = _own(name), f"port{number}"
        mac, address = f"02:00:00:00:00:{number:02x}", f"{self._prefix}.{number}"
        self._add_namespace(namespace)
        if delay_seconds or loss:
            self._add_wire(namespace, port, delay_seconds, loss)
        else:
            peer = ("type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("-n", self._switch, "link", "add", port, *peer)
        _ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
        _ip("-n", namespace, "link", "set", "eth0", "address", mac, "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        inside = ThreadPoolExecutor(1, initializer=_enter, initargs=(namespace,))
        self._stack.callback(inside.shutdown)
        host = Host(name, namespace, address, mac, port, self._switch, inside)
        for other in self._hosts:
            # Known for good, as behind a router: else the kernel would soon tell a sender that a host is gone.
            for ours, theirs in ((host, other), (other, host)):
                place = ("lladdr", theirs.mac, "dev", "eth0", "nud", "permanent")
                _ip("-n", ours.namespace, "neighbour", "replace", theirs.address, *place)
        self._hosts.append(host)
        return host

    def names(self, host: Host, folder: Path) -> NameServer:
        """Start a name server on a host, which keeps its records in a folder."""
        return self._stack.enter_context(NameServer(folder, host.address, within=host.command()))

    def asks(self, host: Host, names: NameServer) -> None:
        """Let a host's programs ask that name server, by an /etc/resolv.conf of their own."""
        own = NETNS / host.namespace
        own.mkdir(parents=True)
        self._stack.callback(_remove_if_empty, NETNS)
        self._stack.callback(shutil.rmtree, own)
        (own / "resolv.conf").write_text(f"nameserver {names.address}\noptions timeout:1 attempts:2\n")

    def start(self, host: Host, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program on a host; it is killed at the end at the latest. Its words go to `log`."""
        with log.open("wb") as file:
            process = subprocess.Popen(host.command(*command), stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        self._stack.callback(_end, process)
        return process

    def _add_namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._stack.callback(_ip, "netns", "del", name)

    def _add_wire(self, namespace: str, port: str, delay_seconds: float, loss: float) -> None:
        """A link whose two ends a process of ours joins."""
        command = [sys.executable, "-m", "trials.wire", port, "eth0", str(delay_seconds), str(loss)]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._switch, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        self._stack.callback(_end, process)
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the slow link could not be made: is there a /dev/net/tun?")
        _ip("-n", self._switch, "link", "set", "eth0", "netns", namespace)


def _enter(namespace: str) -> None:
    """Move this thread into a network namespace."""
    with Path("/run/netns", namespace).open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _remove_leftovers() -> None:
    """End the processes and delete the namespaces of networks whose own process is gone."""
    for namespace in Path("/run/netns").glob("gradellm-*-*"):
        if Path("/proc", namespace.name.split("-")[1]).exists():
            continue
        inside = subprocess.run(["ip", "netns", "pids", namespace.name], capture_output=True, text=True).stdout
        for pid in map(int, inside.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _ip("netns", "del", namespace.name)
        shutil.rmtree(NETNS / namespace.name, ignore_errors=True)
    _remove_if_empty(NETNS)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # others' are in it
        folder.rmdir()


def _end(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()
