"""Messages of a chat and definitions of tools, from keywords to protos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from gradellm.errors import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import validation
from gradellm.wire.keywords import Message

__all__ = ["built_messages", "tools_json"]

_TEXTS = ("tool_call_id", "name")
_REASONING = ("reasoning_content", "reasoning")
_KEYS = ("role", "content", "tool_calls", *_TEXTS, *_REASONING)


def built_messages(messages: Sequence[Message]) -> list[pb.Message]:
    """Build the messages of an input. Raises InvalidRequestError, which names the message and its key."""
    built = [
        _message(f"messages[{index}]", message)
        for index, message in enumerate(validation.as_list("messages", messages))
    ]
    if not built:
        raise InvalidRequestError.of("messages", "is empty; a conversation has at least one message")
    return built


def tools_json(name: str, tools: object) -> str:
    """Return definitions of tools as JSON, empty for none of them. The server checks what they are."""
    found = validation.as_list(name, tools)
    try:
        return json.dumps(found, ensure_ascii=False, allow_nan=False) if found else ""
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError.of(name, f"must be JSON values: {error}") from error


def _message(where: str, message: object) -> pb.Message:
    if not isinstance(message, Mapping):
        if isinstance(message, str) or not isinstance(message, Sequence) or len(message) != 2:
            raise InvalidRequestError.of(
                where, f"must map role and content, or be a pair of them, not {validation.short_repr(message)}"
            )
        message = dict(zip(("role", "content"), message, strict=True))
    _check_keys(where, message)
    content = message.get("content")
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), "")
    return pb.Message(
        role=validation.text(f"{where}.role", message["role"]),
        content=validation.text(f"{where}.content", "" if content is None and _has_calls(message) else content),
        tool_calls=[
            _tool_call(f"{where}.tool_calls[{index}]", call)
            for index, call in enumerate(validation.optional_list("tool_calls", message))
        ],
        reasoning=validation.text(f"{where}.reasoning_content", reasoning),
        **{name: validation.text(f"{where}.{name}", message[name]) for name in _TEXTS if message.get(name) is not None},
    )


def _has_calls(message: Mapping[str, object]) -> bool:
    return bool(message.get("tool_calls"))


def _check_keys(where: str, message: Mapping[str, object]) -> None:
    required = {"role"} if _has_calls(message) else {"role", "content"}
    if not required <= message.keys() or not message.keys() <= {*_KEYS}:
        raise InvalidRequestError.of(
            where,
            f"needs the keys role and content, and may have {validation.join_names(_KEYS[2:])}; has "
            f"{validation.join_names(message)}",
        )


def _tool_call(where: str, call: object) -> pb.ToolCall:
    """Build a call from OpenAI's form, with arguments as JSON text or as a mapping."""
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        raise InvalidRequestError.of(
            where, f'must be {{"id": ..., "type": "function", "function": ...}}, not {validation.short_repr(call)}'
        )
    function = call["function"]
    if unknown := {*call} - {"id", "type", "function", "index"} | {*function} - {"name", "arguments"}:
        raise InvalidRequestError.of(where, f"has unknown keys: {validation.join_names(sorted(map(str, unknown)))}")
    arguments = function.get("arguments") or ""
    if isinstance(arguments, Mapping):
        try:
            arguments = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError.of(f"{where}.function.arguments", f"must be JSON values: {error}") from error
    call_id = call.get("id")
    return pb.ToolCall(
        id=validation.text(f"{where}.id", "" if call_id is None else call_id),
        name=validation.text(f"{where}.function.name", function.get("name")),
        arguments=validation.text(f"{where}.function.arguments", arguments),
    )
