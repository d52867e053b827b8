"""From response protos to the dataclasses of `gradellm.models`, field by field.

Only Layers, Contrast and TokenSelection differ from the wire: they become values of the keywords of the same names.
Fields, enum values and events that this client does not know are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from gradellm.models import Event, ServerInfo, TokenizedPrompt
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.descriptor import EnumDescriptor
    from google.protobuf.message import Message

T = TypeVar("T")

__all__ = ["enum_names", "event", "server_info", "tokenized_prompt"]


def event(
    response: pb.GenerateResponse | pb.AttributeResponse | pb.EvaluateResponse | pb.FollowResponse,
) -> Event | None:
    """Return the event of a stream's message; None for an unknown kind."""
    return _converted(Event, response) if response.WhichOneof("event") else None


def tokenized_prompt(response: pb.TokenizeResponse) -> TokenizedPrompt:
    """Return the response of Tokenize."""
    return _converted(TokenizedPrompt, response)


def server_info(response: pb.GetServerInfoResponse) -> ServerInfo:
    """Return the response of GetServerInfo."""
    return _converted(ServerInfo, response)


def enum_names(enum: EnumDescriptor) -> dict[int, str]:
    """Return the values' lower-case names without the enum's prefix; UNSPECIFIED is left out."""
    prefix = len(enum.values_by_number[0].name) - len("UNSPECIFIED")
    return {value.number: value.name[prefix:].lower() for value in enum.values if value.number != 0}


def _layers(message: pb.Layers) -> Literal["all"] | int | tuple[int, ...]:
    if message.HasField("last"):
        return message.last
    return tuple(message.indexes) or "all"


def _contrast(message: pb.Contrast) -> int | str | None:
    match message.WhichOneof("token"):
        case "token_id":
            return message.token_id
        case "text":
            return message.text
        case "runner_up":
            return "runner_up"
        case _:
            return None


def _converted(kind: type[T], message: Message) -> T:
    readers = _readers(cast("Any", kind), message.DESCRIPTOR.full_name)
    return kind(**{name: read(message) for name, read in readers.items()})


@cache
def _readers(kind: type[Any], message_name: str) -> dict[str, Callable[[Message], Any]]:
    """Return a reader for each field that the dataclass and the message share."""
    descriptor = pb.DESCRIPTOR.message_types_by_name[message_name.rpartition(".")[2]]
    hints = get_type_hints(kind)
    return {
        field.name: _reader(descriptor.fields_by_name[field.name], hints[field.name])
        for field in fields(kind)
        if field.name in descriptor.fields_by_name
    }


def _reader(field: Any, hint: Any) -> Callable[[Message], Any]:  # noqa: ANN401  (a FieldDescriptor, and any type)
    name = field.name
    optional = get_origin(hint) in (Union, UnionType) and type(None) in get_args(hint)
    kind = next(arm for arm in get_args(hint) if arm is not type(None)) if optional else hint

    if get_origin(kind) is Mapping:
        return lambda message: dict(sorted(getattr(message, name).items()))
    if get_origin(kind) is tuple and field.enum_type is not None:
        enum = enum_names(field.enum_type)
        return lambda message: tuple(enum[number] for number in getattr(message, name) if number in enum)
    if field.message_type is pb.TokenSelection.DESCRIPTOR:
        return lambda message: tuple(getattr(message, name).indexes)
    if get_origin(kind) is tuple and field.message_type is not None:
        (item, _) = get_args(kind)
        return lambda message: tuple(_converted(item, part) for part in getattr(message, name))
    if get_origin(kind) is tuple:
        return lambda message: tuple(getattr(message, name)[:])  # a third faster than iterating over numbers
    if field.enum_type is not None:
        names = enum_names(field.enum_type)
        return lambda message: names.get(getattr(message, name))

    read = cast("Callable[[Message], Any]", lambda message: getattr(message, name))
    if field.message_type is pb.Layers.DESCRIPTOR:
        return lambda message: _layers(read(message)) if message.HasField(name) else None
    if field.message_type is pb.Contrast.DESCRIPTOR:
        return lambda message: _contrast(read(message))
    if field.message_type is not None:
        result = read
        read = lambda message: _converted(kind, result(message))  # noqa: E731
    return (lambda message: read(message) if message.HasField(name) else None) if optional else read
