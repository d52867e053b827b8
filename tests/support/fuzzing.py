"""Random requests for fuzzing: messages generated from the wire contract, and messages with corrupted bytes.

Strategies are built from the message descriptors, so that new fields are fuzzed automatically. Many values are valid,
so that a good share of the requests reaches the model; sizes are small, so that each request is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine.methods.registry import METHODS

SERVICE = "/gradellm.v1.ExplainerService/"
CALLS: dict[str, type[Message]] = {
    "Generate": pb.GenerateRequest,
    "Attribute": pb.AttributeRequest,
    "Evaluate": pb.EvaluateRequest,
    "Tokenize": pb.TokenizeRequest,
    "GetServerInfo": pb.GetServerInfoRequest,
}
STREAMS = ("Generate", "Attribute", "Evaluate")
# Statuses that a server may return to any request. DEADLINE_EXCEEDED and CANCELLED come from the caller.
ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# Fields that determine a request's cost, and their values here.
SMALL: dict[str, st.SearchStrategy[int]] = {
    "max_new_tokens": st.sampled_from([1, 2, 3, 4, 0, -1, 2**31 - 1]),
    "samples": st.sampled_from([2, 3, 1, 0, -1]),
    "steps": st.sampled_from([1, 2, 0, -1]),
    "stride": st.sampled_from([1, 2, 5, 0, -1]),
    "offset": st.sampled_from([0, 1, -1, 99]),
}
TEXTS = ["Once upon a time", "a", "", " ", "\u0000", "é😀", "user", "assistant", "system", "<s>", "x" * 300, "True"]


@dataclass(frozen=True)
class Request:
    """One serialised request."""

    call: str
    payload: bytes


def messages(descriptor: Any) -> st.SearchStrategy[dict[str, Any]]:
    """The fields by name of a message with this descriptor, each there or not."""
    optional: dict[str, st.SearchStrategy[Any]] = {}
    groups: dict[str, list[str]] = {}
    for field in descriptor.fields:
        optional[field.name] = _field(field)
        if field.containing_oneof is not None:
            groups.setdefault(field.containing_oneof.name, []).append(field.name)

    def one_of_each(fields: dict[str, Any]) -> dict[str, Any]:
        for names in groups.values():
            for name in [name for name in names if name in fields][1:]:
                del fields[name]
        return fields

    required: dict[str, st.SearchStrategy[Any]] = {
        name: optional.pop(name) for name in ("input", "name") if name in optional
    }
    few = st.lists(st.sampled_from(sorted(optional)), max_size=4, unique=True) if optional else st.just([])
    return few.flatmap(
        lambda names: st.fixed_dictionaries({**required, **{name: optional[name] for name in names}}).map(one_of_each)
    )


def inputs() -> st.SearchStrategy[dict[str, Any]]:
    """A prompt that mostly is one."""
    good = st.sampled_from(TEXTS).map(lambda text: {"prompt": text})
    ids = st.lists(st.integers(0, 300), min_size=1, max_size=8).map(lambda ids: {"prompt_ids": ids})
    chat = st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "pirate"]), "content": texts()}),
        min_size=1,
        max_size=3,
    ).map(lambda turns: {"messages": turns})
    return st.one_of(good, good, ids, chat, messages(pb.Input.DESCRIPTOR))


def texts() -> st.SearchStrategy[str]:
    """Text of any kind that protobuf takes."""
    return st.one_of(st.sampled_from(TEXTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))


def _field(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        return st.dictionaries(_value(entry["key"]), _value(entry["value"]), max_size=3)
    one = _value(field)
    if field.is_repeated:
        return st.lists(one, max_size=3)
    return one


def _value(field: Any) -> st.SearchStrategy[Any]:
    if field.name in SMALL and field.enum_type is None:
        return SMALL[field.name]
    if field.name == "chat_template_kwargs":
        return st.one_of(st.sampled_from(['{"enable_thinking": false}', '{"messages": []}', "[" * 5000]), texts())
    if field.full_name == "gradellm.v1.AttributionOptions.method":
        return st.one_of(st.sampled_from([*METHODS, ""]), texts())
    if field.message_type is pb.Input.DESCRIPTOR:
        return inputs()
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            return st.deferred(lambda: messages(field.message_type))
        case FieldDescriptor.CPPTYPE_ENUM:
            return st.sampled_from([*(value.number for value in field.enum_type.values), 99])
        case FieldDescriptor.CPPTYPE_STRING:
            return texts()
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return st.sampled_from([0.0, 0.5, 1.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), -float("inf")])
        case FieldDescriptor.CPPTYPE_INT64:
            return st.sampled_from([0, 1, 5, -1, 2**63 - 1, -(2**63)])
        case _:
            return st.sampled_from([0, 1, 2, 3, 5, 20, 255, -1, 300, 2**31 - 1, -(2**31)])


def structured() -> st.SearchStrategy[Request]:
    """Messages of every kind."""
    return st.sampled_from([*CALLS, "Generate", "Generate", "Attribute"]).flatmap(
        lambda call: messages(CALLS[call].DESCRIPTOR).map(
            lambda fields: Request(call, CALLS[call](**fields).SerializeToString())
        )
    )


def mutated() -> st.SearchStrategy[Request]:
    """Messages of every kind, with bytes changed, cut off, repeated or put in."""

    @st.composite
    def draw_one(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Request:
        request: Request = draw(structured())
        payload = bytearray(request.payload)
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.integers(0, max(0, len(payload) - 1)))
            match draw(st.sampled_from(["change", "cut", "insert", "repeat"])):
                case "change" if payload:
                    payload[place] = draw(st.integers(0, 255))
                case "cut":
                    del payload[place:]
                case "insert":
                    payload[place:place] = draw(st.binary(min_size=1, max_size=6))
                case _:
                    payload += payload[place : place + 40]
        return Request(request.call, bytes(payload))

    return draw_one()


def requests() -> st.SearchStrategy[Request]:
    """Any request: structured, mutated, or bytes."""
    anything = st.builds(Request, st.sampled_from(list(CALLS)), st.binary(max_size=80))
    return st.one_of(structured(), structured(), mutated(), anything)


def many(count: int, number: int = 0) -> list[Request]:
    """So many requests, the same for the same seed number."""
    found: list[Request] = []
    batch = 1000  # a run keeps what it has tried

    for index in range(-(-count // batch)):

        @seed(number * 1_000_003 + index)
        @settings(
            max_examples=min(batch, count),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(request=requests())
        def collect(request: Request) -> None:
            found.append(request)

        collect()
    return found[:count]


def send(channel: grpc.Channel, request: Request, timeout_seconds: float) -> tuple[grpc.StatusCode, str]:
    """Send a request and read its complete answer: the status code and the message."""
    try:
        if request.call in STREAMS:
            stream: Any = channel.unary_stream(SERVICE + request.call)
            for _ in stream(request.payload, timeout=timeout_seconds):
                pass
        else:
            unary: Any = channel.unary_unary(SERVICE + request.call)
            unary(request.payload, timeout=timeout_seconds)
    except grpc.RpcError as error:
        failed: Any = error
        return failed.code(), str(failed.details())
    return grpc.StatusCode.OK, ""
