"""GetServerInfo: the model, the cost of each method, and every limit, with the errors that name them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradellm import Client, OverloadedError
from gradellm.errors import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import Engine
from gradellm_engine.faithfulness.settings import MAX_EVALUATION_SEQUENCES, MAX_EVALUATION_STEP_TOKENS
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.model.families import Family
from gradellm_server.rpc.server_info import server_info
from server.conftest import Serving

LONG = pb.GenerateRequest(input=pb.Input(prompt="Once"), max_new_tokens=200, attribution=pb.AttributionOptions())


def test_the_model(engine: Engine) -> None:
    model = server_info(engine, {}, "paper").model
    assert (model.family, model.num_layers, model.num_heads, model.num_key_value_heads) == ("llama", 3, 4, 2)
    assert model.has_chat_template
    assert model.weights_sha256 == engine.info.weights_sha256 != ""


def test_presets_have_their_own_names(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """`recommended` is what it stands for, for this model."""
    info = server_info(engine, {}, "knockout")
    assert (info.default_attribution, info.recommended_preset) == (pb.PRESET_KNOCKOUT, pb.PRESET_STEP_RELEVANCE)
    monkeypatch.setattr(engine, "model", replace(engine.model, family=Family(gates=None)))
    assert engine.concrete_preset("recommended") == "head_abs_no_sink"
    assert server_info(engine, {}, "knockout").recommended_preset == pb.PRESET_HEAD_ABS_NO_SINK


def test_the_cost_of_each_method(engine: Engine) -> None:
    info = server_info(engine, {}, "paper")
    methods = {method.name: method for method in info.methods}
    assert list(methods) == list(METHODS)
    field_names = set(pb.AttributionOptions.DESCRIPTOR.fields_by_name)
    assert all(set(method.switches) <= field_names for method in info.methods)
    assert methods["grad_ellm"].reads_completion_alone
    passes = {name: (method.forward_passes, method.backward_passes) for name, method in methods.items()}
    assert passes["saliency"] == ("1", "n")
    assert passes["integrated_gradients"] == ("steps + 2", "steps n")
    assert passes["occlusion"] == ("m + 1", "0")
    assert passes["random"] == ("0", "0")
    for name, method in methods.items():
        assert method.refusal == ""
        assert method.estimate.prompt_tokens > 0
        assert (method.estimate.seconds > 0) == (name != "random")
        assert (method.estimate.bytes > 0) == (METHODS[name].explain is not None)
    assert methods["integrated_gradients"].estimate.seconds > 10 * methods["saliency"].estimate.seconds


def test_a_method_that_does_not_support_the_model_is_refused_with_the_reason(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "refusal", lambda method: "no gates" if method.name == "relevance" else "")
    refusals = {method.name: method.refusal for method in server_info(engine, {}, "paper").methods if method.refusal}
    assert refusals == {"relevance": "no gates"}


def test_what_memory_is_for(engine: Engine) -> None:
    memory = server_info(engine, {}, "paper").memory
    assert memory.limit_bytes == 0  # none was given
    assert memory.weights_bytes == engine.memory.weights > 0
    assert memory.packed_weights_bytes == engine.memory.packed_weights
    assert memory.kv_cache_bytes == engine.kv_bytes > 0
    assert memory.method_bytes == engine.method_bytes > 0
    assert memory.resident_bytes > memory.weights_bytes


def test_the_limits_of_the_engine(engine: Engine) -> None:
    limits = server_info(engine, {"max_queued_requests": 5}, "paper").limits
    assert limits.max_prompt_tokens == engine.max_prompt_tokens == 255
    assert limits.max_new_tokens == engine.max_new_tokens == 255
    assert limits.method_bytes == engine.method_bytes > 0
    assert limits.kv_tokens == engine.kv_tokens > 0
    assert limits.max_gap_seconds == engine.scheduler.max_gap == 1.0
    assert limits.max_queued_requests == 5
    own = engine.prompt_limits
    assert (limits.max_prompt_characters, limits.max_messages, limits.max_segments) == (
        own.characters,
        own.messages,
        own.segments,
    )
    with pytest.raises(ValueError, match=f"the limit is {own.messages:,}"):
        own.check_counts(num_messages=limits.max_messages + 1)


def test_server_info_has_every_limit(serving: Serving) -> None:
    with (
        serving(
            max_running=3, max_queued=5, max_queued_tokens=700, max_message_bytes=9000, reader_timeout_seconds=7
        ) as running,
        Client(running.address, retry=None) as client,
    ):
        limits = client.server_info().limits
        assert (limits.max_running_requests, limits.max_queued_requests, limits.max_queued_tokens) == (3, 5, 700)
        assert (limits.max_message_bytes, limits.reader_timeout_seconds) == (9000, 7)
        assert (limits.max_evaluation_sequences, limits.max_evaluation_step_tokens) == (
            MAX_EVALUATION_SEQUENCES,
            MAX_EVALUATION_STEP_TOKENS,
        )
        assert limits.max_prompt_tokens == running.engine.max_prompt_tokens
        assert limits.max_new_tokens == running.engine.max_new_tokens


def test_errors_name_the_exceeded_limit(serving: Serving) -> None:
    with (
        serving(max_running=1, max_queued=0, max_message_bytes=3000) as small,
        Client(small.address, retry=None) as client,
    ):
        limits = client.server_info().limits
        with pytest.raises(InvalidRequestError, match=str(limits.max_prompt_tokens)):
            client.explain("a" * 300, max_new_tokens=1)
        with pytest.raises(InvalidRequestError, match=str(limits.max_new_tokens)):
            client.explain("a", max_new_tokens=limits.max_new_tokens + 1)
        with pytest.raises(InvalidRequestError, match="3000"):  # gRPC's own message; a retry fails as well
            client.explain("a" * 4000, max_new_tokens=1)
        with pytest.raises(InvalidRequestError, match=f"{MAX_EVALUATION_SEQUENCES:,}"):
            client.evaluate("a" * 90, completion="b" * 100, methods=["random"], samples=1000, stride=1)
        call = small.stub.Generate(LONG)
        next(call)
        with pytest.raises(OverloadedError, match=r"requests running, \d queued \(limits 1 and 0\)") as raised:
            client.explain("a", max_new_tokens=1)
        assert raised.value.retry_after_seconds is not None
        assert raised.value.reason == "QUEUE_FULL"
        call.cancel()
