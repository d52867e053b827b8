"""Checks of keywords' values, each naming its keyword: types, ranges, unknown names, and "exactly one of"."""

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


def refuse_unknown(call: str, keywords: Mapping[str, object], known: type) -> None:
    """Refuse a keyword that a call does not have, with the nearest that it has."""
    names = list(known.__annotations__)
    for name in keywords.keys() - names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(names)}"
        raise TypeError(f"{call}() has no keyword {name}{hint}")


def exactly_one(choices: Mapping[str, object]) -> None:
    """Refuse all but one choice given."""
    given = [name for name, value in choices.items() if value is not None]
    if len(given) != 1:
        *names, last = choices
        wanted = f"exactly one of {', '.join(names)} and {last} must be given"
        raise InvalidRequestError.of(given[1] if given else next(iter(choices)), f"{wanted}; given: {listed(given)}")


def optional(check: Callable[[str, object], Any], name: str, keywords: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """A keyword's value, checked; None where it is not given."""
    value = keywords.get(name)
    return None if value is None else check(name, value)


def enum_value(enum: EnumTypeWrapper, name: str, keywords: Mapping[str, Any]) -> Any:  # noqa: ANN401  (any of the enums)
    """An enum's number by its name."""
    value = keywords.get(name)
    if value is None:
        return None
    numbers = {known: number for number, known in enum_names(enum.DESCRIPTOR).items()}
    if not isinstance(value, str) or value not in numbers:
        raise InvalidRequestError.of(name, f"must be one of {listed(numbers)}, not {shown(value)}")
    return numbers[value]


def enum_values(enum: EnumTypeWrapper, name: str, keywords: Mapping[str, Any]) -> list[Any]:
    """The numbers of several."""
    return [enum_value(enum, name, {name: value}) for value in several(name, keywords)]


def several(name: str, keywords: Mapping[str, Any]) -> list[Any]:
    """A keyword's values as a list; none where it is not given."""
    values = keywords.get(name)
    return [] if values is None else items(name, values)


def texts(name: str, keywords: Mapping[str, Any]) -> list[str]:
    """Several texts; none where they are not given."""
    return [text(f"{name}[{index}]", one) for index, one in enumerate(several(name, keywords))]


def stop_texts(stop: object) -> list[str]:
    """One text or several."""
    stops = [stop] if isinstance(stop, str) else [] if stop is None else items("stop", stop)
    return [text("stop", one) for one in stops]


def mapping(name: str, value: object) -> Mapping[Any, Any]:
    """A mapping."""
    if not isinstance(value, Mapping):
        raise InvalidRequestError.of(name, f"must be a mapping, not {shown(value)}")
    return value


def text(name: str, value: object) -> str:
    """A text that UTF-8 can carry."""
    if not isinstance(value, str):
        raise InvalidRequestError.of(name, f"must be a text, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError.of(
            name, f"has half a surrogate pair at position {error.start}, which no text can carry; decode it anew"
        ) from error
    return value


def boolean(name: str, value: object) -> bool:
    """True or False, and nothing that Python would take for one of them."""
    if not isinstance(value, bool):
        raise InvalidRequestError.of(name, f"must be True or False, not {shown(value)}")
    return value


def number(name: str, value: object) -> float:
    """A float."""
    if isinstance(value, bool | str | bytes) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise InvalidRequestError.of(name, f"must be a number, not {shown(value)}")
    try:
        return float(value)  # type: ignore[arg-type]  # has one of the two, as just asked
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequestError.of(name, f"must be a number that a float can hold, not {shown(value)}") from error


def integer(name: str, value: object, bits: int) -> int:
    """An integer of so many bits, with sign."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # what has no index raises
    except TypeError:
        raise InvalidRequestError.of(name, f"must be an integer, not {shown(value)}") from None
    if not -(1 << (bits - 1)) <= number < 1 << (bits - 1):
        raise InvalidRequestError.of(name, f"must fit {bits} bits with sign, and {shown(number)} does not")
    return number


def int32(name: str, value: object) -> int:
    """An integer of 32 bits."""
    return integer(name, value, 32)


def int64(name: str, value: object) -> int:
    """An integer of 64 bits."""
    return integer(name, value, 64)


def int32s(name: str, values: object) -> list[int]:
    """Several."""
    return [int32(f"{name}[{index}]", value) for index, value in enumerate(items(name, values))]


def some_int32s(name: str, values: object) -> list[int]:
    """Several, and one at least: a proto cannot tell none from absent."""
    numbers = int32s(name, values)
    if not numbers:
        raise InvalidRequestError.of(name, "is empty, which cannot be told from absent; leave it out or give some")
    return numbers


def items(name: str, values: object) -> list[Any]:
    """Anything that can be iterated, as a list; not a text."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidRequestError.of(name, f"must be a list, not {shown(values)}")
    try:
        return list(values)
    except TypeError:  # an array without dimensions
        raise InvalidRequestError.of(name, f"must be a list, not {shown(values)}") from None


class _Short(reprlib.Repr):
    """Values in a bounded number of characters, each part whole or left out: no cut runs through an escape."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother = 3, 60
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 4

    def repr_str(self, value: str, level: int) -> str:
        """See reprlib's."""
        return _quoted(value)

    def repr_bytes(self, value: bytes, level: int) -> str:
        """What `repr` calls for bytes."""
        return _quoted(value)

    def repr_int(self, value: int, level: int) -> str:
        """See reprlib's."""
        # Python refuses to print the largest.
        return f"an integer of {value.bit_length()} bits" if value.bit_length() > 256 else repr(value)


_SHORT = _Short()
_QUOTED = 60  # characters of a text, at most


def _quoted(value: str | bytes) -> str:
    if len(value) <= _QUOTED:
        return repr(value)
    return f"{value[:_QUOTED]!r}... ({type(value).__name__}, {len(value)} in all)"


def shown(value: object) -> str:
    """A value as an error quotes it."""
    return _SHORT.repr(value)


def listed(names: Iterable[str]) -> str:
    """Names as an error lists them."""
    return ", ".join(map(str, names)) or "none"
