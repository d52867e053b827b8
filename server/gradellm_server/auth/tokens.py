"""Bearer tokens: the clients of a server and their limits, in a TOML file with one table for each client:

    [alice]
    sha256 = "9f86d081..."                # of the token; a list during a rotation
    expires = 2027-01-01T00:00:00Z        # optional
    max_concurrent_streams = 4            # optional
    tokens_per_minute = 60000             # optional; prompt and generated tokens
    methods = ["Generate", "Tokenize"]    # optional; all by default

`gradellm token NAME` makes a token and prints it once, with the table for the file. The file holds no secret: a token
has 256 random bits and cannot be found from its SHA-256. Slow hashes such as scrypt are for passwords with less
entropy; here they would only make denial of service cheaper.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import re
import secrets
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gradellm._version import __version__
from gradellm_server import cli_types
from gradellm_server.auth.file_watcher import SecurityFileError, read_file

PREFIX = "gradellm_"  # recognizable to secret scanners
TOKEN_BYTES = 32
MAX_DAYS = 36500
METHODS = ("Generate", "Attribute", "Follow", "Evaluate", "Tokenize", "GetServerInfo", "ServerReflectionInfo")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_KEYS = ("sha256", "expires", "max_concurrent_streams", "tokens_per_minute", "methods")


@dataclass(frozen=True)
class Client:
    """A client of the server.

    Attributes:
        name: in logs and metrics.
        hashes: SHA-256 of each token, 32 bytes.
        expires: when its tokens become invalid; None for never.
        max_concurrent_streams: limit of concurrent streaming calls.
        tokens_per_minute: limit of prompt and generated tokens in any 60 seconds.
        methods: RPCs that it may call; None for all.
    """

    name: str
    hashes: tuple[bytes, ...]
    expires: datetime | None = None
    max_concurrent_streams: int | None = None
    tokens_per_minute: int | None = None
    methods: frozenset[str] | None = None


@dataclass(frozen=True)
class Clients:
    """All clients of a server."""

    clients: tuple[Client, ...]

    def find(self, token: str, now: datetime | None = None) -> Client | None:
        """The client of a token; None if the token is unknown or has expired.

        Takes the same time for a valid token as for an unknown one.
        """
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        found: Client | None = None
        for client in self.clients:
            for token_hash in client.hashes:
                if hmac.compare_digest(token_hash, digest):
                    found = client  # no break, for constant time
        if found is not None and found.expires is not None and found.expires <= (now or datetime.now(UTC)):
            return None
        return found


class UnknownClientError(Exception):
    """A call without a token, or with an unknown or expired one; the message does not tell them apart."""

    def __init__(self) -> None:
        super().__init__(
            "a token is needed that this server knows and that has not expired: metadata `authorization: Bearer TOKEN`"
        )


class MethodNotAllowedError(Exception):
    """A call of a method that the client may not call."""

    def __init__(self, client: Client, method: str) -> None:
        allowed = ", ".join(name for name in METHODS if name in (client.methods or ())) or "nothing"
        super().__init__(f"{client.name} may not call {method}; it may call {allowed}")


def read_clients(path: Path) -> Clients:
    """The clients of a file; with none, every call is rejected.

    Raises:
        SecurityFileError: if the file cannot be read, or is invalid.
    """
    content = read_file(path, "the file of tokens")
    try:
        tables = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        is_duplicate = "twice" in str(error)  # tomllib: "Cannot declare ('alice',) twice"
        hint = "; a client with several tokens has them in one list: sha256 = [..., ...]" if is_duplicate else ""
        raise SecurityFileError(f"{path} is not TOML: {error}{hint}") from error
    clients = tuple(_Table(path, name, table).client() for name, table in tables.items())
    owners: dict[bytes, str] = {}
    for client in clients:
        for token_hash in client.hashes:
            if token_hash in owners:
                raise SecurityFileError(f"{path}: {owners[token_hash]} and {client.name} have the same token")
            owners[token_hash] = client.name
    return Clients(clients)


class _Table:
    """Parser of one client's table."""

    def __init__(self, path: Path, name: str, table: object) -> None:
        self._where = f"{path}: [{name[:64]}]" if _NAME.fullmatch(name) else f"{path}: a table's name"
        if not _NAME.fullmatch(name):
            raise self._error("must be 1 to 64 letters, digits, - and _")
        if not isinstance(table, Mapping):
            raise self._error("must be a table; limits belong under a client's name")
        if unknown := table.keys() - set(_KEYS):
            raise self._error(f"has unknown keys {', '.join(sorted(unknown))}; the keys are {', '.join(_KEYS)}")
        self._name, self._table = name, table

    def client(self) -> Client:
        return Client(
            self._name,
            self._hashes(),
            self._expires(),
            self._limit("max_concurrent_streams"),
            self._limit("tokens_per_minute"),
            self._methods(),
        )

    def _hashes(self) -> tuple[bytes, ...]:
        value: Any = self._table.get("sha256")
        hashes: list[Any] = value if isinstance(value, list) else [value]
        if not hashes or not all(isinstance(item, str) and _HASH.fullmatch(item) for item in hashes):
            # The message does not quote the value, which may be the token itself.
            raise self._error("sha256 must be 64 hexadecimal digits, or a list of such; `gradellm token` prints them")
        return tuple(bytes.fromhex(item) for item in hashes)

    def _expires(self) -> datetime | None:
        value = self._table.get("expires")
        if value is not None and not (isinstance(value, datetime) and value.tzinfo is not None):
            raise self._error("expires must be a time with its zone and without quotes, such as 2027-01-01T00:00:00Z")
        return value

    def _limit(self, key: str) -> int | None:
        value = self._table.get(key)
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            raise self._error(f"{key} must be a whole number of at least 1")
        return value

    def _methods(self) -> frozenset[str] | None:
        value = self._table.get("methods")
        if value is None:
            return None
        if not isinstance(value, list) or not all(item in METHODS for item in value):
            raise self._error(f"methods must be a list of {', '.join(METHODS)}")
        return frozenset(value)

    def _error(self, what: str) -> SecurityFileError:
        return SecurityFileError(f"{self._where} {what}")


def make_token() -> tuple[str, str]:
    """A new token, and its SHA-256 in hexadecimal digits."""
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    return token, hashlib.sha256(token.encode()).hexdigest()


def entry(name: str, sha256: str, limits: Mapping[str, Any]) -> str:
    """A client's table for the file; `limits` by the keys of the table."""
    lines = [f"[{name}]", f'sha256 = "{sha256}"']
    for key, value in limits.items():
        if isinstance(value, datetime):
            text = value.isoformat(timespec="seconds").replace("+00:00", "Z")
        elif isinstance(value, list):
            text = "[" + ", ".join(f'"{item}"' for item in value) + "]"
        else:
            text = str(value)
        lines.append(f"{key} = {text}")
    return "\n".join(lines)


# The command ---------------------------------------------------------------------------------------------------------

EXAMPLES = """\
examples:
  gradellm token alice >> tokens.toml           the token goes to the terminal, its entry to the file
  gradellm token bob --expires-days 90 --max-concurrent-streams 4 --tokens-per-minute 60000
  gradellm token probe --methods GetServerInfo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Make a token; print the token to standard error, and the table for the file to standard output."""
    options = parser().parse_args(argv)
    limits: dict[str, Any] = {
        "expires": options.expires_days and datetime.now(UTC) + timedelta(days=options.expires_days),
        "max_concurrent_streams": options.max_concurrent_streams,
        "tokens_per_minute": options.tokens_per_minute,
        "methods": options.methods,
    }
    token, sha256 = make_token()
    print(f"The token of {options.name}, shown only once; keep it secret:\n{token}", file=sys.stderr, flush=True)
    print("The entry for the server's file of tokens (--tokens):", file=sys.stderr, flush=True)
    print(entry(options.name, sha256, {key: value for key, value in limits.items() if value}), flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command-line parser."""
    parser = argparse.ArgumentParser(
        prog="gradellm token",
        description="Make a token for a client of `gradellm serve --tokens FILE`.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gradellm {__version__}")
    parser.add_argument("name", type=_name, metavar="NAME", help="the client's name, in logs and metrics")
    parser.add_argument("--expires-days", type=_days, metavar="N", help="days until the token expires (default: never)")
    parser.add_argument(
        "--max-concurrent-streams",
        type=cli_types.count,
        metavar="N",
        help="limit of concurrent streams (default: none)",
    )
    parser.add_argument(
        "--tokens-per-minute",
        type=cli_types.count,
        metavar="N",
        help="limit of prompt and generated tokens in any minute (default: none)",
    )
    parser.add_argument(
        "--methods",
        type=_methods,
        metavar="A,B",
        help=f"RPCs that the client may call, of {', '.join(METHODS)} (default: all)",
    )
    return parser


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("must be 1 to 64 letters, digits, - and _")
    return text


def _days(text: str) -> int:
    days = cli_types.count(text)
    if days > MAX_DAYS:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_DAYS}, was {text}")
    return days


def _methods(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(METHODS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
