"""Frozen dataclasses to and from what JSON can hold, exactly.

Floats that JSON has no literal for are the texts "NaN", "Infinity" and "-Infinity", as in protobuf's own JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

__all__ = ["MalformedError", "from_document", "from_plain", "to_document", "to_plain"]

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MalformedError(ValueError):
    """The value has not the shape of the type; the message begins with the path to the place."""


def to_plain(value: object) -> Any:  # noqa: ANN401  (what json.dumps takes)
    """Return `value` in dicts, lists, texts and numbers."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def from_plain(kind: type[T], plain: object, path: str = "") -> T:
    """Return the value of type `kind` that `to_plain` made `plain` of.

    Raises MalformedError where a part is missing, too many, or of another type.
    """
    return cast("T", _read(kind, plain, path))


def to_document(value: object, form: str, version: int) -> str:
    """Write a dataclass as JSON, one line, that says what it is. `from_document` gives back an equal one."""
    plain = {"format": form, "version": version, **to_plain(value)}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def from_document(kind: type[T], text: str, form: str, version: int, what: str) -> T:
    """Read what `to_document` wrote; `what` is what people call it, with its article.

    Raises MalformedError where it is something else, or of a version that is not known here.
    """
    the = f"the {what.partition(' ')[2]}"
    try:
        plain = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError, TypeError) as error:
        raise MalformedError(f"this is not JSON: {error}") from error
    if not isinstance(plain, dict) or plain.pop("format", None) != form:
        raise MalformedError(f'this is not {what}: it has no "format": "{form}"')
    found = plain.pop("version", None)
    if type(found) is not int or found != version:
        raise MalformedError(f"{the} has version {found!r}; this gradellm reads version {version} alone")
    try:
        return from_plain(kind, plain)
    except MalformedError as error:
        raise MalformedError(f"{the} is malformed: {error}") from error


def _refuse_constant(name: str) -> Any:  # noqa: ANN401  (json's own hook)
    raise ValueError(f"{name} is no JSON number")


def _read(kind: Any, plain: object, path: str) -> Any:  # noqa: ANN401  (any type, and a value of it)
    origin, arms = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _read_union(kind, arms, plain, path)
    if origin is Literal:
        if isinstance(plain, str) and plain in arms:
            return plain
        raise _malformed(path, f"one of {', '.join(arms)}", plain)
    if origin is tuple:
        if not isinstance(plain, list):
            raise _malformed(path, "a list", plain)
        return tuple(_read(arms[0], item, f"{path}[{index}]") for index, item in enumerate(plain))
    if origin is Mapping:
        if not isinstance(plain, dict):
            raise _malformed(path, "an object", plain)
        return {key: _read(arms[1], item, f"{path}.{key}") for key, item in plain.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        return _read_dataclass(kind, plain, path)
    if kind is float and isinstance(plain, str) and plain in _NOT_FINITE:
        return _NOT_FINITE[plain]
    if kind is float and type(plain) is int:  # other languages write 1.0 as 1
        return _read_float(plain, path)
    if type(plain) is not kind:
        raise _malformed(path, _NAMES[kind], plain)
    return plain


def _read_union(kind: object, arms: tuple[Any, ...], plain: object, path: str) -> Any:  # noqa: ANN401
    failures = []
    for arm in arms:
        try:
            return _read(arm, plain, path)
        except MalformedError as failure:
            failures.append((arm, failure))
    deeper = [failure for arm, failure in failures if is_dataclass(arm) and isinstance(plain, dict)]
    raise deeper[0] if deeper else _malformed(path, str(kind).replace("typing.", ""), plain)


def _read_dataclass(kind: type, plain: object, path: str) -> object:
    if not isinstance(plain, dict):
        raise _malformed(path, "an object", plain)
    hints = _hints(kind)
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    for name in needed - plain.keys():  # what has a default came later than what was written
        raise MalformedError(f"{_below(path, name)}: is missing")
    for name in plain.keys() - hints.keys():
        raise MalformedError(f"{_below(path, name)}: is not known here")
    return kind(**{name: _read(hint, plain[name], _below(path, name)) for name, hint in hints.items() if name in plain})


def _read_float(number: int, path: str) -> float:
    try:
        return float(number)
    except OverflowError:
        raise MalformedError(f"{path}: is larger than a float can be") from None


_NAMES: dict[object, str] = {
    str: "a text", int: "an integer", float: "a number", bool: "true or false", NoneType: "null",
}  # fmt: skip


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _malformed(path: str, wanted: str, plain: object) -> MalformedError:
    shown = repr(plain)
    return MalformedError(f"{path or 'value'}: must be {wanted}, not {shown[:40]}{'...' if len(shown) > 40 else ''}")
