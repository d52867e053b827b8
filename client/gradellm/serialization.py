"""Lossless JSON serialization of frozen dataclasses.

NaN and infinities are the texts "NaN", "Infinity" and "-Infinity", as in protobuf's JSON mapping.

Files are untrusted. Reading is linear in their size, and values that other parts of the program cannot hold are refused
with their path: integers beyond 64 bits, lone surrogates, and duplicate names in an object.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

__all__ = ["MalformedError", "from_document", "from_json", "from_plain", "short_repr", "to_document", "to_plain"]

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_INT64 = range(-(2**63), 2**63)  # the largest integers of protobuf
_MAX_LEVELS = 32
"""Of nesting. gradellm writes at most 8 levels; more would exhaust Python's recursion limit."""
_MAX_NUMBER_LENGTH = 1_000  # characters; Python parses integers in quadratic time, and refuses 4,301 digits


class MalformedError(ValueError):
    """A value that does not match the type; the message begins with the path to it."""


def to_plain(value: object) -> Any:  # noqa: ANN401  (what json.dumps takes)
    """Return `value` as dicts, lists, texts and numbers."""
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
    """Return the value of type `kind` from the result of `to_plain`.

    Raises MalformedError for missing or unknown fields, or values of another type.
    """
    return cast("T", _read(kind, plain, path))


def to_document(value: object, form: str, version: int) -> str:
    """Serialize a dataclass as one line of JSON with its format and version. `from_document` restores an equal one."""
    plain = {"format": form, "version": version, **to_plain(value)}
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def from_document(kind: type[T], text: str, form: str, version: int, what: str) -> T:
    """Read the result of `to_document`; `what` is its name in errors, with an article.

    Raises MalformedError for other JSON, or an unsupported version.
    """
    the = f"the {what.partition(' ')[2]}"
    plain = from_json(text)
    if not isinstance(plain, dict) or plain.pop("format", None) != form:
        raise MalformedError(f'this is not {what}: it has no "format": "{form}"')
    found = plain.pop("version", None)
    if type(found) is not int or found != version:
        raise MalformedError(f"{the} has version {short_repr(found)}; this gradellm reads version {version} only")
    try:
        return from_plain(kind, plain)
    except MalformedError as error:
        raise MalformedError(f"{the} is malformed: {error}") from error


def from_json(text: str | bytes, *, lone_surrogates: bool = False) -> Any:  # noqa: ANN401  (whatever JSON holds)
    """Parse JSON from an untrusted source.

    Raises MalformedError for malformed JSON (including NaN and Infinity), more than 32 levels of nesting, duplicate
    names in an object, and numbers or texts that protobuf cannot carry. `lone_surrogates` allows texts with them.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_parsed_int,
            parse_float=_parsed_float,
            object_pairs_hook=_unique,
        )
    except UnicodeDecodeError as error:
        raise MalformedError(f"this is not UTF-8, at byte {error.start}") from error
    except (ValueError, TypeError) as error:
        raise MalformedError(f"this is not JSON: {error}") from error
    except RecursionError as error:
        raise MalformedError(
            f"this is not JSON that can be read: it is nested deeper than {_MAX_LEVELS} levels"
        ) from error
    _check_nesting(value)
    if not lone_surrogates and _ESCAPED_SURROGATE.search(text):  # decoded UTF-8 without such escapes has none
        _check_texts(value)
    return value


_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def _parsed_int(digits: str) -> int:
    if len(digits) > _MAX_NUMBER_LENGTH:
        raise ValueError(f"a number has {len(digits):,} characters, more than the limit of {_MAX_NUMBER_LENGTH:,}")
    return int(digits)


def _parsed_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{short_repr(digits)} is larger than a float can be")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        duplicate = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the name {short_repr(duplicate)} twice")
    return result


def _check_nesting(value: object) -> None:
    """Raise MalformedError for too many levels, without recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MAX_LEVELS):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise MalformedError(f"this is not JSON that can be read: it is nested deeper than {_MAX_LEVELS} levels")


def _check_texts(value: object, path: str = "") -> None:
    """Raise MalformedError for a lone surrogate in a text or a name."""
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_text(name, path)
            _check_texts(item, _below(path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_texts(item, f"{path}[{index}]")


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"{path or 'value'}: " if path.isascii() else ""
        raise MalformedError(
            f"{where}has a lone surrogate at position {error.start}, which UTF-8 cannot encode"
        ) from None


def _refuse_constant(name: str) -> Any:  # noqa: ANN401  (json's own hook)
    raise ValueError(f"{name} is not a JSON number")


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
        return _read_items(arms[0], plain, path)
    if origin is Mapping:
        if not isinstance(plain, dict):
            raise _malformed(path, "an object", plain)
        items = {key: _read(arms[1], item, _below(path, key)) for key, item in plain.items()}
        return {_integer_key(key, path): item for key, item in items.items()} if arms[0] is int else items
    if isinstance(kind, type) and is_dataclass(kind):
        return _read_dataclass(kind, plain, path)
    if kind is float and isinstance(plain, str) and plain in _NOT_FINITE:
        return _NOT_FINITE[plain]
    if kind is float and type(plain) is int:  # other languages serialize 1.0 as 1
        return _read_float(plain, path)
    if type(plain) is not kind:
        raise _malformed(path, _NAMES[kind], plain)
    if kind is int and plain not in _INT64:
        raise _malformed(path, "an integer of 64 bits", plain)
    return plain


def _read_items(kind: Any, items: list[Any], path: str) -> tuple[Any, ...]:  # noqa: ANN401
    alike = kind in (int, float, str) and all(type(item) is kind for item in items)
    if alike and (kind is not int or not items or (min(items) in _INT64 and max(items) in _INT64)):
        return tuple(items)  # fast path for long rows
    return tuple(_read(kind, item, f"{path}[{index}]") for index, item in enumerate(items))


def _integer_key(key: str, path: str) -> int:
    """Return a name of an object as the integer that it was: JSON has only texts."""
    if not re.fullmatch(r"-?[0-9]{1,18}", key):
        raise _malformed(path, "an object with integers as names", key)
    return int(key)


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
    for name in hints:  # fields with a default are missing in older files
        if name not in plain and kind.__dataclass_fields__[name].default is MISSING:  # type: ignore[attr-defined]
            raise MalformedError(f"{_below(path, name)}: is missing")
    if len(plain) > len(hints) or not plain.keys() <= hints.keys():
        unknown = next(name for name in plain if name not in hints)
        raise MalformedError(f"{_below(path, unknown)}: is unknown")
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
    short = name if len(name) <= _MAX_NAME_LENGTH else f"{name[:_MAX_NAME_LENGTH]}..."
    return f"{path}.{short}" if path else short


def _malformed(path: str, wanted: str, plain: object) -> MalformedError:
    return MalformedError(f"{path or 'value'}: must be {wanted}, not {short_repr(plain)}")


def short_repr(value: object) -> str:
    """Return a short `repr` of a value of any size and depth, for an error message."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = _SHORT.repr(value)
    return text if len(text) <= _MAX_REPR_LENGTH else f"{text[:_MAX_REPR_LENGTH]}..."


_MAX_NAME_LENGTH, _MAX_REPR_LENGTH = 60, 60
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 50, 50, 50
