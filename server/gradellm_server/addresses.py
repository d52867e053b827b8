"""Addresses to listen on: an address that another server uses is refused, unlike in gRPC.

gRPC removes a socket file that it finds before it binds, and removes the file of that name when it ends, whichever
server owns it by then. Of the addresses of a host name, gRPC binds those that are free. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from gradellm_server.settings import ListenError, split_address

UNIX = "unix:"
LOCK_SECONDS = 2.0  # to wait for other servers that bind a socket in the same folder
MAX_PATH_BYTES = 107  # of a Unix socket on Linux


class SocketAddress(NamedTuple):
    """An address that a socket can bind."""

    family: socket.AddressFamily
    kind: socket.SocketKind
    protocol: int
    sockaddr: tuple[Any, ...]


def resolve(host: str, port: int) -> list[SocketAddress]:
    """Return the addresses of a host to bind.

    localhost is the loopback interface (RFC 6761, section 6.3) even if the resolver does not know it, as in a container
    without /etc/hosts; gRPC does the same.

    Raises:
        OSError: from the resolver, for any other unknown name.
    """
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        if host.rstrip(".").lower() != "localhost":
            raise
        infos = [
            info
            for address in ("127.0.0.1", "::1")
            for info in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        ]
    return [SocketAddress(family, kind, protocol, sockaddr) for family, kind, protocol, _, sockaddr in infos]


def check_free(listen: str, purpose: str = "", hint: str = "") -> None:
    """Check that HOST:PORT or unix:PATH can be bound.

    Args:
        listen: the address.
        purpose: what the address is for, for the error message.
        hint: what to do, for the error message.

    Raises:
        ListenError: if one of the host's addresses is in use, if none can be bound, or if the socket's folder does not
            exist.
    """
    if reason := _bind_problem(listen):
        raise ListenError(f"cannot listen on {listen}{purpose}: {reason}{hint}")


def bind_error(listen: str) -> str:
    """Return why binding an address failed, which gRPC does not report; called after the failure."""
    if reason := _bind_problem(listen):
        return reason
    if listen.startswith(UNIX):
        return "the socket is in use, or cannot be created there"
    return "the port is in use, or the address does not exist"


def _bind_problem(listen: str) -> str:
    """Return why an address cannot be bound; empty if it can."""
    if listen.startswith(UNIX):
        folder = Path(listen.removeprefix(UNIX)).absolute().parent
        return "" if folder.is_dir() else "there is no such folder"
    host, port = split_address(listen)
    try:
        addresses = resolve(host, port)
    except OSError as error:
        return _message(error)
    problems = []
    for family, kind, protocol, sockaddr in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: ignore lingering connections
                probe.bind(sockaddr)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"address already in use ({sockaddr[0]}:{port})"
            problems.append(_message(error))
    # One free address is enough for gRPC: localhost may include ::1 on a machine without IPv6.
    return problems[0] if len(problems) == len(addresses) else ""


def _message(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


class UnixSocket:
    """The file of a Unix socket, owned by one server at a time.

    gRPC binds a temporary name, and the file is renamed once no live server is known to listen on its own name; so gRPC
    never removes another server's file. The file of a dead server is replaced.
    """

    def __init__(self, listen: str) -> None:
        """`listen` is unix:PATH."""
        self._listen = listen
        self._path = Path(unquote(listen.removeprefix(UNIX).removeprefix("//")))
        self._finalizer: weakref.finalize[..., UnixSocket] | None = None

    def take(self, bind: Callable[[str], object]) -> None:
        """Have gRPC bind the socket with `bind`, and give it its name.

        Raises:
            ListenError: if a live server listens there, the path is another kind of file, or the path is too long.
            RuntimeError: from gRPC, if it cannot bind.
        """
        temporary = self._path.with_name(f".{secrets.token_hex(3)}")
        longest = max(len(os.fsencode(path)) for path in (self._path, temporary))
        if longest > MAX_PATH_BYTES:
            raise self._error(f"its path has {longest} bytes; a socket's path has at most {MAX_PATH_BYTES}")
        with _folder_lock(self._path.parent):
            self._check_free()
            bind(f"{UNIX}{quote(os.fspath(temporary))}")
            identity = _identity(temporary)
            try:
                temporary.rename(self._path)
            except OSError as error:  # a file of another user, in a folder such as /tmp
                temporary.unlink()
                raise self._error(f"the file there cannot be replaced: {error.strerror}") from error
            self._finalizer = weakref.finalize(self, _remove, self._path, identity, os.getpid())

    def remove(self) -> None:
        """Remove the file, unless another server has replaced it. Also done at the end of the process."""
        if self._finalizer is not None:
            self._finalizer()

    def _check_free(self) -> None:
        try:
            mode = self._path.stat().st_mode
        except OSError:
            return  # no such file, or no such folder, which gRPC reports
        if not stat.S_ISSOCK(mode):
            raise self._error("a file of that name exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(os.fspath(self._path))
            except ConnectionRefusedError:
                return  # its server is dead
            except FileNotFoundError:
                return
            except PermissionError as error:
                raise self._error("it is a socket of another user") from error
            except OSError:  # a full backlog: a server listens
                pass
        raise self._error("another server listens there; stop it first, or choose another path")

    def _error(self, reason: str) -> ListenError:
        return ListenError(f"cannot listen on {self._listen}: {reason}")


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Lock a folder against other servers that bind or remove a socket in it.

    A lock that is held for longer than `LOCK_SECONDS` belongs to another program, and is ignored.
    """
    import fcntl  # not on Windows, which does not use this module

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < until:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _remove(path: Path, identity: tuple[int, int], process_id: int) -> None:
    """Remove a socket that still is this server's own; not in a forked process."""
    if os.getpid() != process_id:
        return
    with _folder_lock(path.parent), contextlib.suppress(OSError):
        if _identity(path) == identity:
            path.unlink()
