"""Frozen dataclasses to and from what JSON can hold, exactly.

Floats that JSON has no literal for are the texts "NaN", "Infinity" and "-Infinity", as in protobuf's own JSON.

Files come from anywhere, so reading one is linear in its bytes, and what nothing behind it could hold is refused here,
with its place: an integer beyond 64 bits, half a surrogate pair, a name that an object has twice.
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

__all__ = ["MalformedError", "from_document", "from_json", "from_plain", "shown", "to_document", "to_plain"]

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_INT64 = range(-(2**63), 2**63)  # the widest integer of the wire
_MOST_LEVELS = 32
"""Of nesting: what gradellm writes has 8 at most, and Python's own functions recurse."""
_LONGEST_NUMBER = 1_000  # characters: Python reads an integer's digits in quadratic time, and refuses 4,301


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
    plain = from_json(text)
    if not isinstance(plain, dict) or plain.pop("format", None) != form:
        raise MalformedError(f'this is not {what}: it has no "format": "{form}"')
    found = plain.pop("version", None)
    if type(found) is not int or found != version:
        raise MalformedError(f"{the} has version {shown(found)}; this gradellm reads version {version} alone")
    try:
        return from_plain(kind, plain)
    except MalformedError as error:
        raise MalformedError(f"{the} is malformed: {error}") from error


def from_json(text: str | bytes, *, half_pairs: bool = False) -> Any:  # noqa: ANN401  (whatever JSON holds)
    """Read JSON from an untrusted source.

    Raises MalformedError where it is no JSON (NaN and Infinity are none), is nested more than 32 levels deep, has a
    name twice in one object, of which other readers may take the other value, or has a number or text that no message
    could carry. `half_pairs` takes texts with half a surrogate pair all the same.
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
            f"this is not JSON that is read: it is nested deeper than {_MOST_LEVELS} levels"
        ) from error
    _check_nesting(value)
    if not half_pairs and _ESCAPED_SURROGATE.search(
        text
    ):  # else there can be no half of a pair, for the text was decoded
        _check_texts(value)
    return value


_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def _parsed_int(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits):,} characters, and {_LONGEST_NUMBER:,} are read")
    return int(digits)


def _parsed_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{shown(digits)} is larger than a float can be")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the name {shown(twice)} twice")
    return made


def _check_nesting(value: object) -> None:
    """Refuse what is nested so deeply that a later step would recurse too far. Level by level, without recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_MOST_LEVELS):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise MalformedError(f"this is not JSON that is read: it is nested deeper than {_MOST_LEVELS} levels")


def _check_texts(value: object, path: str = "") -> None:
    """Refuse half a surrogate pair, in a text or in a name."""
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
            f"{where}has half a surrogate pair at position {error.start}, which no text can carry"
        ) from None


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
        return _read_items(arms[0], plain, path)
    if origin is Mapping:
        if not isinstance(plain, dict):
            raise _malformed(path, "an object", plain)
        return {key: _read(arms[1], item, _below(path, key)) for key, item in plain.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        return _read_dataclass(kind, plain, path)
    if kind is float and isinstance(plain, str) and plain in _NOT_FINITE:
        return _NOT_FINITE[plain]
    if kind is float and type(plain) is int:  # other languages write 1.0 as 1
        return _read_float(plain, path)
    if type(plain) is not kind:
        raise _malformed(path, _NAMES[kind], plain)
    if kind is int and plain not in _INT64:
        raise _malformed(path, "an integer of 64 bits", plain)
    return plain


def _read_items(kind: Any, items: list[Any], path: str) -> tuple[Any, ...]:  # noqa: ANN401
    alike = kind in (int, float, str) and all(type(item) is kind for item in items)
    if alike and (kind is not int or not items or (min(items) in _INT64 and max(items) in _INT64)):
        return tuple(items)  # a long row, at once
    return tuple(_read(kind, item, f"{path}[{index}]") for index, item in enumerate(items))


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
    for name in hints:  # what has a default came later than what was written
        if name not in plain and kind.__dataclass_fields__[name].default is MISSING:  # type: ignore[attr-defined]
            raise MalformedError(f"{_below(path, name)}: is missing")
    if len(plain) > len(hints) or not plain.keys() <= hints.keys():
        unknown = next(name for name in plain if name not in hints)
        raise MalformedError(f"{_below(path, unknown)}: is not known here")
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
    shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    return f"{path}.{shown}" if path else shown


def _malformed(path: str, wanted: str, plain: object) -> MalformedError:
    return MalformedError(f"{path or 'value'}: must be {wanted}, not {shown(plain)}")


def shown(value: object) -> str:
    """Return a value as an error quotes it, whatever its size and depth."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = _SHORT.repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


_LONGEST_NAME, _LONGEST_SHOWN = 60, 60
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 2, 50, 50, 50
