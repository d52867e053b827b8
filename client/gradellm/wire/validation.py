"""Validation of keywords: types, ranges, unknown names, and exclusive choices. Every error names its keyword."""

from __future__ import annotations

import difflib
import operator
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gradellm.errors import InvalidRequestError
from gradellm.wire.responses import enum_names

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper


def refuse_unknown(call: str, keywords: Mapping[str, object], allowed: type) -> None:
    """Raise TypeError for a keyword that a call does not have, with the closest one that it has."""
    names = list(allowed.__annotations__)
    for name in keywords.keys() - names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(names)}"
        raise TypeError(f"{call}() has no keyword {name}{hint}")


def exactly_one(choices: Mapping[str, object]) -> None:
    """Raise InvalidRequestError unless exactly one of the choices is not None."""
    present = [name for name, value in choices.items() if value is not None]
    if len(present) != 1:
        *names, last = choices
        wanted = f"exactly one of {', '.join(names)} and {last} must be given"
        raise InvalidRequestError.of(
            present[1] if present else next(iter(choices)), f"{wanted}; given: {join_names(present)}"
        )


def optional(check: Callable[[str, object], Any], name: str, keywords: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return the validated value of a keyword; None if it is absent."""
    value = keywords.get(name)
    return None if value is None else check(name, value)


def enum_value(enum: EnumTypeWrapper, name: str, keywords: Mapping[str, Any]) -> Any:  # noqa: ANN401  (any of the enums)
    """Return the number of an enum value by its name; None if the keyword is absent."""
    value = keywords.get(name)
    if value is None:
        return None
    numbers = {value_name: number for number, value_name in enum_names(enum.DESCRIPTOR).items()}
    if not isinstance(value, str) or value not in numbers:
        raise InvalidRequestError.of(name, f"must be one of {join_names(numbers)}, not {short_repr(value)}")
    return numbers[value]


def enum_values(enum: EnumTypeWrapper, name: str, keywords: Mapping[str, Any]) -> list[Any]:
    """Return the numbers of several enum values."""
    return [enum_value(enum, name, {name: value}) for value in optional_list(name, keywords)]


def optional_list(name: str, keywords: Mapping[str, Any]) -> list[Any]:
    """Return the values of a keyword as a list; empty if it is absent."""
    values = keywords.get(name)
    return [] if values is None else as_list(name, values)


def texts(name: str, keywords: Mapping[str, Any]) -> list[str]:
    """Return the texts of a keyword; empty if it is absent."""
    return [text(f"{name}[{index}]", value) for index, value in enumerate(optional_list(name, keywords))]


def stop_texts(stop: object) -> list[str]:
    """Return stop texts, given as one text or as several."""
    stops = [stop] if isinstance(stop, str) else [] if stop is None else as_list("stop", stop)
    return [text("stop", value) for value in stops]


def mapping(name: str, value: object) -> Mapping[Any, Any]:
    """Return a mapping, validated."""
    if not isinstance(value, Mapping):
        raise InvalidRequestError.of(name, f"must be a mapping, not {short_repr(value)}")
    return value


def text(name: str, value: object) -> str:
    """Return a text that UTF-8 can encode."""
    if not isinstance(value, str):
        raise InvalidRequestError.of(name, f"must be a text, not {short_repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError.of(
            name, f"has a lone surrogate at position {error.start}, which UTF-8 cannot encode; decode the text again"
        ) from error
    return value


def boolean(name: str, value: object) -> bool:
    """Return a bool; 0, 1 and other values that Python takes for one are refused."""
    if not isinstance(value, bool):
        raise InvalidRequestError.of(name, f"must be True or False, not {short_repr(value)}")
    return value


def number(name: str, value: object) -> float:
    """Return a number as a float."""
    if isinstance(value, bool | str | bytes) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise InvalidRequestError.of(name, f"must be a number, not {short_repr(value)}")
    try:
        return float(value)  # type: ignore[arg-type]  # has one of the two methods
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequestError.of(
            name, f"must be a number that a float can hold, not {short_repr(value)}"
        ) from error


def integer(name: str, value: object, bits: int) -> int:
    """Return a signed integer of at most this many bits."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # raises TypeError without __index__
    except TypeError:
        raise InvalidRequestError.of(name, f"must be an integer, not {short_repr(value)}") from None
    if not -(1 << (bits - 1)) <= number < 1 << (bits - 1):
        raise InvalidRequestError.of(name, f"must be a signed {bits}-bit integer, not {short_repr(number)}")
    return number


def int32(name: str, value: object) -> int:
    """Return a signed 32-bit integer."""
    return integer(name, value, 32)


def int64(name: str, value: object) -> int:
    """Return a signed 64-bit integer."""
    return integer(name, value, 64)


def int32s(name: str, values: object) -> list[int]:
    """Return a list of signed 32-bit integers."""
    found = as_list(name, values)
    if set(map(type, found)) == {int} and min(found) >= -(1 << 31) and max(found) < 1 << 31:
        return found  # names of a million places take a second to write
    return [int32(f"{name}[{index}]", value) for index, value in enumerate(found)]


def some_int32s(name: str, values: object) -> list[int]:
    """Return a non-empty list of signed 32-bit integers: a repeated proto field cannot distinguish empty and absent."""
    numbers = int32s(name, values)
    if not numbers:
        raise InvalidRequestError.of(name, "is empty; leave it out or give at least one")
    return numbers


def as_list(name: str, values: object) -> list[Any]:
    """Return an iterable other than a text or a mapping as a list."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidRequestError.of(name, f"must be a list, not {short_repr(values)}")
    try:
        return list(values)
    except TypeError:  # a zero-dimensional array
        raise InvalidRequestError.of(name, f"must be a list, not {short_repr(values)}") from None


class _Short(reprlib.Repr):
    """`repr` of bounded length. Each part is whole or left out, so that no escape sequence is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother = 3, 60
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 4

    def repr_str(self, value: str, level: int) -> str:
        """Shorten a text, as `reprlib.Repr` calls it."""
        return _quoted(value)

    def repr_bytes(self, value: bytes, level: int) -> str:
        """Shorten bytes, as `reprlib.Repr` calls it."""
        return _quoted(value)

    def repr_int(self, value: int, level: int) -> str:
        """Describe large integers by their size: `repr` refuses the largest."""
        return f"an integer of {value.bit_length()} bits" if value.bit_length() > 256 else repr(value)


_SHORT = _Short()
_MAX_QUOTED = 60  # characters of a text


def _quoted(value: str | bytes) -> str:
    if len(value) <= _MAX_QUOTED:
        return repr(value)
    return f"{value[:_MAX_QUOTED]!r}... ({type(value).__name__}, {len(value)} in all)"


def short_repr(value: object) -> str:
    """Return a short `repr` of a value, for an error message."""
    return _SHORT.repr(value)


def join_names(names: Iterable[str]) -> str:
    """Return names separated by commas, for an error message."""
    return ", ".join(map(str, names)) or "none"
