"""Bearer tokens: who may call, what and how much. A file in TOML, a table a client:

    [alice]
    sha256 = "9f86d081..."                # of the token; or a list, while one token replaces another
    expires = 2027-01-01T00:00:00Z        # optional
    max_concurrent_streams = 4            # optional
    tokens_per_minute = 60000             # optional; prompt and generated tokens
    methods = ["Generate", "Tokenize"]    # optional; all by default

`gradellm token NAME` makes a token and prints it once, with the table for the file. The file holds no secret: a token
is 256 random bits, so that no guessing finds it from its SHA-256. Slow hashes such as scrypt are for passwords, which
people choose; here they would only let anybody keep the server busy.
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

PREFIX = "gradellm_"  # lets scanners for secrets, and people, see what it is
TOKEN_BYTES = 32
MAX_DAYS = 36500
METHODS = ("Generate", "Attribute", "Evaluate", "Tokenize", "GetServerInfo", "ServerReflectionInfo")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_KEYS = ("sha256", "expires", "max_concurrent_streams", "tokens_per_minute", "methods")


@dataclass(frozen=True)
class Client:
    """Somebody who may call.

    Attributes:
        name: in logs and metrics.
        hashes: SHA-256 of each token, 32 bytes.
        expires: from when on tokens are not taken any more.
        max_concurrent_streams: calls with a stream of answers at a time.
        tokens_per_minute: of prompts and completions, in any 60 seconds.
        methods: what may be called, by name; None for everything.
    """

    name: str
    hashes: tuple[bytes, ...]
    expires: datetime | None = None
    max_concurrent_streams: int | None = None
    tokens_per_minute: int | None = None
    methods: frozenset[str] | None = None


@dataclass(frozen=True)
class Clients:
    """All who may call."""

    clients: tuple[Client, ...]

    def find(self, token: str, now: datetime | None = None) -> Client | None:
        """Whose token it is; None where it is nobody's, or has expired.

        It takes as long for a token that is known as for one that is not.
        """
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        found: Client | None = None
        for client in self.clients:
            for known in client.hashes:
                if hmac.compare_digest(known, digest):
                    found = client  # and on, to the end
        if found is not None and found.expires is not None and found.expires <= (now or datetime.now(UTC)):
            return None
        return found


def read_clients(path: Path) -> Clients:
    """The clients that a file names; nobody may call where it names none.

    Raises:
        SecurityFileError: where it cannot be read, or says something that it should not.
    """
    content = read_file(path, "the file of tokens")
    try:
        tables = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        twice = (
            "; a client with several tokens has them in one list: sha256 = [..., ...]" if "twice" in str(error) else ""
        )
        raise SecurityFileError(f"{path} is not TOML: {error}{twice}") from error
    clients = tuple(_Table(path, name, table).client() for name, table in tables.items())
    owners: dict[bytes, str] = {}
    for client in clients:
        for known in client.hashes:
            if known in owners:
                raise SecurityFileError(f"{path}: {owners[known]} and {client.name} have the same token")
            owners[known] = client.name
    return Clients(clients)


class _Table:
    """One client's table, on its way to a `Client`."""

    def __init__(self, path: Path, name: str, table: object) -> None:
        self._where = f"{path}: [{name[:64]}]" if _NAME.fullmatch(name) else f"{path}: a table's name"
        if not _NAME.fullmatch(name):
            raise self._wrong("must be 1 to 64 letters, digits, - and _")
        if not isinstance(table, Mapping):
            raise self._wrong("must be a table; limits belong under a client's name")
        if unknown := table.keys() - set(_KEYS):
            raise self._wrong(f"has {', '.join(sorted(unknown))}, which it cannot; it may have {', '.join(_KEYS)}")
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
        given: Any = self._table.get("sha256")
        hashes: list[Any] = given if isinstance(given, list) else [given]
        if not hashes or not all(isinstance(each, str) and _HASH.fullmatch(each) for each in hashes):
            # Without what it is instead: that may be the token itself.
            raise self._wrong("sha256 must be 64 hexadecimal digits, or a list of such; `gradellm token` prints them")
        return tuple(bytes.fromhex(each) for each in hashes)

    def _expires(self) -> datetime | None:
        given = self._table.get("expires")
        if given is not None and not (isinstance(given, datetime) and given.tzinfo is not None):
            raise self._wrong("expires must be a time with its zone and without quotes, such as 2027-01-01T00:00:00Z")
        return given

    def _limit(self, key: str) -> int | None:
        given = self._table.get(key)
        if given is not None and not (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
            raise self._wrong(f"{key} must be a whole number of at least 1")
        return given

    def _methods(self) -> frozenset[str] | None:
        given = self._table.get("methods")
        if given is None:
            return None
        if not isinstance(given, list) or not all(each in METHODS for each in given):
            raise self._wrong(f"methods must be a list of {', '.join(METHODS)}")
        return frozenset(given)

    def _wrong(self, what: str) -> SecurityFileError:
        return SecurityFileError(f"{self._where} {what}")


def make_token() -> tuple[str, str]:
    """A new token, and its SHA-256 in hexadecimal digits."""
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    return token, hashlib.sha256(token.encode()).hexdigest()


def entry(name: str, sha256: str, limits: Mapping[str, Any]) -> str:
    """A client's table for the file; `limits` by their keys there."""
    lines = [f"[{name}]", f'sha256 = "{sha256}"']
    for key, value in limits.items():
        if isinstance(value, datetime):
            said = value.isoformat(timespec="seconds").replace("+00:00", "Z")
        elif isinstance(value, list):
            said = "[" + ", ".join(f'"{each}"' for each in value) + "]"
        else:
            said = str(value)
        lines.append(f"{key} = {said}")
    return "\n".join(lines)


# The command ---------------------------------------------------------------------------------------------------------

EXAMPLES = """\
examples:
  gradellm token alice >> tokens.toml           the token goes to the terminal, its entry to the file
  gradellm token bob --expires-days 90 --max-concurrent-streams 4 --tokens-per-minute 60000
  gradellm token probe --methods GetServerInfo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Make a token: the token to standard error, once, and the table for the file to standard output."""
    options = parser().parse_args(argv)
    limits: dict[str, Any] = {
        "expires": options.expires_days and datetime.now(UTC) + timedelta(days=options.expires_days),
        "max_concurrent_streams": options.max_concurrent_streams,
        "tokens_per_minute": options.tokens_per_minute,
        "methods": options.methods,
    }
    token, sha256 = make_token()
    print(f"The token, shown once; whoever has it is {options.name}:\n{token}", file=sys.stderr, flush=True)
    print("The entry for the file that the server reads (--tokens):", file=sys.stderr, flush=True)
    print(entry(options.name, sha256, {key: value for key, value in limits.items() if value}), flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="gradellm token",
        description="Make a token for a client of `gradellm serve --tokens FILE`.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"gradellm {__version__}")
    made.add_argument("name", type=_name, metavar="NAME", help="of the client, in logs and metrics")
    made.add_argument("--expires-days", type=_days, metavar="N", help="days that it is taken for (default: for ever)")
    made.add_argument("--max-concurrent-streams", type=cli_types.count, metavar="N", help="streams at a time")
    made.add_argument(
        "--tokens-per-minute", type=cli_types.count, metavar="N", help="prompt and generated tokens a minute"
    )
    made.add_argument("--methods", type=_methods, metavar="A,B", help=f"of {', '.join(METHODS)} (default: all)")
    return made


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
