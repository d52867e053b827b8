"""Reads JSON that a caller sends as text.

Python's reader takes NaN and Infinity, makes an infinite float of 1e999, and keeps escapes of half a character. Later
readers (chat templates, tokenizers, the grammar compiler, protobuf) fail on these, or on deep nesting.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from gradellm_engine.errors import InvalidRequestError

MAX_LEVELS = 64  # of objects and lists in each other; Rust's readers of JSON take 128
MAX_KEY = 40  # characters of a name in a place
MAX_KEYS = 6  # names in a place that is too deep

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json(field: str, text: str, *, max_characters: int | None = None, remedy: str = "flatten it") -> Any:  # noqa: ANN401 (whatever JSON holds)
    """The value of a JSON text; `remedy` says what to do about deep nesting.

    Raises:
        InvalidRequestError: naming the field, and the place in the value, as a JSON pointer: for text that is not
            JSON, or longer than `max_characters`; more than `MAX_LEVELS` levels; numbers and texts that JSON does not
            have.
    """
    if max_characters is not None and len(text) > max_characters:
        raise InvalidRequestError(
            field, f"{len(text):,} characters of JSON; the limit is {max_characters:,}: shorten it"
        )
    too_deep = f"nested deeper than {MAX_LEVELS} levels, which is the limit: {remedy}"
    try:
        value = json.loads(text, parse_constant=_Refused, parse_float=_finite)
    except RecursionError:
        raise InvalidRequestError(field, too_deep) from None
    except json.JSONDecodeError as error:
        raise InvalidRequestError(field, f"is not JSON: {error}") from None
    except ValueError:  # int() refuses long texts, whose conversion takes the square of their length
        limit = sys.get_int_max_str_digits()
        raise InvalidRequestError(
            field, f"a number has more than {limit:,} digits, which is the limit: shorten it"
        ) from None
    for keys, member in _members(value):
        if len(keys) >= MAX_LEVELS and isinstance(member, dict | list):
            place = pointer(keys[:MAX_KEYS])
            raise InvalidRequestError(field, f"at {place}/...: {too_deep}")
        if isinstance(member, _Refused):
            raise InvalidRequestError(field, f"at {pointer(keys)}: {member} is not a JSON number, which is finite")
        for part in (member, keys[-1] if keys else ""):
            if isinstance(part, str) and not part.isascii() and _SURROGATE.search(part):
                raise InvalidRequestError(
                    field, f"at {pointer(keys)}: a lone surrogate is not a character: send valid Unicode"
                )
    return value


def pointer(keys: Iterable[str | int]) -> str:
    """The place of a member as `$ref` writes it: #/properties/name. Of long names the beginning."""
    return "#" + "".join(f"/{escaped(str(key))}" for key in keys)


def escaped(key: str) -> str:
    """A name in a JSON pointer, at most `MAX_KEY` characters of it."""
    return key[:MAX_KEY].replace("~", "~0").replace("/", "~1").encode("utf-8", "replace").decode()


class _Refused(str):
    """The text of a number that JSON does not have."""

    __slots__ = ()


def _finite(digits: str) -> float | _Refused:
    value = float(digits)
    return value if math.isfinite(value) else _Refused(digits[:20])


def _members(value: object) -> Iterator[tuple[list[str | int], object]]:
    """The value and all in it, each with its keys, which change with the next one. Takes memory for the depth alone."""
    keys: list[str | int] = []
    yield keys, value
    stack = [_items(value)]
    while stack:
        for key, member in stack[-1]:
            keys.append(key)
            yield keys, member
            if isinstance(member, dict | list):
                stack.append(_items(member))
                break
            keys.pop()
        else:
            stack.pop()
            if keys:
                keys.pop()


def _items(value: object) -> Iterator[tuple[str | int, object]]:
    if isinstance(value, dict):
        return iter(value.items())
    return iter(enumerate(value) if isinstance(value, list) else ())
