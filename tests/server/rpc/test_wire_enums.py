"""Enums of the wire contract and of the engine have the same members, and convert into each other."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import (
    Delivery,
    FinishReason,
    GradEllm,
    InvalidRequestError,
    Metric,
    Perturb,
    Removal,
    Resolution,
    Role,
    Rotary,
    Sources,
)
from gradellm_server.rpc.wire_enums import PRESETS, ROLES, SWITCH_ENUMS, choice, member_of, number_of, set_fields

ENUMS: dict[str, tuple[type[StrEnum], Any]] = {
    **SWITCH_ENUMS,
    "sources": (Sources, pb.Sources),
    "resolution": (Resolution, pb.Resolution),
    "delivery": (Delivery, pb.Delivery),
    "metrics": (Metric, pb.Metric),
    "perturb": (Perturb, pb.Perturb),
    "removal": (Removal, pb.Removal),
    "reason": (FinishReason, pb.FinishReason),
    "role": (Role, pb.Role),
}


@pytest.mark.parametrize("name", ENUMS)
def test_every_member_is_on_both_sides(name: str) -> None:
    kind, wire = ENUMS[name]
    assert {number_of(wire, member) for member in kind} == set(wire.values()[1:])
    for member in kind:
        assert member_of(kind, wire, number_of(wire, member), name) is member


def test_every_switch_of_a_method_that_is_an_enum_has_a_row() -> None:
    """By the fields of AttributionOptions; those of the request itself are no switches."""
    enums = {field.name for field in pb.AttributionOptions.DESCRIPTOR.fields if field.enum_type is not None}
    assert enums - {"preset", "sources", "resolution", "delivery"} == SWITCH_ENUMS.keys()


def test_every_preset_and_role_has_a_row() -> None:
    assert set(PRESETS) == set(pb.Preset.values()[1:])
    for number, name in PRESETS.items():
        assert pb.Preset.Name(number) == f"PRESET_{name.upper()}"
        assert isinstance(GradEllm.preset(name), GradEllm)
    assert {role: number_of(pb.Role, role) for role in Role} == ROLES


@pytest.mark.parametrize("number", [0, 99, -1])
def test_an_unknown_number_is_refused_with_the_known_names(number: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"{number} is not a value .* ROTARY_ROTATED, ROTARY_UNROTATED") as no:
        member_of(Rotary, pb.Rotary, number, "attribution.rotary")
    assert no.value.field == "attribution.rotary"


def test_a_choice_is_none_if_unspecified() -> None:
    assert choice(Rotary, pb.Rotary, pb.AttributionOptions(), "rotary") is None
    options = pb.AttributionOptions(rotary=pb.ROTARY_UNROTATED)
    assert choice(Rotary, pb.Rotary, options, "rotary") is Rotary.UNROTATED
    unknown = pb.EvaluationOptions(removal=9)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=r"^evaluation\.removal: 9"):
        choice(Removal, pb.Removal, unknown, "removal", "evaluation")


def test_a_field_that_is_set_to_zero_is_set() -> None:
    request = pb.GenerateRequest(temperature=0.0, top_k=3)
    assert set_fields(request, "temperature", "top_k", "seed") == {"temperature": 0.0, "top_k": 3}
