"""Invalid input: status code, field name and limit in the error, and the server keeps running."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import given, settings
from hypothesis import strategies as st

from gradellm.v1 import explainer_pb2 as pb
from server.conftest import RunningServer, Serving

OPTIONS = pb.AttributionOptions
PROMPT = pb.Input(prompt="Once upon a time")
HELLO = pb.Message(role="user", content="Hello")


def generate(prompt_input: pb.Input = PROMPT, **fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(input=prompt_input, **{"max_new_tokens": 2, **fields})


def explained(**options: Any) -> pb.GenerateRequest:
    return generate(attribution=OPTIONS(**options))


def segments(*named: tuple[str, int, int]) -> pb.Input:
    return pb.Input(prompt="Hello", segments=[pb.Segment(name=n, start=a, end=b) for n, a, b in named])


# A request, the field that the error names, and a part of its message.
CASES: dict[str, tuple[pb.GenerateRequest, str, str]] = {
    "no input": (pb.GenerateRequest(), "input", "none was given"),
    "empty prompt": (generate(pb.Input(prompt="")), "input.prompt", "empty"),
    "prompt and messages": (generate(pb.Input(prompt="a", messages=[HELLO])), "input", "exactly one"),
    "prompt and ids": (generate(pb.Input(prompt="a", prompt_ids=[1])), "input", "exactly one"),
    "over-long prompt": (generate(pb.Input(prompt="a" * 300)), "input", "301 tokens; the limit is 255"),
    "role that the template refuses": (
        generate(pb.Input(messages=[pb.Message(role="pirate", content="arr")])), "input.messages", "unknown role"),
    "empty role": (generate(pb.Input(messages=[pb.Message(content="a")])), "input.messages[0].role", "empty"),
    "token id beyond the vocabulary": (
        generate(pb.Input(prompt_ids=[1, 261])), "input.prompt_ids[1]", "261 is not a token id; the vocabulary has"),
    "negative token id": (generate(pb.Input(prompt_ids=[-1])), "input.prompt_ids[0]", "-1"),
    "segment outside the text": (generate(segments(("a", 0, 6))), "input.segments[0]", "5 code points"),
    "segment that is empty": (generate(segments(("a", 2, 2))), "input.segments[0]", "at least one"),
    "segment before the text": (generate(segments(("a", -1, 2))), "input.segments[0]", "-1"),
    "segments that overlap": (generate(segments(("a", 0, 3), ("b", 2, 4))), "input.segments[1]", "overlaps"),
    "segments of one name": (generate(segments(("a", 0, 1), ("a", 2, 3))), "input.segments[1].name", "unique"),
    "segment of a message that is not there": (
        generate(pb.Input(messages=[HELLO], segments=[pb.Segment(name="a", message=1, start=0, end=1)])),
        "input.segments[0].message", "index into the 1 messages"),
    "token that cannot be generated": (
        explained(tokens=pb.TokenSelection(indexes=[0, 2])), "attribution.tokens.indexes",
        "2 is beyond max_new_tokens, 2"),
    "token before the first": (
        explained(tokens=pb.TokenSelection(indexes=[-1])), "attribution.tokens.indexes", "-1 is no token"),
    "more tokens than a completion has": (
        explained(tokens=pb.TokenSelection(indexes=range(5000))), "attribution.tokens.indexes",
        "5,000 tokens; the limit"),
    "text that is not written": (
        explained(tokens=pb.TokenSelection(spans=[pb.TextSpan(start=0, end=1)])), "attribution.tokens.spans",
        "Generate takes indexes"),
    "text without a code point": (
        explained(tokens=pb.TokenSelection(spans=[pb.TextSpan(start=1, end=1)])), "attribution.tokens.spans[0]",
        "at least one code point"),
    "zero max_new_tokens": (generate(max_new_tokens=0), "max_new_tokens", "at least 1"),
    "more tokens than the context holds": (generate(max_new_tokens=250), "max_new_tokens", "at most 239"),
    "NaN temperature": (generate(temperature=float("nan")), "temperature", "nan"),
    "infinite temperature": (generate(temperature=float("inf")), "temperature", "finite"),
    "negative temperature": (generate(temperature=-0.5), "temperature", "-0.5"),
    "top_p over 1": (generate(top_p=1.5), "top_p", "at most 1"),
    "top_p of 0": (generate(top_p=0.0), "top_p", "above 0"),
    "NaN top_p": (generate(top_p=float("nan")), "top_p", "nan"),
    "negative top_k": (generate(top_k=-1), "top_k", "at least 0"),
    "negative seed": (generate(seed=-1), "seed", "2**63"),
    "empty stop text": (generate(stop=["a", ""]), "stop[1]", "empty"),
    "too many stop texts": (generate(stop=["a"] * 17), "stop", "17 were given; the limit is 16"),
    "too many alternatives": (generate(num_alternatives=21), "num_alternatives", "20"),
    "forced id beyond the vocabulary": (generate(forced_ids=[999]), "forced_ids[0]", "999"),
    "more forced tokens than max_new_tokens": (generate(forced_ids=[1, 2, 3]), "forced_ids", "allows 2"),
    "first_attribution after the forced tokens": (
        generate(forced_ids=[1], first_attribution=2), "first_attribution", "between 0 and"),
    "unknown method": (explained(method="tea_leaves"), "attribution.method", "grad_ellm"),
    "unknown preset": (explained(preset=99), "attribution.preset", "99"),
    "unknown loosening": (explained(loosening=99), "attribution.loosening", "LOOSENING_MIN_MAX"),
    "unknown resolution": (explained(resolution=99), "attribution.resolution", "RESOLUTION_WORD"),
    "switches that do not go together": (
        explained(loosening=pb.LOOSENING_NONE, similarity=pb.SIMILARITY_COSINE), "attribution.similarity", "loosening"),
    "magnitude without its switches": (
        explained(magnitude=pb.MAGNITUDE_HEAD_ABS), "attribution.magnitude", "rectify none"),
    "a layer that is not there": (explained(layers=pb.Layers(indexes=[0, 3])), "attribution.layers", "layers 0 to 2"),
    "more last layers than there are": (explained(layers=pb.Layers(last=4)), "attribution.layers", "has 3"),
    "no last layer": (explained(layers=pb.Layers(last=0)), "attribution.layers", "at least 1"),
    "layers said twice": (explained(layers=pb.Layers(last=1, indexes=[0])), "attribution.layers", "not both"),
    "a layer twice": (explained(layers=pb.Layers(indexes=[1, 1])), "attribution.layers", "once"),
    "target beyond the vocabulary": (explained(target_token_id=261), "attribution.target_token_id", "261"),
    "contrast beyond the vocabulary": (
        explained(contrast=pb.Contrast(token_id=-2)), "attribution.contrast.token_id", "-2"),
    "contrast with nothing": (explained(contrast=pb.Contrast()), "attribution.contrast", "exactly one"),
    "contrast with an empty text": (explained(contrast=pb.Contrast(text="")), "attribution.contrast.text", "empty"),
    "no sources at all": (explained(top_k_sources=0), "attribution.top_k_sources", "at least 1"),
    "unknown delivery": (explained(delivery=99), "attribution.delivery", "DELIVERY_CHUNKED"),
    "no token a chunk": (explained(chunk_size=0), "attribution.chunk_size", "between 1 and 256"),
    "too many tokens a chunk": (explained(chunk_size=257), "attribution.chunk_size", "between 1 and 256"),
    "a method after the fact": (explained(method="saliency"), "attribution.method", "use Attribute"),
    "a switch that grad_ellm has not": (explained(steps=3), "attribution.steps", "loosening"),
    "a switch where there is none": (
        explained(method="random", layers=pb.Layers(last=1)), "attribution.layers", "its switches are seed"),
    "a target for what has none": (
        explained(method="attention", target_token_id=1), "attribution.target_token_id", "attention"),
}  # fmt: skip


def attributed(**options: Any) -> pb.AttributeRequest:
    """An Attribute request with options."""
    return pb.AttributeRequest(input=PROMPT, completion="ab", attribution=pb.AttributionOptions(**options))


ATTRIBUTE_CASES: dict[str, tuple[pb.AttributeRequest, str, str]] = {
    "no completion": (pb.AttributeRequest(input=PROMPT), "completion", "exactly one"),
    "both completions": (
        pb.AttributeRequest(input=PROMPT, completion="a", completion_ids=[1]),
        "completion",
        "exactly",
    ),
    "empty completion": (pb.AttributeRequest(input=PROMPT, completion=""), "completion", "empty"),
    "bad completion id": (pb.AttributeRequest(input=PROMPT, completion_ids=[1, 261]), "completion_ids[1]", "261"),
    "no steps": (attributed(method="integrated_gradients", steps=0), "attribution.steps", "between 1 and 1000"),
    "one sample": (attributed(method="lime", samples=1), "attribution.samples", "between 2 and 10,000"),
    "negative seed": (attributed(method="lime", seed=-1), "attribution.seed", "2**63"),
    "unknown objective": (attributed(method="saliency", objective=9), "attribution.objective", "OBJECTIVE_PROB"),
    "unknown aggregation": (attributed(method="saliency", aggregation=9), "attribution.aggregation", "NORM"),
    "a layer that is not there": (
        attributed(method="layer_gradient_x_activation", layer=3),
        "attribution.layer",
        "give 0 to 2, or -1 for the embedding",
    ),
    "a baseline of the wrong length": (
        attributed(method="occlusion", baseline_ids=[1, 2]),
        "attribution.baseline_ids",
        "are 2 tokens; give one for each of the prompt",
    ),
    "a baseline beyond the vocabulary": (
        attributed(method="deeplift", baseline_ids=[1, 999]),
        "attribution.baseline_ids[1]",
        "999",
    ),
    "a preset of another method": (
        attributed(method="lime", preset=pb.PRESET_KNOCKOUT),
        "attribution.preset",
        "grad_ellm",
    ),
    "a contrast for what has no target": (
        attributed(method="value_zeroing", contrast=pb.Contrast(token_id=1)),
        "attribution.contrast",
        "value_zeroing",
    ),
    "over-long completion": (pb.AttributeRequest(input=PROMPT, completion="a" * 240), "completion", "at most 239"),
}


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, dict[str, str], str]:
    """Code, message, field violations and reason of a failed call."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    status: status_pb2.Status | None = rpc_status.from_call(error)
    assert status is not None, f"{error.code()} without details: {error.details()}"
    violations: dict[str, str] = {}
    reason = ""
    for detail in status.details:
        bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        if detail.Unpack(bad):
            violations |= {v.field: v.description for v in bad.field_violations}
        elif detail.Unpack(info):
            assert info.domain == "gradellm"
            reason = info.reason
    return error.code(), status.message, violations, reason


def still_serves(server: RunningServer) -> bool:
    return len(list(server.stub.Generate(explained()))) == 6


@pytest.mark.parametrize("name", CASES)
def test_generate_names_the_invalid_field(server: RunningServer, name: str) -> None:
    request, field, words = CASES[name]
    code, message, violations, reason = refusal(lambda: list(server.stub.Generate(request)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert reason == "INVALID_REQUEST"
    assert list(violations) == [field]
    assert words in violations[field]
    assert field in message
    assert still_serves(server)


@pytest.mark.parametrize("name", ATTRIBUTE_CASES)
def test_attribute_names_the_invalid_field(server: RunningServer, name: str) -> None:
    request, field, words = ATTRIBUTE_CASES[name]
    code, _, violations, _ = refusal(lambda: list(server.stub.Attribute(request)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(violations) == [field]
    assert words in violations[field]


MALFORMED = {
    "malformed": b"\xff\xff\xff\xff",
    "cut off": b"\x0a\x7f",  # a length that the message does not have
    "not UTF-8": b"\x0a\x04\x0a\x02\xc3\x28",  # the tag of input.prompt
}


@pytest.mark.parametrize(
    ("method", "payload"),
    # GetServerInfo has an empty request, to which the last is an unknown field.
    [
        pytest.param(method, payload, id=f"{method}, {name}")
        for method in ("Generate", "Attribute", "Tokenize", "GetServerInfo")
        for name, payload in MALFORMED.items()
        if (method, name) != ("GetServerInfo", "not UTF-8")
    ],
)
def test_malformed_bytes_are_invalid_argument(server: RunningServer, method: str, payload: bytes) -> None:
    streams = method in ("Generate", "Attribute")
    channel: Any = server.channel
    call = (channel.unary_stream if streams else channel.unary_unary)(f"/gradellm.v1.ExplainerService/{method}")
    code, message, violations, _ = refusal(lambda: list(call(payload)) if streams else call(payload))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"gradellm.v1.{method}Request" in message
    assert list(violations) == ["request"]
    assert still_serves(server)


@settings(max_examples=60, deadline=None)
@given(payload=st.binary(max_size=60))
def test_any_bytes_are_answered_or_refused_as_the_callers_error(server: RunningServer, payload: bytes) -> None:
    channel: Any = server.channel
    call = channel.unary_unary("/gradellm.v1.ExplainerService/Tokenize").future(payload, timeout=30)
    assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)


def test_a_message_over_the_limit_is_refused_before_it_is_read(serving: Serving) -> None:
    with serving(max_message_bytes=2000) as small:
        with pytest.raises(grpc.RpcError) as raised:
            list(small.stub.Generate(generate(pb.Input(prompt="a" * 3000))))
        error: Any = raised.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "3" in error.details()
        assert still_serves(small)


def test_messages_need_a_chat_template(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.engine.model.tokenizer, "chat_template", None)
    _, _, violations, _ = refusal(lambda: list(server.stub.Generate(generate(pb.Input(messages=[HELLO])))))
    assert "no chat template" in violations["input.messages"]
