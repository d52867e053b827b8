"""Every method over the wire: rows, progress, costs, refusals and disconnects."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine.core.request import Request
from gradellm_engine.methods.registry import METHODS
from server.conftest import RunningServer, Serving
from server.rpc.test_bad_input import refusal
from server.test_disconnects import until

PROMPT = pb.Input(prompt="Once upon a time")
SMALL = {"steps": 3, "samples": 5}  # smaller than the defaults, for speed


def request(name: str, **options: Any) -> pb.AttributeRequest:
    small: dict[str, Any] = {switch: value for switch, value in SMALL.items() if switch in METHODS[name].switch_names}
    return pb.AttributeRequest(
        input=PROMPT, completion="abc", attribution=pb.AttributionOptions(method=name, **small, **options)
    )


def long_work(server: RunningServer) -> Any:
    """A call that would take long, after its first progress."""
    options = pb.AttributionOptions(method="integrated_gradients", steps=1000)
    call = server.stub.Attribute(pb.AttributeRequest(input=PROMPT, completion="abc", attribution=options))
    for event in call:
        if event.HasField("progress"):
            break
    return call


@pytest.mark.parametrize("name", METHODS)
def test_attribute_offers_every_method(server: RunningServer, name: str) -> None:
    events = list(server.stub.Attribute(request(name)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    provenance = events[0].started.provenance.attribution
    assert provenance.method == name
    rows = [event.attribution for event in events if event.HasField("attribution")]
    assert [row.token_index for row in rows] == [0, 1, 2]
    assert {len(row.scores) for row in rows} == {len(events[0].started.prompt_tokens)}
    assert all(row.HasField("error") == bool(METHODS[name].error) for row in rows)
    # Sending the provenance back gives the same scores.
    again = pb.AttributeRequest(input=PROMPT, completion="abc", attribution=provenance)
    assert [e.attribution for e in server.stub.Attribute(again) if e.HasField("attribution")] == rows


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.streams])
def test_generate_offers_the_in_pass_methods(server: RunningServer, name: str) -> None:
    call = pb.GenerateRequest(input=PROMPT, max_new_tokens=3, attribution=pb.AttributionOptions(method=name))
    rows = [event for event in server.stub.Generate(call) if event.HasField("attribution")]
    assert len(rows) == 3


def test_words_and_top_k_work_with_any_method(server: RunningServer) -> None:
    options = {"resolution": pb.RESOLUTION_WORD, "top_k_sources": 2}
    rows = [e.attribution for e in server.stub.Attribute(request("saliency", **options)) if e.HasField("attribution")]
    assert all(len(row.scores) == len(row.source_indexes) == 2 for row in rows)


def test_long_methods_report_progress(server: RunningServer) -> None:
    events = list(server.stub.Attribute(request("value_zeroing")))
    done = [event.progress.done for event in events if event.HasField("progress")]
    assert len(done) >= 2
    assert done == sorted(done)
    assert 0 < done[0] <= done[-1] <= 1


def test_a_request_beyond_memory_is_refused_with_the_limit_that_fits(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.engine
    model_cost = engine.model_cost
    long = pb.AttributeRequest(
        input=pb.Input(prompt="a" * 150), completion="abc", attribution=pb.AttributionOptions(method="saliency")
    )
    monkeypatch.setattr(engine.post_hoc, "memory_bytes", model_cost.bytes_of(100 + 3, 3, True))
    code, _, violations, _ = refusal(lambda: list(server.stub.Attribute(long)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "saliency of 3 tokens after a prompt of 151 needs about" in violations["attribution.method"]
    assert f"a prompt of up to {100} tokens fits" in violations["attribution.method"]
    long.input.prompt = "a" * 99  # and the first token
    assert len([e for e in server.stub.Attribute(long) if e.HasField("attribution")]) == 3
    monkeypatch.setattr(engine.post_hoc, "memory_bytes", 1)
    _, _, violations, _ = refusal(lambda: list(server.stub.Attribute(long)))
    assert "give a shorter completion" in violations["attribution.method"]


def test_a_disconnect_ends_a_post_hoc_method_at_once(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slices = 0
    original = Request.run_post_hoc

    def counted(self: Request) -> None:
        nonlocal slices
        slices += 1
        original(self)

    monkeypatch.setattr(Request, "run_post_hoc", counted)
    call = long_work(server)
    call.cancel()
    until(lambda: server.server.engine_thread.num_running == 0)
    after = slices
    assert len(list(server.stub.Attribute(request("random")))) > 3
    assert slices == after
    assert not any(module._forward_hooks for _, module in server.engine.model.runner.named_modules())


def test_generation_continues_during_a_post_hoc_method(serving: Serving) -> None:
    with serving() as server:
        long = long_work(server)
        generated = list(server.stub.Generate(pb.GenerateRequest(input=PROMPT, max_new_tokens=5)))
        assert sum(event.HasField("token") for event in generated) == 5
        assert any(event.HasField("progress") for event in long)  # it has not finished yet
        long.cancel()


def test_nan_in_a_method_ends_its_stream_alone(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = server.engine.model.runner.model
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda module, args, output: output * float("nan"))
    try:
        with pytest.raises(grpc.RpcError) as raised:
            list(server.stub.Attribute(request("saliency")))
    finally:
        hook.remove()
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.INTERNAL
    assert len(list(server.stub.Attribute(request("saliency")))) > 3
