"""Sampling settings of a resumed request: those that the first server used, whatever the next server's defaults are."""

from __future__ import annotations

from typing import Any

from gradellm.transport import calls
from gradellm.transport.resumable_stream import ResumableStream
from gradellm.transport.resumed_sampling import copy_sampling, ignored_fields
from gradellm.v1 import explainer_pb2 as pb

NEUTRAL = pb.Sampling(
    max_new_tokens=9,
    top_p=1.0,
    seed=4,
    min_p=0.0,
    repetition_penalty=1.0,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    min_new_tokens=0,
    ignore_eos=False,
    skip_special_tokens=True,
)
SET = pb.Sampling(
    max_new_tokens=9,
    temperature=0.7,
    top_k=20,
    top_p=0.8,
    seed=4,
    stop=["x"],
    min_p=0.1,
    repetition_penalty=1.05,
    frequency_penalty=0.5,
    presence_penalty=-0.5,
    logit_bias={5: 1.0, 6: -2.0},
    min_new_tokens=3,
    ignore_eos=True,
    stop_token_ids=[7, 8],
    skip_special_tokens=False,
)


def test_the_messages_have_the_same_fields() -> None:
    request = pb.GenerateRequest.DESCRIPTOR.fields_by_name
    for name, field in pb.Sampling.DESCRIPTOR.fields_by_name.items():
        assert request[name].type == field.type


def test_every_setting_is_copied() -> None:
    for sampling in (NEUTRAL, SET):
        request = pb.GenerateRequest(logit_bias={1: 1.0}, stop=["y", "z"], stop_token_ids=[1], temperature=2.0, top_k=1)
        copy_sampling(sampling, request)
        for name in pb.Sampling.DESCRIPTOR.fields_by_name:
            assert getattr(request, name) == getattr(sampling, name)
        assert all(request.HasField(name) for name in ("temperature", "top_k", "min_p", "repetition_penalty"))


def test_a_resumed_request_has_the_first_server_s_defaults() -> None:
    """The first server takes them from the model's generation_config.json; the next one may not."""
    stream = ResumableStream(calls.generate("Once", {"temperature": 0.7}))
    assert not stream.request.HasField("repetition_penalty")
    provenance = pb.Provenance(sampling=SET)
    stream.take(pb.GenerateResponse(started=pb.Started(provenance=provenance)), "a:1")
    stream.take(pb.GenerateResponse(token=pb.Token(id=3)), "a:1")
    resumed: Any = stream.request
    assert (resumed.repetition_penalty, resumed.top_k, list(resumed.forced_ids)) == (1.05, 20, [3])


def test_an_older_server_ignores_newer_fields() -> None:
    old = pb.Sampling(max_new_tokens=9, temperature=0.7, top_p=1.0)
    request = pb.GenerateRequest(temperature=0.7, min_p=0.1, stop=["x"], stop_token_ids=[1], ignore_eos=True)
    assert ignored_fields(request, old) == ["min_p", "ignore_eos", "stop_token_ids"]
    assert ignored_fields(request, SET) == []
    assert ignored_fields(pb.GenerateRequest(temperature=1.0, stop=["x"], top_k=3), old) == []
    assert ignored_fields(pb.GenerateRequest(min_p=0.0), NEUTRAL) == []
