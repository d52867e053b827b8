"""The public interface as text: the SDK and the engine, the wire contract, the commands' flags and the metrics.

`make api` writes the files of this folder; test_api.py compares them. A change of one of them is a change that users
see, and comes with a line in CHANGELOG.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib
import inspect
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

FOLDER = Path(__file__).parent
COMMANDS = {
    "gradellm": "gradellm.cli",
    "gradellm serve": "gradellm_server.__main__",
    "gradellm gateway": "gradellm_gateway.__main__",
    "gradellm token": "gradellm_server.auth.tokens",
    "gradellm bench": "gradellm_bench.__main__",
    "python -m gradellm_ray": "gradellm_ray.__main__",
}
# What the SDK's calls take as **keywords.
KEYWORDS = {
    "gradellm.wire.keywords": ("AttributeKeywords", "EvaluateKeywords", "GenerateKeywords", "TokenizeKeywords"),
    "gradellm.local.server": ("LocalServerKeywords",),
}
SUBCOMMANDS = ("demo", "explain", "attribute", "evaluate", "verify", "info", "completion")
HELP_WIDTH = "100"
FIELD_TYPES = {
    value: name.removeprefix("TYPE_").lower()
    for name, value in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


# --- Python -----------------------------------------------------------------------------------------------------------


def python_api() -> str:
    """Every public name: the SDK's with signatures and the members of classes, the engine's by name alone."""
    sdk, engine = map(importlib.import_module, ("gradellm", "gradellm_engine"))
    lines = [line for name in sorted(sdk.__all__) for line in _described(f"gradellm.{name}", getattr(sdk, name))]
    lines += [f"gradellm_engine.{name}" for name in sorted(engine.__all__)]
    for package, names in KEYWORDS.items():
        for name in names:
            keywords = getattr(importlib.import_module(package), name)
            lines.append(f"keywords {name}")
            lines += [f"    {key}" for key in sorted(keywords.__required_keys__ | keywords.__optional_keys__)]
    return "\n".join(lines) + "\n"


def _described(path: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        yield f"class {path}({bases})"
        yield from (f"    {line}" for line in sorted(_members(value)))
    elif callable(value):
        yield f"def {path}{_signature(value)}"
    else:
        yield f"{path}: {type(value).__name__}"


def _members(cls: type) -> Iterator[str]:
    if issubclass(cls, enum.Enum):
        yield from (f"{member.name} = {member.value!r}" for member in cls)
    if dataclasses.is_dataclass(cls):
        yield from (f"{field.name}: {field.type}" for field in dataclasses.fields(cls))
    elif issubclass(cls, tuple):
        yield from (f"{name}: {kind}" for name, kind in inspect.get_annotations(cls).items())
    for name in dir(cls):
        if name.startswith("_") or (issubclass(cls, enum.Enum) and name in vars(cls)):
            continue
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        if owner is None or not owner.__module__.startswith("gradellm"):
            continue
        member = inspect.getattr_static(cls, name)
        if isinstance(member, property):
            yield f"property {name}"
        elif isinstance(member, (classmethod, staticmethod)):
            yield f"{type(member).__name__} {name}{_signature(member.__func__)}"
        elif inspect.isfunction(member):
            yield f"def {name}{_signature(member)}"


def _signature(function: Callable[..., Any]) -> str:
    """The parameters, with their names, kinds and defaults."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of C's
        return "(...)"
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    return str(inspect.Signature(plain))


# --- the wire ---------------------------------------------------------------------------------------------------------


def wire() -> str:
    """Every message, field, enum and call of the contract."""
    file: FileDescriptor = importlib.import_module("gradellm.v1.explainer_pb2").DESCRIPTOR
    lines: list[str] = []
    for service in file.services_by_name.values():
        for method in service.methods:
            streams = "stream " if method.server_streaming else ""
            lines.append(
                f"rpc {service.name}.{method.name}({method.input_type.name}) {streams}{method.output_type.name}"
            )
    for enumeration in file.enum_types_by_name.values():
        lines += [f"enum {enumeration.name} {value.number} {value.name}" for value in enumeration.values]
    for message in file.message_types_by_name.values():
        lines += _message(message)
    return "\n".join(sorted(lines)) + "\n"


def _message(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        kind = field.message_type or field.enum_type
        type_name = kind.full_name.removeprefix("gradellm.v1.") if kind else FIELD_TYPES[field.type]
        repeated = "repeated " if field.is_repeated else "optional " if field.has_presence and not kind else ""
        oneof = field.containing_oneof
        choice = f" oneof {oneof.name}" if oneof and not oneof.name.startswith("_") else ""
        name = message.full_name.removeprefix("gradellm.v1.")
        yield f"message {name} {field.number:02} {repeated}{type_name} {field.name}{choice}"
    for enumeration in message.enum_types:
        yield from (
            f"enum {message.name}.{enumeration.name} {value.number} {value.name}" for value in enumeration.values
        )
    for nested in message.nested_types:
        yield from _message(nested)


# --- flags and metrics ------------------------------------------------------------------------------------------------


def help_texts() -> str:
    """What each command prints for --help."""
    parts: list[str] = []
    commands = [(name, module, ["--help"]) for name, module in COMMANDS.items()]
    commands[1:1] = [(f"gradellm {name}", "gradellm.cli", [name, "--help"]) for name in SUBCOMMANDS]
    for name, module, arguments in commands:
        printed = io.StringIO()
        environment = {**os.environ, "COLUMNS": HELP_WIDTH, "NO_COLOR": "1"}
        with (
            mock.patch.dict(os.environ, environment),
            contextlib.redirect_stdout(printed),
            contextlib.suppress(SystemExit),
        ):
            importlib.import_module(module).main(arguments)
        parts.append(f"$ {name} --help\n{printed.getvalue().rstrip()}\n")
    return "\n".join(parts)


def metrics() -> str:
    """Every metric's name, type and labels."""
    page: str = importlib.import_module("write_metrics").text()
    rows = (line.split(" | ") for line in page.splitlines() if line.startswith("| `"))
    return "".join(f"{name.strip('|` ')} {kind} ({labels})\n" for name, kind, labels, *_ in rows)


SNAPSHOTS: dict[str, Callable[[], str]] = {
    "python.txt": python_api,
    "wire.txt": wire,
    "help.txt": help_texts,
    "metrics.txt": metrics,
}

if __name__ == "__main__":
    for name, make in SNAPSHOTS.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
