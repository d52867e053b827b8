"""Parses a Dockerfile into stages and their instructions, as far as this project's Dockerfile needs it.

Not a general parser: an unknown instruction, form or flag is an error, so that no instruction is silently skipped when
the file is built without a container engine.
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
    """The file has something that this parser does not support."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: in capitals, such as RUN.
        text: its arguments, with continuation lines joined.
        line: number of its first line.
    """

    name: str
    text: str
    line: int


@dataclass
class Stage:
    """A build stage.

    Attributes:
        name: the name after AS.
        base: name of another stage or an image, with variables not expanded.
        instructions: in order, without FROM.
    """

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """The texts of all instructions of a name, in order."""
        return [instruction.text for instruction in self.instructions if instruction.name == name]

    def last(self, name: str) -> str:
        """The text of the last instruction of a name, which is the effective one."""
        return self.all(name)[-1]


@dataclass(frozen=True)
class Dockerfile:
    """A parsed Dockerfile.

    Attributes:
        arguments: ARGs before the first stage, with defaults.
        stages: by name, in order.
    """

    arguments: dict[str, str]
    stages: dict[str, Stage]


def read(path: Path) -> Dockerfile:
    """Parse a file.

    Raises:
        DockerfileError: for anything unsupported; names the line.
    """
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for instruction in instructions(path.read_text(encoding="utf-8")):
        if instruction.name not in KNOWN:
            raise DockerfileError(f"{path.name}:{instruction.line}: {instruction.name} is not supported")
        if instruction.name == "FROM":
            match = re.fullmatch(r"(\S+) AS (\S+)", instruction.text)
            if match is None:
                raise DockerfileError(
                    f"{path.name}:{instruction.line}: a stage must be FROM BASE AS NAME, not {instruction.text!r}"
                )
            current = stages[match[2]] = Stage(match[2], match[1])
        elif current is not None:
            current.instructions.append(instruction)
        elif instruction.name == "ARG":
            arguments.update([argument(instruction.text)])
        else:
            raise DockerfileError(f"{path.name}:{instruction.line}: {instruction.name} before the first FROM")
    return Dockerfile(arguments, stages)


def instructions(text: str) -> list[Instruction]:
    """The instructions of a file's text, without comment lines, also those inside an instruction."""
    found: list[Instruction] = []
    parts: list[str] = []
    first_line = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        if not parts:
            first_line = number
        is_continued = line.endswith("\\")
        parts.append(line.removesuffix("\\").strip())
        if not is_continued:
            name, _, rest = " ".join(parts).partition(" ")
            found.append(Instruction(name.upper(), rest.strip(), first_line))
            parts = []
    return found


def argument(text: str) -> tuple[str, str]:
    """Name and default value of an ARG."""
    name, _, default = text.partition("=")
    return name, default


def pairs(text: str) -> dict[str, str]:
    """The NAME=VALUE pairs of an ENV or LABEL, with quotes as in a shell."""
    found = {}
    for word in shlex.split(text):
        name, equals, value = word.partition("=")
        if not equals:
            raise DockerfileError(f"{word!r} is not NAME=VALUE")
        found[name] = value
    return found


def words(text: str) -> list[str]:
    """A command in exec form (a JSON list).

    Raises:
        DockerfileError: for the shell form.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise DockerfileError(f"{text!r} is not a JSON list of strings")
    return found


def expand(text: str, variables: Mapping[str, str]) -> str:
    """The text with $NAME and ${NAME} expanded, as in ENV, COPY and FROM (in RUN the shell expands them)."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: variables.get(match[1] or match[2], ""), text)


def health_command(text: str) -> list[str]:
    """The command of a HEALTHCHECK."""
    return words(text[text.index("CMD ") + len("CMD ") :])
