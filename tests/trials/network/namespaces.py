"""A virtual network: hosts are network namespaces, joined by a bridge, with a DNS server.

The machine's own network is not touched: the bridge is in a namespace, and no link leads out of it. Needs Linux, root,
iproute2's `ip` and, for DNS, `dnsmasq` (Debian: dnsmasq-base).
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

from support.dns_server import DnsServer

Result = TypeVar("Result")

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}  # of subprocesses: they import `trials`

NETNS = Path("/etc/netns")  # `ip netns exec` mounts a namespace's folder here over /etc


def unavailable_reason() -> str | None:
    """Why no virtual network can be made on this machine; None where one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if missing := [name for name in ("ip", "dnsmasq") if shutil.which(name) is None]:
        return f"{' and '.join(missing)} not found (Debian: iproute2, dnsmasq-base)"
    if subprocess.run(["ip", "netns", "add", _namespace_name("try")], stderr=subprocess.DEVNULL).returncode:
        return "this process may not make network namespaces"
    _ip("netns", "del", _namespace_name("try"))
    return None


def _namespace_name(name: str) -> str:
    return f"gradellm-{os.getpid()}-{name}"


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Host:
    """A host of the virtual network.

    Attributes:
        name: its name.
        namespace: the network namespace of its processes.
        address: its IPv4 address.
        mac: its link-layer address.
        port: the bridge's end of its link.
        switch: the bridge's namespace.
    """

    name: str
    namespace: str
    address: str
    mac: str
    port: str
    switch: str
    _executor: ThreadPoolExecutor

    def command(self, *command: str) -> list[str]:
        """The command line that runs a command on this host; the process id is the command's own."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in a thread of this host's namespace, in which it may open sockets."""
        return self._executor.submit(function, *arguments).result()

    def cut(self) -> None:
        """Cut its link: packets are dropped without any notice to the sender."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def restore(self) -> None:
        """Restore its link."""
        _ip("-n", self.switch, "link", "set", self.port, "up")


class Network:
    """A context manager that makes a bridge, and removes it and its hosts when it is left.

    It cleans up after failures and SIGTERM, too; the next network removes what SIGKILL left behind.
    """

    def __init__(self, prefix: str = "10.99.0") -> None:
        """Hosts have the addresses `prefix`.N, visible only inside the namespaces."""
        self._prefix = prefix
        self._stack = ExitStack()
        self._hosts: list[Host] = []
        self._switch = _namespace_name("switch")

    def __enter__(self) -> Network:
        _remove_leftovers()
        with self._stack:
            if threading.current_thread() is threading.main_thread():
                self._stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _exit))
            self._add_namespace(self._switch)
            _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "switch", "up")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def host(self, name: str, number: int, *, delay_seconds: float = 0.0, loss: float = 0.0) -> Host:
        """Add a host at address `number`; its link delays packets and drops a share `loss`, in each direction."""
        namespace, port = _namespace_name(name), f"port{number}"
        mac, address = f"02:00:00:00:00:{number:02x}", f"{self._prefix}.{number}"
        self._add_namespace(namespace)
        if delay_seconds or loss:
            self._add_lossy_link(namespace, port, delay_seconds, loss)
        else:
            peer = ("type", "veth", "peer", "name", "eth0", "netns", namespace)
            _ip("-n", self._switch, "link", "add", port, *peer)
        _ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
        _ip("-n", namespace, "link", "set", "eth0", "address", mac, "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        executor = ThreadPoolExecutor(1, initializer=_enter, initargs=(namespace,))
        self._stack.callback(executor.shutdown)
        host = Host(name, namespace, address, mac, port, self._switch, executor)
        for other in self._hosts:
            # Permanent neighbour entries, as behind a router: else ARP would soon report a cut host as unreachable.
            for source, target in ((host, other), (other, host)):
                entry = ("lladdr", target.mac, "dev", "eth0", "nud", "permanent")
                _ip("-n", source.namespace, "neighbour", "replace", target.address, *entry)
        self._hosts.append(host)
        return host

    def dns_server(self, host: Host, folder: Path) -> DnsServer:
        """Start a DNS server on a host; its records are files in a folder."""
        return self._stack.enter_context(DnsServer(folder, host.address, command_prefix=host.command()))

    def set_resolver(self, host: Host, dns: DnsServer) -> None:
        """Make a host's programs use a DNS server, by an /etc/resolv.conf of their own."""
        folder = NETNS / host.namespace
        folder.mkdir(parents=True)
        self._stack.callback(_remove_if_empty, NETNS)
        self._stack.callback(shutil.rmtree, folder)
        (folder / "resolv.conf").write_text(f"nameserver {dns.address}\noptions timeout:1 attempts:2\n")

    def start(self, host: Host, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program on a host, with its output in `log`; it is killed when the network is left."""
        with log.open("wb") as file:
            process = subprocess.Popen(host.command(*command), stdout=file, stderr=file, stdin=subprocess.DEVNULL)
        self._stack.callback(_end, process)
        return process

    def _add_namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._stack.callback(_ip, "netns", "del", name)

    def _add_lossy_link(self, namespace: str, port: str, delay_seconds: float, loss: float) -> None:
        """Add a link whose two ends a `trials.network.lossy_link` process joins."""
        command = [sys.executable, "-m", "trials.network.lossy_link", port, "eth0", str(delay_seconds), str(loss)]
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
            raise RuntimeError("the lossy link could not be made: is there a /dev/net/tun?")
        _ip("-n", self._switch, "link", "set", "eth0", "netns", namespace)


def _enter(namespace: str) -> None:
    """Move this thread into a network namespace."""
    with Path("/run/netns", namespace).open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")


def _exit(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _remove_leftovers() -> None:
    """Kill the processes and delete the namespaces of networks whose process has ended."""
    for namespace in Path("/run/netns").glob("gradellm-*-*"):
        if Path("/proc", namespace.name.split("-")[1]).exists():
            continue
        pids = subprocess.run(["ip", "netns", "pids", namespace.name], capture_output=True, text=True).stdout
        for pid in map(int, pids.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _ip("netns", "del", namespace.name)
        shutil.rmtree(NETNS / namespace.name, ignore_errors=True)
    _remove_if_empty(NETNS)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty
        folder.rmdir()


def _end(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()
