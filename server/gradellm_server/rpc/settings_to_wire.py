"""Settings to the wire: the provenance of a stream, with every default spelt out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gradellm._version import __version__
from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import (
    AttributionSettings,
    Contrast,
    Engine,
    EvaluationSettings,
    Sampling,
    Started,
    StructuredOutput,
    Switches,
    preset_of,
    software_versions,
)
from gradellm_server.rpc.wire_enums import PRESET_NUMBERS, SWITCH_ENUMS, number_of


def model_info(engine: Engine) -> pb.ModelInfo:
    """The model that is served."""
    return pb.ModelInfo(**asdict(engine.info))


def versions() -> dict[str, str]:
    """Versions of the software that computes the numbers."""
    return {"gradellm": __version__, **software_versions()}


def provenance(started: Started, engine: Engine) -> pb.Provenance:
    """Model, versions and settings of a stream: all that is needed to compute it again."""
    attribution, evaluation, num_layers = started.attribution, started.evaluation, engine.info.num_layers
    return pb.Provenance(
        model=model_info(engine),
        versions=versions(),
        sampling=_sampling(started.sampling),
        attribution=None if attribution is None else _attribution(attribution, num_layers),
        evaluation=None if evaluation is None else _evaluation(evaluation, num_layers),
        structured_output=_structured_output(started.structured_output),
    )


def _sampling(sampling: Sampling) -> pb.Sampling:
    return pb.Sampling(
        max_new_tokens=sampling.max_new_tokens or 0,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed or 0,
        stop=sampling.stop,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logit_bias=dict(sampling.logit_bias),
        min_new_tokens=sampling.min_new_tokens,
        ignore_eos=sampling.ignore_eos,
        stop_token_ids=sampling.stop_token_ids,
        skip_special_tokens=sampling.skip_special_tokens,
    )


def _structured_output(settings: StructuredOutput | None) -> pb.StructuredOutput | None:
    if settings is None:
        return None
    if settings.choice:
        return pb.StructuredOutput(choice=pb.Choice(texts=settings.choice))
    return pb.StructuredOutput(**{settings.kind: getattr(settings, settings.kind)})


def _attribution(settings: AttributionSettings, num_layers: int) -> pb.AttributionOptions:
    contrast = settings.contrast
    return pb.AttributionOptions(
        **_method(settings.method, num_layers),
        target_token_id=settings.target_token_id,
        contrast=None if contrast is None else _contrast(contrast),
        sources=number_of(pb.Sources, settings.sources),  # type: ignore[arg-type]
        resolution=number_of(pb.Resolution, settings.resolution),  # type: ignore[arg-type]
        top_k_sources=settings.top_k_sources,
        delivery=number_of(pb.Delivery, settings.delivery),  # type: ignore[arg-type]
        chunk_size=settings.chunk_size,
        tokens=None if settings.tokens is None else pb.TokenSelection(indexes=settings.tokens.indexes),
    )


def _contrast(contrast: Contrast) -> pb.Contrast:
    """The one field that is set; token id 0 is set, too."""
    if contrast.runner_up:
        return pb.Contrast(runner_up=True)
    return pb.Contrast(token_id=contrast.token_id, text=contrast.text)


def _evaluation(settings: EvaluationSettings, num_layers: int) -> pb.EvaluationOptions:
    """All but the values of the caller's own scores."""
    return pb.EvaluationOptions(
        methods=[
            pb.EvaluatedMethod(
                name=judged.name, attribution=pb.AttributionOptions(**_method(judged.method, num_layers))
            )
            for judged in settings.methods
            if judged.method is not None
        ],
        scores=[pb.GivenScores(name=judged.name) for judged in settings.methods if judged.method is None],
        metrics=[number_of(pb.Metric, metric) for metric in settings.metrics],  # type: ignore[misc]
        pis=settings.pis,
        samples=settings.samples,
        stride=settings.stride,
        offset=settings.offset,
        seed=settings.seed,
        perturb=number_of(pb.Perturb, settings.perturb),  # type: ignore[arg-type]
        removal=number_of(pb.Removal, settings.removal),  # type: ignore[arg-type]
        raw_scores=settings.raw_scores,
        rationale=settings.rationale,
        perturb_positions=settings.positions,
    )


def _method(method: Switches, num_layers: int) -> dict[str, Any]:
    """A method's name, its preset if it has one, and its switches, as fields of AttributionOptions."""
    switches, preset = asdict(method), preset_of(method, num_layers)
    layers = switches.pop("layers", None)
    return {
        "method": method.name,
        "preset": None if preset is None else PRESET_NUMBERS[preset],
        "layers": None if layers is None else pb.Layers(indexes=layers),
        **{
            name: number_of(SWITCH_ENUMS[name][1], value) if name in SWITCH_ENUMS else value
            for name, value in switches.items()
        },
    }
