"""Response protos to dataclasses, by name and without loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gradellm import models
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import responses


def same_fields(kind: Any, message: str) -> tuple[set[str], set[str]]:
    descriptor = pb.DESCRIPTOR.message_types_by_name[message]
    return {field.name for field in dataclasses.fields(kind)}, {field.name for field in descriptor.fields}


@pytest.mark.parametrize(
    "name",
    [
        *("Alternative", "Attribution", "Finished", "Limits", "MethodInfo", "ModelInfo", "PromptToken", "Provenance"),
        *("Sampling", "Started", "Timings", "Token", "Usage"),
        *("EvaluatedMethod", "EvaluationItem", "EvaluationPoint", "EvaluationSummary", "Interval", "MetricSummary"),
    ],
)
def test_dataclasses_have_the_fields_of_their_messages(name: str) -> None:
    sdk_fields, proto_fields = same_fields(getattr(models, name), name)
    assert sdk_fields == proto_fields


def test_those_of_another_name() -> None:
    for kind, message in (
        (models.AttributionSettings, "AttributionOptions"),
        (models.EvaluationSettings, "EvaluationOptions"),
        (models.ServerInfo, "GetServerInfoResponse"),
        (models.TokenizedPrompt, "TokenizeResponse"),
    ):
        sdk_fields, proto_fields = same_fields(kind, message)
        assert sdk_fields == proto_fields


def test_events_are_those_of_all_streams() -> None:
    streams = ("GenerateResponse", "AttributeResponse", "EvaluateResponse", "FollowResponse")
    fields = [same_fields(models.Event, message) for message in streams]
    assert all(sdk_fields == fields[0][0] for sdk_fields, _ in fields)
    assert fields[0][0] == set().union(*(proto_fields for _, proto_fields in fields))


def event(**kind: Any) -> models.Event:
    converted = responses.event(pb.GenerateResponse(**kind))
    assert converted is not None
    return converted


def test_absent_is_none_and_zero_is_zero() -> None:
    token = event(token=pb.Token(index=0, id=3, alternatives=[pb.Alternative(id=4, text="b", logprob=-1)])).token
    assert token == models.Token(0, 3, "", 0, 0, 0.0, (models.Alternative(4, "b", -1.0),), False, None)
    assert event(token=pb.Token(source_index=0)).token.source_index == 0  # type: ignore[union-attr]
    row = event(attribution=pb.Attribution(scores=[0.5], contrast_token_id=0)).attribution
    assert row == models.Attribution(0, (0.5,), (), 0, 0)


def test_a_newer_servers_values_are_passed_over() -> None:
    finished = event(finished=pb.Finished(reason=99)).finished  # type: ignore[arg-type]
    assert finished is not None
    assert finished.reason is None
    assert responses.event(pb.GenerateResponse()) is None


@pytest.mark.parametrize(
    ("options", "layers", "contrast"),
    [
        (pb.AttributionOptions(), None, None),
        (pb.AttributionOptions(layers=pb.Layers(last=3), contrast=pb.Contrast(token_id=0)), 3, 0),
        (pb.AttributionOptions(layers=pb.Layers(indexes=[0]), contrast=pb.Contrast(text="no")), (0,), "no"),
        (pb.AttributionOptions(layers=pb.Layers(), contrast=pb.Contrast(runner_up=True)), "all", "runner_up"),
    ],
)
def test_settings_read_like_keywords(options: pb.AttributionOptions, layers: Any, contrast: Any) -> None:
    started = event(started=pb.Started(provenance=pb.Provenance(attribution=options))).started
    assert started is not None
    assert started.provenance.attribution is not None
    assert started.provenance.attribution.layers == layers
    read_contrast = started.provenance.attribution.contrast
    expected = contrast if options.HasField("contrast") else None
    assert read_contrast == expected
    assert started.provenance.sampling is None
