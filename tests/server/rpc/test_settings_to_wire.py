"""Settings to the wire: a request that is made of a provenance has the same settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import (
    METHODS,
    AttributionSettings,
    Contrast,
    Delivery,
    Engine,
    EvaluatedMethod,
    EvaluationSettings,
    GradEllm,
    Method,
    Metric,
    Perturb,
    Random,
    Removal,
    Resolution,
    Sampling,
    Sources,
    Started,
    Switches,
)
from gradellm_server.rpc.requests_from_wire import read_attribution, read_evaluation, read_sampling
from gradellm_server.rpc.settings_to_wire import provenance, versions
from gradellm_server.rpc.wire_enums import PRESETS
from server.conftest import RunningServer


def with_layers(method: Method) -> Switches:
    """A method's defaults, with explicit layers, as the engine resolves them."""
    explicit: dict[str, Any] = {"layers": (0, 2)} if "layers" in method.switch_names else {}
    return method.switches(**explicit)


SAMPLING = Sampling(max_new_tokens=3, temperature=0.5, top_k=7, top_p=0.75, seed=9, stop=("x", "y"))
ATTRIBUTIONS: dict[str, AttributionSettings] = {
    **{f"preset {name}": AttributionSettings(GradEllm.preset(name, layers=(0, 2))) for name in PRESETS.values()},
    **{name: AttributionSettings(with_layers(method)) for name, method in METHODS.items() if name != "grad_ellm"},
    "sources": AttributionSettings(sources=Sources.PREFIX, resolution=Resolution.WORD, top_k_sources=3),
    "chunks": AttributionSettings(delivery=Delivery.CHUNKED, chunk_size=4),
    "token 0 as the target": AttributionSettings(target_token_id=0),
    "token 0 as the contrast": AttributionSettings(contrast=Contrast(token_id=0)),
    "the runner-up as the contrast": AttributionSettings(contrast=Contrast(runner_up=True)),
    "a text as the contrast": AttributionSettings(contrast=Contrast(text="no")),
}


@pytest.fixture
def started(engine: Engine) -> Started:
    return engine.generate("Once", Sampling(max_new_tokens=1)).started


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_attribution_settings_are_read_back_unchanged(name: str, started: Started, engine: Engine) -> None:
    settings = ATTRIBUTIONS[name]
    options = provenance(replace(started, attribution=settings), engine).attribution
    assert read_attribution(pb.AttributionOptions.FromString(options.SerializeToString())) == settings


def test_sampling_is_read_back_unchanged(started: Started, engine: Engine) -> None:
    sampling = provenance(replace(started, sampling=SAMPLING), engine).sampling
    fields: dict[str, Any] = {field.name: value for field, value in sampling.ListFields()}
    assert read_sampling(pb.GenerateRequest(**fields)) == SAMPLING


def test_an_evaluation_is_read_back_without_the_callers_scores(started: Started, engine: Engine) -> None:
    methods: tuple[tuple[str, Switches], ...] = (("a", GradEllm.preset("knockout")), ("b", Random(seed=4)))
    settings = EvaluationSettings(
        methods=tuple(EvaluatedMethod(name, switches) for name, switches in methods),
        metrics=(Metric.DELETION, Metric.SOFT_NS),
        pis=(0.25, 0.5),
        samples=4,
        stride=2,
        offset=1,
        seed=5,
        perturb=Perturb.PREFIX,
        removal=Removal.ZERO,
        raw_scores=True,
    )
    options = provenance(replace(started, evaluation=settings), engine).evaluation
    assert read_evaluation(options, ()) == settings
    given = EvaluatedMethod("mine", None, {0: (0.5,)})
    with_given = replace(started, evaluation=replace(settings, methods=(*settings.methods, given)))
    options = provenance(with_given, engine).evaluation
    assert [(scores.name, len(scores.rows)) for scores in options.scores] == [("mine", 0)]
    assert [method.name for method in options.methods] == ["a", "b"]


def test_a_provenance_names_model_and_versions_and_no_settings_that_were_not_asked_for(
    started: Started, engine: Engine
) -> None:
    made = provenance(started, engine)
    assert not made.HasField("attribution")
    assert not made.HasField("evaluation")
    assert made.model.weights_sha256 == engine.info.weights_sha256 != ""
    assert made.model.config_sha256 == engine.info.config_sha256 != ""
    assert dict(made.versions) == versions()
    assert versions().keys() == {"gradellm", "torch", "transformers", "tokenizers"}


def test_provenance_has_the_selected_tokens_as_indexes(server: RunningServer) -> None:
    """One token a byte; a request with the settings of the provenance gives the same rows."""
    for selection, indexes in (
        (pb.TokenSelection(indexes=[3, 0, 3]), [0, 3]),
        (pb.TokenSelection(indexes=[0], spans=[pb.TextSpan(start=2, end=4)]), [0, 2, 3]),
    ):
        request = pb.AttributeRequest(input=pb.Input(prompt="Once"), completion="upon")
        request.attribution.tokens.CopyFrom(selection)
        first = list(server.stub.Attribute(request))
        made = first[0].started.provenance.attribution
        assert made.tokens == pb.TokenSelection(indexes=indexes)
        rows = [event.attribution for event in first if event.HasField("attribution")]
        assert [row.token_index for row in rows] == indexes
        assert first[-1].finished.usage.attributed_tokens == len(indexes)
        request.attribution.CopyFrom(made)
        assert [e.attribution for e in server.stub.Attribute(request) if e.HasField("attribution")] == rows
    plain = next(iter(server.stub.Attribute(pb.AttributeRequest(input=pb.Input(prompt="Once"), completion="upon"))))
    assert not plain.started.provenance.attribution.HasField("tokens")


def test_provenance_has_every_switch_and_the_seed(server: RunningServer) -> None:
    options = pb.AttributionOptions(preset=pb.PRESET_KNOCKOUT, layers=pb.Layers(last=2), sink=pb.SINK_EXCLUDE)
    options.gradient = pb.GRADIENT_RELEVANCE
    request = pb.GenerateRequest(
        input=pb.Input(prompt="Once upon a time"), max_new_tokens=1, temperature=0.7, stop=["x"], attribution=options
    )
    first = list(server.stub.Generate(request))
    made = first[0].started.provenance
    attribution_options = made.attribution
    assert attribution_options.loosening == pb.LOOSENING_NONE
    assert attribution_options.rectify == pb.RECTIFY_NONE
    assert attribution_options.magnitude == pb.MAGNITUDE_KNOCKOUT
    assert attribution_options.sink == pb.SINK_EXCLUDE
    assert attribution_options.gradient == pb.GRADIENT_RELEVANCE
    assert list(first[0].started.unscored_tokens) == [0]
    assert list(attribution_options.layers.indexes) == [1, 2]
    assert (attribution_options.similarity, attribution_options.rotary) == (pb.SIMILARITY_DOT, pb.ROTARY_ROTATED)
    assert (attribution_options.sources, attribution_options.resolution) == (pb.SOURCES_PROMPT, pb.RESOLUTION_TOKEN)
    assert made.sampling.temperature == 0.7
    assert list(made.sampling.stop) == ["x"]
    # A request with the settings of the provenance gives the same.
    again = pb.GenerateRequest(
        input=pb.Input(prompt="Once upon a time"),
        max_new_tokens=1,
        temperature=0.7,
        seed=made.sampling.seed,
        attribution=attribution_options,
    )
    second = list(server.stub.Generate(again))
    assert [e.token.id for e in second if e.HasField("token")] == [e.token.id for e in first if e.HasField("token")]
    # Up to rounding: the second prompt is cached, and its last token is decoded in a pass by itself.
    assert list(second[2].attribution.scores) == pytest.approx(list(first[2].attribution.scores), rel=1e-5)


@pytest.mark.parametrize(
    "message",
    [
        pb.StructuredOutput(json_schema='{"type": "object"}'),
        pb.StructuredOutput(json_object=True),
        pb.StructuredOutput(grammar='start: "a"'),
        pb.StructuredOutput(regex="a"),
        pb.StructuredOutput(choice=pb.Choice(texts=["a", "b"])),
    ],
    ids=lambda message: str(message.WhichOneof("constraint")),
)
def test_structured_output_is_in_the_provenance(server: RunningServer, message: pb.StructuredOutput) -> None:
    request = pb.GenerateRequest(input=pb.Input(prompt="x"), max_new_tokens=1, structured_output=message)
    started = next(iter(server.stub.Generate(request))).started
    assert started.provenance.structured_output == message
    plain = pb.GenerateRequest(input=pb.Input(prompt="x"), max_new_tokens=1)
    assert not next(iter(server.stub.Generate(plain))).started.provenance.HasField("structured_output")
