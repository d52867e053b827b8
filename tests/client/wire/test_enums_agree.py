"""The enums of the contract, of the engine and of the client: the same values, and each is converted both ways."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from types import SimpleNamespace
from typing import Any, cast, get_args, get_type_hints

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

import gradellm_engine as engine
from gradellm import models
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import responses, validation
from gradellm.wire.evaluate_requests import evaluate_request
from gradellm.wire.requests import generate_request
from gradellm_engine.params import PRESETS
from gradellm_server.rpc import wire_enums
from gradellm_server.rpc.events_to_wire import responses as messages_of
from gradellm_server.rpc.requests_from_wire import read_attribution, read_evaluation

ENUMS = list(pb.DESCRIPTOR.enum_types_by_name)  # a new enum of the contract is tested without a change here
ENGINES = {"UpstreamDtype": "NumberFormat"}  # the engine's names of enums that have another one in the contract
KEYWORDS = {"preset": "attribution"}  # fields whose keyword has another name
# What a value needs beside it, to be valid.
COMPANIONS: dict[str, dict[str, Any]] = {
    "magnitude": {"loosening": "none", "rectify": "none"},
    "objective": {"method": "saliency"},
    "aggregation": {"method": "saliency"},
    "rectify": {"loosening": "none"},  # with which all of its values are defined
}


@dataclass
class NoModel:
    """A model of one layer without other information, for provenances."""

    num_layers: int = 1


ENGINE = cast("engine.Engine", SimpleNamespace(info=NoModel()))
SAMPLING = engine.Sampling(max_new_tokens=1, seed=0)
PROMPT = engine.Prompt("a", (engine.PromptToken(1, "a", 0, 1, engine.Role.USER, None, None, False),), ())


def wire(enum: str) -> EnumTypeWrapper:
    return cast("EnumTypeWrapper", getattr(pb, enum))


def engine_values(enum: str) -> list[str]:
    if enum == "Preset":
        return list(PRESETS)
    if enum == "IntervalKind":
        return list(get_args(get_type_hints(engine.Interval)["kind"]))
    return [member.value for member in engine_enum(enum)]


def engine_enum(enum: str) -> type[StrEnum]:
    found: type[StrEnum] = getattr(engine, ENGINES.get(enum, enum))
    return found


def client_values(enum: str) -> list[str]:
    return list(get_args(getattr(models, enum)))


def pairs(enums: list[str]) -> list[tuple[str, str]]:
    return [(enum, value) for enum in enums for value in client_values(enum)]


def enum_fields(message: Any) -> list[tuple[str, str]]:
    """Each value of each enum field of a message: the field's name and the value."""
    return [
        (field.name, value)
        for field in message.DESCRIPTOR.fields
        if field.enum_type is not None
        for value in client_values(field.enum_type.name)
    ]


@pytest.mark.parametrize("enum", ENUMS)
def test_all_three_have_the_same_values(enum: str) -> None:
    prefix = wire(enum).keys()[0].removesuffix("UNSPECIFIED")
    names = [name.removeprefix(prefix).lower() for name in wire(enum).keys()[1:]]
    assert names == client_values(enum)  # in the contract's order, too, as documentation and errors list them
    assert set(names) == set(engine_values(enum))
    assert len(set(names)) == len(names) == len(engine_values(enum))


@pytest.mark.parametrize(("enum", "value"), pairs(ENUMS))
def test_names_and_numbers_are_converted_both_ways(enum: str, value: str) -> None:
    number = validation.enum_value(wire(enum), "x", {"x": value})
    assert number > 0
    assert responses.enum_names(wire(enum).DESCRIPTOR)[number] == value
    if enum == "Preset":
        assert wire_enums.PRESETS[number] == value
        return
    assert wire_enums.number_of(wire(enum), value) == number
    if enum != "IntervalKind":  # a literal of the engine
        kind = engine_enum(enum)
        assert wire_enums.member_of(kind, wire(enum), number, "x") is kind(value)


@pytest.mark.parametrize("enum", ENUMS)
@pytest.mark.parametrize("number", [0, 99])
def test_numbers_without_a_name_are_refused_by_the_server_and_passed_over_by_the_client(enum: str, number: int) -> None:
    with pytest.raises(engine.InvalidRequestError, match=r"a\.b"):
        wire_enums.member_of(StrEnum, wire(enum), number, "a.b")
    assert number not in responses.enum_names(wire(enum).DESCRIPTOR)


def started(**settings: Any) -> models.Provenance:
    """The provenance that the client reads, of these settings of the engine."""
    event = engine.Started(PROMPT, (), SAMPLING, **{"attribution": None, **settings})
    (message,) = messages_of(pb.EvaluateResponse, ENGINE, event)
    read = responses.event(message)
    assert read is not None
    assert read.started is not None
    return read.started.provenance


@pytest.mark.parametrize(("field", "value"), enum_fields(pb.AttributionOptions))
def test_attribution_settings_come_back_as_their_keywords(field: str, value: str) -> None:
    """From the keyword through the request to the engine's settings, and back in the provenance."""
    keywords: Any = {**COMPANIONS.get(field, {}), KEYWORDS.get(field, field): value}
    settings = read_attribution(generate_request("a", keywords).attribution)
    if field == "preset":  # provenances have its own name beside its switches
        assert settings.method == engine.GradEllm.preset(value)
        resolved = started(attribution=settings).attribution
        assert resolved is not None
        assert resolved.preset == engine.concrete_preset(value)
        return
    resolved = getattr(settings, field, None) or getattr(settings.method, field)
    assert isinstance(resolved, StrEnum)
    assert resolved == value
    assert getattr(started(attribution=settings).attribution, field) == value


@pytest.mark.parametrize(("field", "value"), enum_fields(pb.EvaluationOptions))
def test_evaluation_settings_come_back_as_their_keywords(field: str, value: str) -> None:
    keywords: Any = {field: [value] if field == "metrics" else value}
    if field == "metrics" and engine.Metric(value).needs_rationale:
        keywords["rationale"] = ["a"]
    settings = read_evaluation(evaluate_request("a", keywords).evaluation, ())
    resolved = getattr(settings, field)
    assert resolved == ((value,) if field == "metrics" else value)
    assert getattr(started(evaluation=settings).evaluation, field) == resolved


def received(event: engine.Event) -> models.Event:
    """The client's event of an event of the engine."""
    (message,) = messages_of(pb.EvaluateResponse, ENGINE, event)
    read = responses.event(message)
    assert read is not None
    return read


@pytest.mark.parametrize("value", client_values("FinishReason"))
def test_finish_reasons_arrive(value: str) -> None:
    numbers = {field.name: 0 for field in fields(engine.Finished) if field.name.startswith("num_")}
    seconds = {field.name: 0.0 for field in fields(engine.Finished) if field.name.endswith("_seconds")}
    finished = engine.Finished(engine.FinishReason(value), None, "", **numbers, **seconds)  # type: ignore[arg-type]
    assert received(finished).finished.reason == value  # type: ignore[union-attr]


@pytest.mark.parametrize("value", client_values("Role"))
def test_roles_arrive(value: str) -> None:
    token = PROMPT.tokens[0]._replace(role=engine.Role(value))
    event = engine.Started(engine.Prompt("a", (token,), ()), (), SAMPLING, None)
    (read,) = received(event).started.prompt_tokens  # type: ignore[union-attr]
    assert read.role == value


@pytest.mark.parametrize("metric", client_values("Metric"))
@pytest.mark.parametrize("kind", client_values("IntervalKind"))
def test_metrics_and_kinds_of_intervals_arrive(metric: Any, kind: Any) -> None:
    interval = engine.Interval(0.5, 0.25, 0.75, kind, 3)
    summary = engine.MetricSummary("a", engine.Metric(metric), interval, 0.5, interval, (), None, 1)
    event = received(engine.EvaluationSummary((summary,), (0,), (), None, False, 1, 1, 1))
    (read,) = event.summary.metrics  # type: ignore[union-attr]
    assert (read.metric, read.interval.kind) == (metric, kind)
    assert read.difference_from_random == read.interval
    item = received(engine.EvaluationItem(0, "a", engine.Metric(metric), 0.5))
    assert item.item.metric == metric  # type: ignore[union-attr]
