"""Enums and optional fields of the wire contract, and the corresponding enums and arguments of the engine.

An enum's member has the same name on both sides, after the wire's prefix: ROTARY_UNROTATED is `Rotary.UNROTATED`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import (
    Aggregation,
    Gradient,
    InvalidRequestError,
    Loosening,
    Magnitude,
    NormaliseOver,
    Objective,
    Rectify,
    Role,
    Rotary,
    Similarity,
    Sink,
)

PRESETS: dict[int, str] = {number: name.removeprefix("PRESET_").lower() for name, number in pb.Preset.items() if number}
PRESET_NUMBERS: dict[str, Any] = {name: number for number, name in PRESETS.items()}
ROLES = {role: pb.Role.Value(f"ROLE_{role.upper()}") for role in Role}
# The switches of methods that are enums, by their fields' names. Requests and provenance read this table; those that
# are numbers stand in `requests_from_wire.NUMERIC_SWITCHES`.
SWITCH_ENUMS: dict[str, tuple[type[StrEnum], EnumTypeWrapper]] = {
    "loosening": (Loosening, pb.Loosening),
    "similarity": (Similarity, pb.Similarity),
    "rotary": (Rotary, pb.Rotary),
    "rectify": (Rectify, pb.Rectify),
    "magnitude": (Magnitude, pb.Magnitude),
    "normalise_over": (NormaliseOver, pb.NormaliseOver),
    "sink": (Sink, pb.Sink),
    "gradient": (Gradient, pb.Gradient),
    "objective": (Objective, pb.Objective),
    "aggregation": (Aggregation, pb.Aggregation),
}

Member = TypeVar("Member", bound=StrEnum)


def member_of(kind: type[Member], wire: EnumTypeWrapper, number: int, field: str) -> Member:
    """The engine's member for a number on the wire.

    Raises:
        InvalidRequestError: naming the field, if the number is unspecified or unknown.
    """
    if number not in wire.values()[1:]:
        raise InvalidRequestError(
            field, f"{number} is not a value that this server knows; it knows {', '.join(wire.keys()[1:])}"
        )
    return kind(wire.Name(number).removeprefix(_prefix(wire)).lower())


def number_of(wire: EnumTypeWrapper, member: str) -> int:
    """The number on the wire for a member of the engine's enum."""
    return int(wire.Value(f"{_prefix(wire)}{member.upper()}"))


def choice(
    kind: type[Member], wire: EnumTypeWrapper, request: Message, field: str, parent: str = "attribution"
) -> Member | None:
    """The engine's member that an enum field holds; None if the field is unspecified.

    Raises:
        InvalidRequestError: naming `parent.field`, if the number is unknown.
    """
    number = getattr(request, field)
    return None if number == 0 else member_of(kind, wire, number, f"{parent}.{field}")


def set_fields(request: Message, *names: str) -> dict[str, Any]:
    """The values of those optional fields that are set."""
    return {name: getattr(request, name) for name in names if request.HasField(name)}


def _prefix(wire: EnumTypeWrapper) -> str:
    return str(wire.Name(0)).removesuffix("UNSPECIFIED")
