"""What a request gets that wants an attribution and does not say which; servers and clients of other versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from gradellm import Client, Explanation, UnimplementedError
from gradellm.explanation.verification import verified
from gradellm.transport import calls
from gradellm.transport.resumable_stream import ResumableStream
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import responses
from gradellm_engine import AttributionSettings, Engine, GradEllm, Sampling
from gradellm_engine.params import RECOMMENDED_PRESET
from gradellm_server.rpc import requests_from_wire
from gradellm_server.rpc.wire_enums import PRESETS
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer, Serving

PROMPT = "Once upon a time, there was a small red fox"
COMPLETION = " and it ran"
NUM_TOKENS = 6
OLD_PRESETS = {number: name for number, name in PRESETS.items() if number <= pb.PRESET_KNOCKOUT}
NAMES_NOTHING: list[dict[str, Any]] = [
    {},
    {"attribution": True},
    {"sources": "prefix"},
    {"resolution": "word"},
    {"tokens": range(2, 5)},
    {"top_k_sources": 3},
    {"delivery": "chunked", "chunk_size": 2},
    {"contrast": "runner_up"},
    {"target": 70},
]
NAMES_THE_PAPER: list[dict[str, Any]] = [{"attribution": "paper"}, {"method": "grad_ellm"}, {"layers": "all"}]


def explain(server: RunningServer, **keywords: Any) -> Explanation:
    with Client(server.address) as client:
        return client.explain(PROMPT, max_new_tokens=NUM_TOKENS, **keywords)


@pytest.fixture(scope="module")
def reference(model_path: Callable[[str], Path]) -> Engine:
    """The server's model in an engine of its own: the server's runs in the server's thread."""
    return Engine.load(str(model_path("llama")))


def rows_of(engine: Engine, method: GradEllm) -> list[list[float]]:
    steps = engine.generate(PROMPT, Sampling(max_new_tokens=NUM_TOKENS), AttributionSettings(method))
    return [step.attribution.scores.tolist() for step in steps if step.attribution is not None]


def are_close(rows: list[list[float]], others: list[list[float]]) -> bool:
    """Up to rounding, which depends on how a prompt is divided into passes."""
    return all(row == pytest.approx(other, rel=1e-4, abs=1e-7) for row, other in zip(rows, others, strict=True))


@pytest.mark.parametrize("keywords", NAMES_NOTHING)
def test_what_names_nothing_is_explained_by_the_recommended_preset(
    server: RunningServer, keywords: dict[str, Any]
) -> None:
    for stored in (explain(server, **keywords), explain(server, **{**keywords, "attribution": "recommended"})):
        settings = stored.provenance.attribution
        assert settings is not None
        assert settings.preset == RECOMMENDED_PRESET  # not "recommended", which another version may mean otherwise
        assert settings.magnitude == GradEllm.preset("recommended").magnitude


def test_the_rows_are_those_of_the_preset(server: RunningServer, reference: Engine) -> None:
    rows = [list(row.scores) for row in explain(server).attributions]
    assert are_close(rows, rows_of(reference, GradEllm.preset("recommended")))
    assert not are_close(rows, rows_of(reference, GradEllm()))


@pytest.mark.parametrize("keywords", NAMES_THE_PAPER)
def test_the_papers_method_is_unchanged(server: RunningServer, reference: Engine, keywords: dict[str, Any]) -> None:
    stored = explain(server, **keywords)
    assert are_close([list(row.scores) for row in stored.attributions], rows_of(reference, GradEllm()))
    assert stored.provenance.attribution is not None
    assert stored.provenance.attribution.preset == "paper"


def test_a_switch_alone_starts_from_the_paper(server: RunningServer) -> None:
    settings = explain(server, sink="exclude").provenance.attribution
    assert settings is not None
    assert (settings.loosening, settings.sink, settings.preset) == ("min_max", "exclude", None)


def test_tokens_alone_stay_alone(server: RunningServer) -> None:
    stored = explain(server, attribution=None)
    assert stored.provenance.attribution is None
    assert stored.attributions == ()


def test_attribute_and_evaluate_have_the_same_default(server: RunningServer) -> None:
    with Client(server.address) as client:
        stored = client.attribute(PROMPT, completion=COMPLETION)
        report = client.evaluate(PROMPT, completion=COMPLETION, pis=[0.5], samples=1)
        info = client.server_info()
    assert stored.provenance.attribution is not None
    assert stored.provenance.attribution.preset == RECOMMENDED_PRESET
    assert info.default_attribution == info.recommended_preset == RECOMMENDED_PRESET
    evaluation = report.started.provenance.evaluation
    assert evaluation is not None
    assert [method.name for method in evaluation.methods] == [RECOMMENDED_PRESET, "random"]
    (default, _) = evaluation.methods
    assert default.attribution is not None
    assert default.attribution.preset == RECOMMENDED_PRESET
    assert report.auc(RECOMMENDED_PRESET, "pi_soft_ns") >= 0


CALLS = {
    "Generate": calls.generate(PROMPT, {"max_new_tokens": NUM_TOKENS}),
    "Attribute": calls.attribute(PROMPT, {"completion": COMPLETION}),
    "Evaluate": calls.evaluate(
        PROMPT, {"completion": COMPLETION, "pis": [0.5], "stride": 1, "metrics": ["pi_soft_ns"]}
    ),
}


def received(stream: ResumableStream, server: RunningServer, rpc: str, count: int | None = None) -> list[Any]:
    """The events of the stream's next call, cut after `count` messages."""
    messages = getattr(server.stub, rpc)(stream.request)
    events = [stream.take(message, "a:1") for message in islice(messages, count)]
    messages.cancel()
    return [event for event in events if event is not None]


def values(events: list[Any]) -> list[Any]:
    """What a method's scores decide: attribution rows and an evaluation's items."""
    rows = [(event.attribution.token_index, event.attribution.scores) for event in events if event.attribution]
    return rows + [(event.item.step, event.item.name, event.item.value) for event in events if event.item]


@pytest.fixture(scope="module")
def paper_server(model_path: Callable[[str], Path]) -> Iterator[RunningServer]:
    """A server of the same model with an engine of its own, and with another default."""
    settings = ServerSettings(listen="127.0.0.1:0", default_attribution="paper")
    running = RunningServer(Engine.load(str(model_path("llama"))), settings)
    yield running
    running.close()


@pytest.mark.parametrize("rpc", CALLS)
def test_servers_with_other_defaults_do_not_mix_rows(
    server: RunningServer, paper_server: RunningServer, rpc: str
) -> None:
    undisturbed = values(received(ResumableStream(CALLS[rpc]), server, rpc))
    assert undisturbed != values(received(ResumableStream(CALLS[rpc]), paper_server, rpc))
    for count in range(1, 8):
        stream = ResumableStream(CALLS[rpc])
        found = values(received(stream, server, rpc, count) + received(stream, paper_server, rpc))
        assert [row[:-1] for row in found] == [row[:-1] for row in undisturbed]
        for (*_, actual), (*_, expected) in zip(found, undisturbed, strict=True):
            assert actual == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("rpc", CALLS)
def test_a_stream_is_resumed_at_a_server_that_is_older_than_its_preset(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, rpc: str
) -> None:
    stream = ResumableStream(CALLS[rpc])
    events = received(stream, server, rpc, 3)
    monkeypatch.setattr(requests_from_wire, "PRESETS", OLD_PRESETS)
    events += received(stream, server, rpc)
    assert values(events)
    assert stream.is_over


@pytest.mark.parametrize("other", ["paper", "knockout"])
def test_a_stored_explanation_is_verified_by_a_server_with_another_default(serving: Serving, other: str) -> None:
    with serving() as first:
        stored = Explanation.from_json(explain(first, sources="prefix").to_json())
    with serving(default_attribution=other) as second, Client(second.address) as client:
        assert client.server_info().default_attribution == other
        verdict = verified(client, stored)
    assert verdict.holds
    assert verdict.mismatches == ()
    assert verdict.rows == NUM_TOKENS


def test_a_client_that_is_older_than_the_preset_gets_the_default(server: RunningServer) -> None:
    """Its request has no field that this version added; it passes over names that it does not have."""
    old = pb.GenerateRequest(
        input=pb.Input(prompt=PROMPT), max_new_tokens=1, attribution=pb.AttributionOptions(sources=pb.SOURCES_PREFIX)
    )
    (started, *_) = server.stub.Generate(old)
    assert started.started.provenance.attribution.sink == pb.SINK_EXCLUDE
    started.started.provenance.attribution.preset = 99
    read = responses.event(started)
    assert read is not None
    assert read.started is not None
    assert read.started.provenance.attribution is not None
    assert read.started.provenance.attribution.preset is None


def test_a_server_that_is_older_than_the_preset_says_so_or_has_its_own_default(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests_from_wire, "PRESETS", OLD_PRESETS)
    monkeypatch.setattr(requests_from_wire, "name_presets", lambda *args: None)
    with serving() as old:
        for name in ("recommended", RECOMMENDED_PRESET):
            with pytest.raises(UnimplementedError, match=f"is older than the preset {name}: upgrade the server"):
                explain(old, attribution=name)
            with Client(old.address) as client, pytest.raises(UnimplementedError, match=name):
                client.evaluate(PROMPT, completion=COMPLETION, methods=[name])
        settings = explain(old).provenance.attribution
    assert settings is not None
    assert settings.loosening == "min_max"
