"""Keywords to request protos: values arrive, and invalid ones are refused with the keyword's name."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm import InvalidRequestError, models
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire.requests import attribute_request, deadline, generate_request, tokenize_request
from gradellm.wire.responses import enum_names

INT32 = st.integers(-(2**31), 2**31 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ENUMS = {
    "attribution": (pb.Preset, models.Preset, "preset"),
    "loosening": (pb.Loosening, models.Loosening, "loosening"),
    "similarity": (pb.Similarity, models.Similarity, "similarity"),
    "rotary": (pb.Rotary, models.Rotary, "rotary"),
    "rectify": (pb.Rectify, models.Rectify, "rectify"),
    "magnitude": (pb.Magnitude, models.Magnitude, "magnitude"),
    "normalise_over": (pb.NormaliseOver, models.NormaliseOver, "normalise_over"),
    "sink": (pb.Sink, models.Sink, "sink"),
    "gradient": (pb.Gradient, models.Gradient, "gradient"),
    "sources": (pb.Sources, models.Sources, "sources"),
    "resolution": (pb.Resolution, models.Resolution, "resolution"),
}


def violated(keywords: dict[str, Any], prompt: Any = "Once") -> str:
    """The keyword that a request is refused for."""
    with pytest.raises(InvalidRequestError) as caught:
        generate_request(prompt, keywords)  # type: ignore[arg-type]
    (violation,) = caught.value.violations
    assert str(caught.value) == f"{violation.field}: {violation.description}"
    return violation.field


@given(
    prompt=TEXT,
    integers=st.fixed_dictionaries(
        {},
        optional={
            "max_new_tokens": INT32,
            "top_k": INT32,
            "num_alternatives": INT32,
            "first_attribution": INT32,
            "seed": st.integers(-(2**63), 2**63 - 1),
            "temperature": st.floats(allow_nan=False),
            "top_p": st.floats(allow_nan=False) | st.integers(-9, 9),
        },
    ),
    lists=st.fixed_dictionaries({}, optional={"stop": st.lists(TEXT), "forced_ids": st.lists(INT32)}),
)
def test_keywords_reach_the_request(prompt: str, integers: dict[str, Any], lists: dict[str, Any]) -> None:
    request = generate_request(prompt, {**integers, **lists})  # type: ignore[typeddict-item]
    arrived = pb.GenerateRequest.FromString(request.SerializeToString())
    assert arrived.input == pb.Input(prompt=prompt)
    for name, value in integers.items():
        assert getattr(arrived, name) == value
    for name, value in lists.items():
        assert list(getattr(arrived, name)) == value
    optional = integers.keys() - {"num_alternatives"}
    fields = {"max_new_tokens", "top_k", "first_attribution", "seed", "temperature", "top_p"}
    assert {name for name in fields if arrived.HasField(name)} == optional
    assert arrived.HasField("attribution")
    assert arrived.attribution == pb.AttributionOptions()


@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(get_args(e[1])) for name, e in ENUMS.items()}))
def test_names_of_enums(keywords: Any) -> None:
    options = generate_request("Once", keywords).attribution
    for name, (enum, _, field) in ENUMS.items():
        number = getattr(options, field)
        assert enum_names(enum.DESCRIPTOR).get(number) == keywords.get(name)


@pytest.mark.parametrize("name", ENUMS)
def test_unknown_names_are_refused_with_those_that_exist(name: str) -> None:
    _, names, _ = ENUMS[name]
    with pytest.raises(InvalidRequestError, match=f"{name}: must be one of {get_args(names)[0]}.*, not 'x'"):
        generate_request("Once", {name: "x"})  # type: ignore[misc]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, None),
        ("all", pb.Layers()),  # a switch that is set, so that no default of the server's applies
        (4, pb.Layers(last=4)),
        (np.int64(4), pb.Layers(last=4)),
        ([0, 1], pb.Layers(indexes=[0, 1])),
        (range(2), pb.Layers(indexes=[0, 1])),
        (np.array([3]), pb.Layers(indexes=[3])),
    ],
)
def test_layers(layers: Any, expected: pb.Layers | None) -> None:
    options = generate_request("Once", {"layers": layers}).attribution
    assert (options.layers if options.HasField("layers") else None) == expected


def test_an_attribution_without_a_preset_is_wanted_by_default() -> None:
    """Which one is the server's choice."""
    for keywords in ({}, {"attribution": True}):
        request = generate_request("Once", {**keywords, "sources": "prefix"})  # type: ignore[typeddict-item]
        assert request.attribution == pb.AttributionOptions(sources=pb.SOURCES_PREFIX)
        given = attribute_request("Once", {**keywords, "completion": "a"})  # type: ignore[typeddict-item]
        assert given.attribution == pb.AttributionOptions()
    options = generate_request("Once", {"attribution": True, "sink": "exclude"}).attribution
    assert options == pb.AttributionOptions(sink=pb.SINK_EXCLUDE)


@pytest.mark.parametrize("off", [None, False])
def test_attribution_is_turned_off(off: Any) -> None:
    assert not generate_request("Once", {"attribution": off}).HasField("attribution")
    with pytest.raises(InvalidRequestError, match=f"sink: has no meaning with attribution={off}"):
        generate_request("Once", {"attribution": off, "sink": "keep"})
    with pytest.raises(InvalidRequestError, match=f"attribution: {off} turns attribution off"):
        attribute_request("Once", {"attribution": off, "completion": "a"})
    assert violated({"attribution": 0}) == violated({"attribution": 1}) == "attribution"


@pytest.mark.parametrize(
    ("contrast", "expected"),
    [(0, pb.Contrast(token_id=0)), ("no", pb.Contrast(text="no")), ("runner_up", pb.Contrast(runner_up=True))],
)
def test_contrast(contrast: int | str, expected: pb.Contrast) -> None:
    assert generate_request("Once", {"contrast": contrast}).attribution.contrast == expected


def test_attribution_off() -> None:
    assert not generate_request("Once", {"attribution": None}).HasField("attribution")
    assert violated({"attribution": None, "top_k_sources": 3}) == "top_k_sources"
    with pytest.raises(InvalidRequestError, match="attribution"):
        attribute_request("Once", {"completion": "x", "attribution": None})


def test_messages_and_segments() -> None:
    request = tokenize_request(
        None,
        {"messages": [{"role": "system", "content": "a"}, ("user", "bcd")], "segments": {"doc": (1, 0, 2)}},
    )
    assert request.input == pb.Input(
        messages=[pb.Message(role="system", content="a"), pb.Message(role="user", content="bcd")],
        segments=[pb.Segment(name="doc", message=1, start=0, end=2)],
    )
    raw = tokenize_request("abc", {"segments": {"doc": (0, 2)}}).input.segments[0]
    assert raw == pb.Segment(name="doc", start=0, end=2)
    assert not raw.HasField("message")


def test_stop_may_be_one_text() -> None:
    assert generate_request("Once", {"stop": "\n\n"}).stop == ["\n\n"]


def test_completion_in_two_forms() -> None:
    assert attribute_request("Once", {"completion": ""}).HasField("completion")
    assert attribute_request(None, {"prompt_ids": [1], "completion_ids": [2, 3]}).completion_ids == [2, 3]
    for keywords in ({}, {"completion": "x", "completion_ids": [1]}):
        with pytest.raises(InvalidRequestError, match="exactly one of completion and completion_ids"):
            attribute_request("Once", keywords)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "keywords"),
    [(None, {}), ("a", {"messages": [("user", "b")]}), ("a", {"prompt_ids": [1]}), (None, {"segments": {}})],
)
def test_exactly_one_prompt(prompt: str | None, keywords: Any) -> None:
    with pytest.raises(InvalidRequestError, match="exactly one of prompt, messages and prompt_ids must be given"):
        generate_request(prompt, keywords)


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({"max_new_tokens": 2**31}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"max_new_tokens": 10**5000}, "max_new_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 1j}, "top_p"),
        ({"stop": ["a", 3]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stop": 0}, "stop"),
        ({"stop": ["\udc80"]}, "stop"),
        ({"forced_ids": "123"}, "forced_ids"),
        ({"forced_ids": [1, "2"]}, "forced_ids[1]"),
        ({"target": "the"}, "target"),
        ({"contrast": 1.5}, "contrast"),
        ({"layers": "last"}, "layers"),
        ({"layers": []}, "layers"),
        ({"layers": [1.0]}, "layers[0]"),
        ({"layers": True}, "layers"),
        ({"layers": np.array(3)}, "layers"),
        ({"method": 3}, "method"),
        ({"loosening": 1}, "loosening"),
        ({"segments": [("a", 0, 1)]}, "segments"),
        ({"segments": {"a": (0, 0, 1)}}, "segments['a']"),
        ({"segments": {"a": 3}}, "segments['a']"),
    ],
)
def test_values_that_protobuf_refuses_are_named(keywords: dict[str, Any], field: str) -> None:
    assert violated(keywords) == field


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hi"], "messages[0]"),
        ([("user", "a"), ("user",)], "messages[1]"),
        ([{"role": "user"}], "messages[0]"),
        ([{"role": "user", "content": "a", "nick": "b"}], "messages[0]"),
        ([("user", 3)], "messages[0].content"),
        ([("user", "\ud800")], "messages[0].content"),
    ],
)
def test_wrong_messages_are_named(messages: Any, field: str) -> None:
    assert violated({"messages": messages}, prompt=None) == field


def test_wrong_prompts_are_named() -> None:
    assert violated({}, prompt=b"Once") == "prompt"
    assert violated({}, prompt="\ud83d") == "prompt"
    assert violated({"prompt_ids": []}, prompt=None) == "prompt_ids"
    assert violated({"messages": [("user", "abc")], "segments": {"a": (0, 1)}}, prompt=None) == "segments['a']"


def test_unknown_keywords_are_refused() -> None:
    with pytest.raises(TypeError, match="no keyword temprature; did you mean temperature"):
        generate_request("Once", {"temprature": 1})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(TypeError, match="it has timeout"):
        tokenize_request("Once", {"xyzzy": 1})  # type: ignore[typeddict-unknown-key]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "3", 1e12])
def test_timeouts(timeout: Any) -> None:
    assert (deadline({}), deadline({"timeout": 2})) == (None, 2.0)
    with pytest.raises(InvalidRequestError, match="timeout"):
        deadline({"timeout": timeout})
