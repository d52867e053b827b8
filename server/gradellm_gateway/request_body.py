"""Reads the JSON body of a request, within its size limit. The conversion of a large one leaves the event loop free."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from gradellm import InvalidRequestError
from gradellm_gateway.errors import RequestTooLargeError
from gradellm_gateway.fields import quoted, truncated

MAX_BODY_BYTES = 8 << 20
LARGE_BODY_BYTES = 1 << 16  # converted in a thread: megabytes take seconds, in which other streams would stand still
MAX_LEVELS = 64  # of objects and lists in each other, in fields that may hold any JSON; servers refuse more

Result = TypeVar("Result")

_is_large: ContextVar[bool] = ContextVar("is_large", default=False)  # whether this request's body is

DISCARD_SECONDS = 2.0


async def read_json(request: Request) -> Any:  # noqa: ANN401 (whatever a client sent)
    """The request's JSON value.

    Raises:
        InvalidRequestError: for another content type, or a body that is not JSON.
        RequestTooLargeError: for a body of more than `MAX_BODY_BYTES`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which pages of other origins cannot send without a CORS preflight
        shown = quoted(kind) if kind else "none"
        raise InvalidRequestError.of("content-type", f"must be application/json, not {shown}")
    body = await _read_body(request)
    _is_large.set(len(body) > LARGE_BODY_BYTES)
    return await converted(lambda: _parsed(body))


async def converted(convert: Callable[[], Result]) -> Result:
    """The result of a function that converts the request of this task; in a thread if its body is large."""
    return await run_in_threadpool(convert) if _is_large.get() else convert()


async def read_object(request: Request) -> Mapping[str, Any]:
    """The request's JSON object. Raises as `read_json`, and InvalidRequestError for another JSON value."""
    body = await read_json(request)
    if not isinstance(body, Mapping):
        raise InvalidRequestError("the request must be a JSON object")
    return body


class _Refused(str):
    """What the body has in the place of a number that JSON does not have, or that is too long."""

    __slots__ = ()


def _parsed(body: bytes) -> Any:  # noqa: ANN401 (whatever a client sent)
    """The JSON value of a body. Raises InvalidRequestError, which names the field where it is known."""
    refused: list[_Refused] = []

    def refuse(description: str) -> _Refused:
        refused.append(_Refused(description))
        return refused[-1]

    def constant(name: str) -> _Refused:
        return refuse(f"{name} is not a JSON number")

    def integer(digits: str) -> int | _Refused:
        limit = sys.get_int_max_str_digits()
        if 0 < limit < len(digits):
            return refuse(f"a number of {len(digits):,} digits; the limit is {limit:,}: shorten it")
        return int(digits)

    try:
        try:
            value = json.loads(body, parse_constant=constant)
        except json.JSONDecodeError:
            raise
        except ValueError:  # of int(), for long numbers; read again, to find their places
            value = json.loads(body, parse_constant=constant, parse_int=integer)
    except RecursionError:
        field = _deep_field(body)
        description = f"is nested deeper than {MAX_LEVELS} levels, which is the limit: flatten it"
        raise (
            InvalidRequestError.of(field, description) if field else InvalidRequestError(f"the request {description}")
        ) from None
    except ValueError as error:  # also for bytes that are not UTF-8
        raise InvalidRequestError(f"the request is not JSON: {error}") from error
    if refused:
        path, description = _first_refusal(value)
        raise (
            InvalidRequestError.of(path, description)
            if path
            else InvalidRequestError(f"the request is not JSON: {description}")
        )
    return value


def _first_refusal(value: object) -> tuple[str, str]:
    """The path and the description of the first that is refused in a value. Takes memory for the depth alone."""
    keys: list[str] = []
    stack = [_members({"": value})]
    while stack:
        for key, member in stack[-1]:
            if isinstance(member, _Refused):
                return "".join([*keys[1:], key]).removeprefix("."), member
            if isinstance(member, dict | list):
                keys.append(key)
                stack.append(_members(member))
                break
        else:
            stack.pop()
            if keys:
                keys.pop()
    return "", ""


def _members(value: dict[str, Any] | list[Any]) -> Iterator[tuple[str, object]]:
    if isinstance(value, list):
        return ((f"[{index}]", each) for index, each in enumerate(value))
    return ((f".{truncated(name)}", each) for name, each in value.items())


_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{}]', re.DOTALL)


def _deep_field(body: bytes) -> str:
    """The field of a body whose value is nested deeper than `MAX_LEVELS`; empty where the body is no object."""
    levels, last, field = 0, b"", b""
    for match in _TOKEN.finditer(body):
        token = match[0]
        if token in b"{[":
            if levels == 1:
                field = last
            levels += 1
            if levels > MAX_LEVELS:
                break
        elif token in b"}]":
            levels -= 1
        elif levels == 1:
            last = token
    try:
        name = json.loads(field)
    except ValueError:
        return ""
    return truncated(name) if body.lstrip()[:1] == b"{" else ""


async def _read_body(request: Request) -> bytes:
    length = request.headers.get("content-length", "")
    chunks = request.stream()
    body = bytearray()
    is_too_large = length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES
    while not is_too_large and (chunk := await anext(chunks, None)) is not None:
        body += chunk
        is_too_large = len(body) > MAX_BODY_BYTES
    if is_too_large:
        if "expect" not in request.headers:  # else the client waits for 100 Continue before it sends the body
            await _discard(chunks)
        raise RequestTooLargeError(f"the request is larger than {MAX_BODY_BYTES:,} bytes, which is the limit")
    return bytes(body)


async def _discard(chunks: AsyncIterator[bytes]) -> None:
    """Read the rest of a body for a while: a client that is disconnected while it sends does not see the response."""
    count = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while count < 2 * MAX_BODY_BYTES and (chunk := await anext(chunks, None)) is not None:
                count += len(chunk)
