"""What a Dockerfile says, as far as this project's own says it: its stages, and in each its instructions in order.

Not a general parser: an instruction, a form or a flag that it does not know is an error, so that nothing of the file is
silently left out where it is carried out without an engine.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

KNOWN = {
    *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "SHELL", "USER"),
    "WORKDIR",
}


class DockerfileError(Exception):
    """The file says something that this parser does not know."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: such as RUN, in capitals.
        text: what follows, with lines joined.
        line: where it begins.
    """

    name: str
    text: str
    line: int


@dataclass
class Stage:
    """From one FROM to the next.

    Attributes:
        name: what follows AS.
        base: another stage's name or an image's, with variables as they are written.
        instructions: in their order, without FROM.
    """

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """The texts of one kind of instruction, in their order."""
        return [one.text for one in self.instructions if one.name == name]

    def last(self, name: str) -> str:
        """The text of the last of one kind, which is the one that counts."""
        return self.all(name)[-1]


@dataclass(frozen=True)
class Dockerfile:
    """A whole file.

    Attributes:
        arguments: what is declared before the first stage, with defaults.
        stages: by name, in their order.
    """

    arguments: dict[str, str]
    stages: dict[str, Stage]


def read(path: Path) -> Dockerfile:
    """Parse a file.

    Raises:
        DockerfileError: where it says something unknown; names the line.
    """
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for one in instructions(path.read_text(encoding="utf-8")):
        if one.name not in KNOWN:
            raise DockerfileError(f"{path.name}:{one.line}: {one.name} is not known here")
        if one.name == "FROM":
            match = re.fullmatch(r"(\S+) AS (\S+)", one.text)
            if match is None:
                raise DockerfileError(f"{path.name}:{one.line}: a stage must be FROM BASE AS NAME, not {one.text!r}")
            current = stages[match[2]] = Stage(match[2], match[1])
        elif current is not None:
            current.instructions.append(one)
        elif one.name == "ARG":
            arguments.update([argument(one.text)])
        else:
            raise DockerfileError(f"{path.name}:{one.line}: {one.name} before the first FROM")
    return Dockerfile(arguments, stages)


def instructions(text: str) -> list[Instruction]:
    """The instructions of a file's text; comment lines are none, inside an instruction either."""
    found: list[Instruction] = []
    parts: list[str] = []
    began = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        if not parts:
            began = number
        is_continued = line.endswith("\\")
        parts.append(line.removesuffix("\\").strip())
        if not is_continued:
            name, _, rest = " ".join(parts).partition(" ")
            found.append(Instruction(name.upper(), rest.strip(), began))
            parts = []
    return found


def argument(text: str) -> tuple[str, str]:
    """Name and default of an ARG."""
    name, _, default = text.partition("=")
    return name, default


def pairs(text: str) -> dict[str, str]:
    """What an ENV or a LABEL says: NAME=VALUE, with quotes as in a shell."""
    found = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not equals:
            raise DockerfileError(f"{word!r} is not NAME=VALUE")
        found[name] = value
    return found


def words(text: str) -> list[str]:
    """A command in its JSON form, which runs without a shell.

    Raises:
        DockerfileError: where it is in the other form.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise DockerfileError(f"{text!r} is no JSON list of words")
    return found


def expand(text: str, variables: Mapping[str, str]) -> str:
    """With $NAME and ${NAME} filled in, as in ENV, COPY and FROM (not in RUN, whose shell does it)."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: variables.get(match[1] or match[2], ""), text)


def health_command(text: str) -> list[str]:
    """The command of a HEALTHCHECK."""
    return words(text[text.index("CMD ") + len("CMD ") :])
