"""Taking an address: one that another server listens on is refused, whatever gRPC would do.

gRPC removes a socket file that it finds before it binds, and the file of that name when it ends, whoever's they are by
then; and of the addresses of a name it takes those that are free. Imports nothing heavy.
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
LOCK_SECONDS = 2.0  # for others who take a socket in the same folder
MAX_PATH_BYTES = 107  # of a Unix socket on Linux


class SocketAddress(NamedTuple):
    """An address that a socket can bind."""

    family: socket.AddressFamily
    kind: socket.SocketKind
    protocol: int
    place: tuple[Any, ...]


def resolve(host: str, port: int) -> list[SocketAddress]:
    """Return the addresses of a host to bind.

    localhost is the loopback interface (RFC 6761, section 6.3) also where neither /etc/hosts nor a name server knows
    it, as in a bare container: gRPC resolves it so.

    Raises:
        OSError: the resolver's, for any other name that it does not know.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        if host.rstrip(".").lower() != "localhost":
            raise
        found = [
            entry
            for address in ("127.0.0.1", "::1")
            for entry in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        ]
    return [SocketAddress(family, kind, protocol, place) for family, kind, protocol, _, place in found]


def bind_error(address: str) -> str:
    """Return why an address cannot be bound: gRPC does not say. Asked after it failed."""
    if address.startswith(UNIX):
        folder = Path(address.removeprefix(UNIX)).parent
        return "there is no such folder" if not folder.is_dir() else "the socket is taken, or may not be made there"
    try:
        for family, kind, protocol, place in resolve(*split_address(address)):
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(place)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "the port is taken, or there is no such address"


def check_free(listen: str, what: str = "") -> None:
    """See that nobody listens on any of the addresses of HOST:PORT.

    Raises:
        ListenError: where somebody does.
    """
    host, port = split_address(listen)
    if port == 0:
        return
    try:
        found = resolve(host, port)
    except OSError:
        return  # gRPC says what is wrong with the name
    for family, kind, protocol, place in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(place)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ListenError(
                        f"cannot listen on {listen}{what}: {place[0]}:{port}: address already in use"
                    ) from error


class UnixSocket:
    """The file of a Unix socket, which one server at a time has.

    gRPC is given another name to bind, and the file gets its own name when it is known that no live server has that;
    so gRPC never removes what is not its own. A file that a dead server left is replaced.
    """

    def __init__(self, listen: str) -> None:
        """`listen` is unix:PATH."""
        self._listen = listen
        self._path = Path(unquote(listen.removeprefix(UNIX).removeprefix("//")))
        self._finalizer: weakref.finalize[..., UnixSocket] | None = None

    def take(self, bind: Callable[[str], object]) -> None:
        """Have gRPC bind it.

        Raises:
            ListenError: where a live server listens there, or something else has the name, or it is no socket's.
            RuntimeError: gRPC's, where it cannot bind.
        """
        bound = self._path.with_name(f".{secrets.token_hex(3)}")
        longest = max(len(os.fsencode(path)) for path in (self._path, bound))
        if longest > MAX_PATH_BYTES:
            raise self._refused(f"its path has {longest} bytes, and a socket's has {MAX_PATH_BYTES} at most")
        with _alone(self._path.parent):
            self._check_free()
            bind(f"{UNIX}{quote(os.fspath(bound))}")
            own = _identity(bound)
            try:
                bound.rename(self._path)
            except OSError as error:  # another user's, in a folder such as /tmp
                bound.unlink()
                raise self._refused(f"the file there cannot be replaced: {error.strerror}") from error
            self._finalizer = weakref.finalize(self, _remove, self._path, own, os.getpid())

    def remove(self) -> None:
        """Remove the file, unless another server has put its own there. Done at the end of a process as well."""
        if self._finalizer is not None:
            self._finalizer()

    def _check_free(self) -> None:
        try:
            mode = self._path.stat().st_mode
        except OSError:
            return  # nothing is there, or the folder is not: gRPC says so
        if not stat.S_ISSOCK(mode):
            raise self._refused("there is a file of that name, and it is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(os.fspath(self._path))
            except ConnectionRefusedError:
                return  # whoever made it is dead
            except FileNotFoundError:
                return
            except PermissionError as error:
                raise self._refused("it is another user's socket") from error
            except OSError:  # too many wait there already
                pass
        raise self._refused("another server listens there; stop it first, or choose another path")

    def _refused(self, why: str) -> ListenError:
        return ListenError(f"cannot listen on {self._listen}: {why}")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other server takes or removes a socket in the folder: by a lock on the folder itself.

    Whoever holds that lock for long is none of ours; then it is done without.
    """
    import fcntl  # which Windows lacks, and it has no use for this file

    try:
        locked = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < until:
            try:
                fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.01)
        yield
    finally:
        os.close(locked)


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _remove(path: Path, own: tuple[int, int], owner: int) -> None:
    """Remove a socket that is a server's own still; not in a process forked off it."""
    if os.getpid() != owner:
        return
    with _alone(path.parent), contextlib.suppress(OSError):
        if _identity(path) == own:
            path.unlink()
