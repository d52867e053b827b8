"""Between the wire and the engine: the one file that speaks both tongues.

Requests become the engine's settings, which check themselves; results become messages. Names are the same on both
sides, so most of it is a matter of enum prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import DecodeError, Message

from gradellm._version import __version__
from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import (
    Attribution,
    AttributionSettings,
    Contrast,
    Delivery,
    Engine,
    EvaluatedMethod,
    EvaluationItem,
    EvaluationSettings,
    EvaluationSummary,
    Event,
    Finished,
    GradEllm,
    InvalidRequestError,
    Loosening,
    Magnitude,
    Metric,
    NormaliseOver,
    Perturb,
    Progress,
    PromptInput,
    PromptLimits,
    PromptProgress,
    Rectify,
    Removal,
    Request,
    Resolution,
    Role,
    Rotary,
    Sampling,
    Segment,
    Similarity,
    Sources,
    Started,
    Step,
    Switches,
)
from gradellm_engine import Message as Turn
from gradellm_engine.faithfulness.metrics.statistics import Interval
from gradellm_engine.faithfulness.results import MetricSummary
from gradellm_engine.faithfulness.settings import (
    MAX_EVALUATED_METHODS,
    MAX_EVALUATION_SEQUENCES,
    MAX_EVALUATION_STEP_TOKENS,
    MAX_LABELS,
    MAX_PIS,
)
from gradellm_engine.methods.base import Method
from gradellm_engine.methods.gradients.base import Aggregation
from gradellm_engine.methods.post_hoc import Objective
from gradellm_engine.methods.random import Random
from gradellm_engine.methods.registry import METHODS, method_named
from gradellm_engine.model.loader import software_versions
from gradellm_engine.params import MAX_STOP_TEXTS
from gradellm_engine.tokenization.prompt import Prompt

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ExplainerService"].full_name
PRESETS: dict[int, str] = {
    pb.PRESET_PAPER: "paper",
    pb.PRESET_UNLOOSENED: "unloosened",
    pb.PRESET_GRAD_ECLIP: "grad_eclip",
    pb.PRESET_KNOCKOUT: "knockout",
}
# The switches of methods, by how the wire carries them.
CHOICES: dict[str, tuple[type[StrEnum], EnumTypeWrapper]] = {
    "loosening": (Loosening, pb.Loosening),
    "similarity": (Similarity, pb.Similarity),
    "rotary": (Rotary, pb.Rotary),
    "rectify": (Rectify, pb.Rectify),
    "magnitude": (Magnitude, pb.Magnitude),
    "normalise_over": (NormaliseOver, pb.NormaliseOver),
    "objective": (Objective, pb.Objective),
    "aggregation": (Aggregation, pb.Aggregation),
}
ROLES = {role: pb.Role.Value(f"ROLE_{role.upper()}") for role in Role}
NUMBERS = ("steps", "samples", "seed", "layer")
ESTIMATED = (256, 32)  # tokens of prompt and completion for which the server's info says what methods take

RequestMessage = TypeVar("RequestMessage", bound=Message)
Response = TypeVar("Response", pb.GenerateResponse, pb.AttributeResponse, pb.EvaluateResponse)
Choice = TypeVar("Choice", bound=StrEnum)


def parse(kind: type[RequestMessage], payload: bytes) -> RequestMessage:
    """A request from its bytes.

    Raises:
        InvalidRequestError: where they are not one, or hold text that is not UTF-8.
    """
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise InvalidRequestError(
            "request", f"{len(payload)} bytes that are not a valid {kind.DESCRIPTOR.full_name}: {error}"
        ) from error


# Requests ------------------------------------------------------------------------------------------------------------


def read_input(request: pb.Input, limits: PromptLimits) -> PromptInput:
    """The prompt, in whichever form it came, once its counts are within the limits."""
    limits.check_counts(
        num_ids=len(request.prompt_ids), num_messages=len(request.messages), num_segments=len(request.segments)
    )
    return PromptInput(
        prompt=request.prompt if request.HasField("prompt") else None,
        messages=tuple(Turn(message.role, message.content) for message in request.messages),
        prompt_ids=tuple(request.prompt_ids),
        segments=tuple(
            Segment(s.name, s.start, s.end, s.message if s.HasField("message") else None) for s in request.segments
        ),
    )


def read_sampling(request: pb.GenerateRequest | pb.GenerationOptions) -> Sampling:
    """How tokens are chosen."""
    _check_count("stop", len(request.stop), MAX_STOP_TEXTS)
    return Sampling(
        **_said(request, "max_new_tokens", "temperature", "top_k", "top_p", "seed"),
        stop=tuple(request.stop),
        num_alternatives=request.num_alternatives if isinstance(request, pb.GenerateRequest) else 0,
    )


def read_attribution(request: pb.AttributionOptions) -> AttributionSettings:
    """What to explain, with the preset's or the method's value for every switch that is not said."""
    method = method_named(request.method or GradEllm.name)
    switches = _switches(request)
    for name in switches:
        if name not in method.switch_names:
            its = f"its switches are {', '.join(method.switch_names)}" if method.switch_names else "it has no switches"
            raise InvalidRequestError(f"attribution.{name}", f"is not a switch of {method.name}; {its}")
    if request.preset and method.name != GradEllm.name:
        raise InvalidRequestError("attribution.preset", f"presets are {GradEllm.name}'s, not {method.name}'s")
    return AttributionSettings(
        method=_preset(request.preset, switches) if method.name == GradEllm.name else method.switches(**switches),
        contrast=_contrast(request.contrast) if request.HasField("contrast") else None,
        sources=_choice(Sources, pb.Sources, request, "sources") or Sources.PROMPT,
        resolution=_choice(Resolution, pb.Resolution, request, "resolution") or Resolution.TOKEN,
        delivery=_choice(Delivery, pb.Delivery, request, "delivery") or Delivery.PER_TOKEN,
        **_said(request, "target_token_id", "top_k_sources", "chunk_size"),
    )


def read_evaluation(request: pb.EvaluationOptions, labels: Sequence[str]) -> EvaluationSettings:
    """What is evaluated, and how; the default for all that is not said."""
    _check_count("methods", len(request.methods) + len(request.scores), MAX_EVALUATED_METHODS)
    _check_count("metrics", len(request.metrics), len(Metric))
    _check_count("pis", len(request.pis), MAX_PIS)
    _check_count("labels", len(labels), MAX_LABELS)
    seed = request.seed if request.HasField("seed") else 0
    said: dict[str, Any] = _said(request, "samples", "stride", "offset")
    if request.metrics:
        said["metrics"] = tuple(_member(Metric, pb.Metric, number, "metrics") for number in request.metrics)
    if request.pis:
        said["pis"] = tuple(request.pis)
    return EvaluationSettings(
        methods=(*(_judged(method, seed) for method in request.methods), *(_given(its) for its in request.scores)),
        seed=seed,
        perturb=_choice(Perturb, pb.Perturb, request, "perturb", "evaluation") or Perturb.USER,
        positions=tuple(request.perturb_positions),
        removal=_choice(Removal, pb.Removal, request, "removal", "evaluation") or Removal.REMOVE,
        labels=tuple(labels),
        raw_scores=request.raw_scores,
        rationale=tuple(request.rationale),
        **said,
    )


def _check_count(field: str, count: int, limit: int) -> None:
    """Refuse more of something than can be asked for, before any of it is read."""
    if count > limit:
        raise InvalidRequestError(field, f"{count:,} were given; the limit is {limit}")


def _judged(request: pb.EvaluatedMethod, seed: int) -> EvaluatedMethod:
    """A method of the server; the random one draws by the evaluation's seed, unless it is told another."""
    options = request.attribution
    for name in ("target_token_id", "contrast", "top_k_sources", "chunk_size"):
        if options.HasField(name):
            raise InvalidRequestError(f"attribution.{name}", _MEANINGLESS)
    for name in ("sources", "resolution", "delivery"):
        if getattr(options, name):
            raise InvalidRequestError(f"attribution.{name}", _MEANINGLESS)
    switches = read_attribution(options).method
    if isinstance(switches, Random) and not options.HasField("seed"):
        switches = Random(seed=max(0, seed))  # a seed below is refused by its own name
    return EvaluatedMethod(request.name or switches.name, switches)


_MEANINGLESS = "has no meaning in Evaluate, which asks what each token of the prompt does to what comes next"


def _given(request: pb.GivenScores) -> EvaluatedMethod:
    """The caller's own scores."""
    rows: dict[int, Sequence[float]] = {}
    for row in request.rows:
        if row.step in rows:
            raise InvalidRequestError("scores", f"{request.name!r} has two rows for step {row.step}")
        rows[row.step] = tuple(row.scores)
    if not rows:
        raise InvalidRequestError("scores", f"{request.name!r} has no rows")
    return EvaluatedMethod(request.name, None, rows)


def _switches(request: pb.AttributionOptions) -> dict[str, Any]:
    """Those of all methods' switches that are said."""
    choices = {name: _choice(kind, wire, request, name) for name, (kind, wire) in CHOICES.items()}
    several = {"layers": _layers(request), "baseline_ids": tuple(request.baseline_ids)}
    return {
        **{name: value for name, value in {**choices, **several}.items() if value not in (None, ())},
        **_said(request, *NUMBERS),
    }


def _preset(number: int, switches: Mapping[str, Any]) -> GradEllm:
    """Grad-ELLM's switches, by a preset and what is said beside it."""
    if number and number not in PRESETS:
        raise InvalidRequestError("attribution.preset", f"{number} is not a Preset that this server knows")
    return GradEllm.preset(PRESETS[number] if number else "paper", **switches)


def _said(request: Message, *names: str) -> dict[str, Any]:
    """Those of the optional fields that are set."""
    return {name: getattr(request, name) for name in names if request.HasField(name)}


def _choice(
    kind: type[Choice], wire: EnumTypeWrapper, request: Message, field: str, where: str = "attribution"
) -> Choice | None:
    """An enum's value; None where it was not said."""
    number = getattr(request, field)
    return None if number == 0 else _member(kind, wire, number, f"{where}.{field}")


def _member(kind: type[Choice], wire: EnumTypeWrapper, number: int, field: str) -> Choice:
    """What an enum's number says."""
    if number not in wire.values()[1:]:
        raise InvalidRequestError(
            field, f"{number} is not a value that this server knows; it knows {', '.join(wire.keys()[1:])}"
        )
    return kind(wire.Name(number).removeprefix(_prefix(wire)).lower())


def _prefix(wire: EnumTypeWrapper) -> str:
    return str(wire.Name(0)).removesuffix("UNSPECIFIED")


def _number(wire: EnumTypeWrapper, value: str) -> int:
    return int(wire.Value(f"{_prefix(wire)}{value.upper()}"))


def _layers(request: pb.AttributionOptions) -> int | tuple[int, ...] | None:
    layers = request.layers
    if layers.HasField("last") and layers.indexes:
        raise InvalidRequestError("attribution.layers", "give either last or indexes, not both")
    if layers.HasField("last"):
        return layers.last
    return tuple(layers.indexes) or None


def _contrast(request: pb.Contrast) -> Contrast:
    match request.WhichOneof("token"):
        case "token_id":
            return Contrast(token_id=request.token_id)
        case "text":
            return Contrast(text=request.text)
        case _:
            return Contrast(runner_up=request.runner_up)


# Calls: what each takes, and what the engine thread makes of it ------------------------------------------------------


def generate(request: pb.GenerateRequest, engine: Engine, *, tenant: str | None = None) -> Request:
    """The stream of a call of Generate; `tenant` is who calls."""
    return engine.generation_request(
        read_input(request.input, engine.prompt_limits),
        read_sampling(request),
        read_attribution(request.attribution) if request.HasField("attribution") else None,
        forced_ids=request.forced_ids,
        **_said(request, "first_attribution"),
        tenant=tenant,
    )


def attribute(request: pb.AttributeRequest, engine: Engine, *, tenant: str | None = None) -> Request:
    """The stream of a call of Attribute; `tenant` is who calls."""
    if request.HasField("completion") == bool(request.completion_ids):
        raise InvalidRequestError("completion", "give exactly one of completion and completion_ids")
    completion = request.completion if request.HasField("completion") else request.completion_ids
    return engine.attribution_request(
        read_input(request.input, engine.prompt_limits),
        completion,
        read_attribution(request.attribution),
        num_alternatives=request.num_alternatives,
        tenant=tenant,
    )


def evaluate(request: pb.EvaluateRequest, engine: Engine, *, tenant: str | None = None) -> Request:
    """The stream of a call of Evaluate; `tenant` is who calls."""
    given = {
        "completion": request.HasField("completion"),
        "completion_ids": bool(request.completion_ids),
        "labels": bool(request.labels),
        "generation": request.HasField("generation"),
    }
    if sum(given.values()) > 1:
        raise InvalidRequestError(
            "completion",
            f"give one of {', '.join(given)} at most; given: {', '.join(n for n, is_ in given.items() if is_)}",
        )
    completion = request.completion if given["completion"] else request.completion_ids or None
    return engine.evaluation_request(
        read_input(request.input, engine.prompt_limits),
        read_evaluation(request.evaluation, request.labels),
        completion,
        read_sampling(request.generation),
        tenant=tenant,
    )


def tokenize(request: pb.TokenizeRequest, engine: Engine) -> pb.TokenizeResponse:
    """The answer to a Tokenize call."""
    prompt = engine.tokenize(read_input(request.input, engine.prompt_limits))
    response = pb.TokenizeResponse(prompt_text=prompt.text, unplaced_messages=prompt.unplaced_messages)
    _add_prompt_tokens(response.tokens, prompt)
    return response


def num_tokens(answer: pb.TokenizeResponse) -> int:
    """Tokens that the answer to a Tokenize call counts."""
    return len(answer.tokens)


# By name: the request's type, the work, and the type of a stream's answers.
STREAMS: dict[str, tuple[type[Message], Callable[..., Request], type[Message]]] = {
    "Generate": (pb.GenerateRequest, generate, pb.GenerateResponse),
    "Attribute": (pb.AttributeRequest, attribute, pb.AttributeResponse),
    "Evaluate": (pb.EvaluateRequest, evaluate, pb.EvaluateResponse),
}
SINGLES: dict[str, tuple[type[Message], Callable[..., Message]]] = {
    "Tokenize": (pb.TokenizeRequest, tokenize),
}


# Results -------------------------------------------------------------------------------------------------------------


def info_request(payload: bytes) -> Message:
    """The request of a GetServerInfo call."""
    return parse(pb.GetServerInfoRequest, payload)


def server_info(engine: Engine, limits: Mapping[str, Any]) -> pb.GetServerInfoResponse:
    """What is served; `limits` are the server's own, beside the engine's."""
    return pb.GetServerInfoResponse(
        model=_model(engine),
        methods=[_method(method, engine) for method in METHODS.values()],
        limits=pb.Limits(
            max_prompt_tokens=engine.max_prompt_tokens,
            max_new_tokens=engine.max_new_tokens,
            max_prompt_characters=engine.prompt_limits.characters,
            max_messages=engine.prompt_limits.messages,
            max_segments=engine.prompt_limits.segments,
            kv_bytes=engine.kv_bytes,
            kv_tokens=engine.kv_tokens,
            method_bytes=engine.method_bytes,
            max_evaluation_sequences=MAX_EVALUATION_SEQUENCES,
            max_evaluation_step_tokens=MAX_EVALUATION_STEP_TOKENS,
            **limits,
        ),
        versions=_versions(),
    )


def _method(method: Method, engine: Engine) -> pb.MethodInfo:
    num_prompt_tokens, num_new_tokens = ESTIMATED
    estimate = engine.estimate(method.switches(), num_prompt_tokens, num_new_tokens)
    return pb.MethodInfo(
        name=method.name,
        description=method.description,
        streams=method.streams,
        switches=method.switch_names,
        forward_passes=str(method.cost.forward),
        backward_passes=str(method.cost.backward),
        reads_completion_alone=method.cost.completion_only,
        has_target=method.has_target,
        error=method.error,
        refusal=engine.refusal(method),
        estimate=pb.Estimate(
            prompt_tokens=num_prompt_tokens,
            completion_tokens=num_new_tokens,
            seconds=estimate.seconds,
            bytes=estimate.bytes,
        ),
    )


def answers(kind: type[Response], engine: Engine, event: Event) -> Sequence[Response]:
    """A stream's event as it goes on the wire; nothing for a token that the caller has already."""
    if isinstance(event, Step) and not event.is_new:
        return []
    return [kind(**_event(event, engine))]


def _event(event: Event, engine: Engine) -> dict[str, Any]:
    """The field of a response that carries an event."""
    match event:
        case Started():
            return {"started": _started(event, engine)}
        case Step():
            return {"token": _token(event)}
        case Attribution():
            return {"attribution": _attribution(event)}
        case Progress():
            return {"progress": pb.Progress(done=event.done)}
        case PromptProgress():
            return {"prompt_progress": pb.Progress(done=event.done)}
        case EvaluationItem():
            return {"item": _item(event)}
        case EvaluationSummary():
            return {"summary": _summary(event)}
        case Finished():
            return {"finished": _finished(event)}


def _model(engine: Engine) -> pb.ModelInfo:
    return pb.ModelInfo(**asdict(engine.info))


def _versions() -> dict[str, str]:
    return {"gradellm": __version__, **software_versions()}


def _started(started: Started, engine: Engine) -> pb.Started:
    attribution = started.attribution
    by_token = attribution is None or attribution.resolution is Resolution.TOKEN
    told = pb.Started(
        prompt_text=started.prompt.text,
        unplaced_messages=started.prompt.unplaced_messages,
        sources=[] if by_token else [pb.Source(**asdict(source)) for source in started.sources],
        provenance=pb.Provenance(
            model=_model(engine),
            versions=_versions(),
            sampling=_sampling(started.sampling),
            attribution=None if attribution is None else _options(attribution),
            evaluation=None if started.evaluation is None else _evaluation(started.evaluation),
        ),
    )
    _add_prompt_tokens(told.prompt_tokens, started.prompt)
    return told


def _sampling(sampling: Sampling) -> pb.Sampling:
    return pb.Sampling(
        max_new_tokens=sampling.max_new_tokens or 0,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed or 0,
        stop=sampling.stop,
    )


def _evaluation(settings: EvaluationSettings) -> pb.EvaluationOptions:
    """Settings as a request that says everything but the caller's own scores."""
    return pb.EvaluationOptions(
        methods=[
            pb.EvaluatedMethod(name=judged.name, attribution=pb.AttributionOptions(**_said_switches(judged.method)))
            for judged in settings.methods
            if judged.method is not None
        ],
        scores=[pb.GivenScores(name=judged.name) for judged in settings.methods if judged.method is None],
        metrics=[_number(pb.Metric, metric) for metric in settings.metrics],  # type: ignore[misc]
        pis=settings.pis,
        samples=settings.samples,
        stride=settings.stride,
        offset=settings.offset,
        seed=settings.seed,
        perturb=_number(pb.Perturb, settings.perturb),  # type: ignore[arg-type]
        removal=_number(pb.Removal, settings.removal),  # type: ignore[arg-type]
        raw_scores=settings.raw_scores,
        rationale=settings.rationale,
        perturb_positions=settings.positions,
    )


def _said_switches(method: Switches) -> dict[str, Any]:
    """A method's name and every switch, as fields of AttributionOptions."""
    switches = asdict(method)
    layers = switches.pop("layers", None)
    return {
        "method": method.name,
        "layers": None if layers is None else pb.Layers(indexes=layers),
        **{name: _number(CHOICES[name][1], value) if name in CHOICES else value for name, value in switches.items()},
    }


def _options(settings: AttributionSettings) -> pb.AttributionOptions:
    """Settings as a request that says every switch."""
    contrast = settings.contrast
    return pb.AttributionOptions(
        **_said_switches(settings.method),
        target_token_id=settings.target_token_id,
        contrast=None
        if contrast is None
        else pb.Contrast(**{name: value for name, value in asdict(contrast).items() if value not in (None, False)}),
        sources=_number(pb.Sources, settings.sources),  # type: ignore[arg-type]
        resolution=_number(pb.Resolution, settings.resolution),  # type: ignore[arg-type]
        top_k_sources=settings.top_k_sources,
        delivery=_number(pb.Delivery, settings.delivery),  # type: ignore[arg-type]
        chunk_size=settings.chunk_size,
    )


def _add_prompt_tokens(told: RepeatedCompositeFieldContainer[pb.PromptToken], prompt: Prompt) -> None:
    """Add a prompt's tokens to a message's field, in place: there may be many thousands."""
    for token, word in zip(prompt.tokens, prompt.words, strict=True):
        its = told.add()
        its.id, its.text, its.start, its.end = token.id, token.text, token.start, token.end
        its.role = ROLES[token.role]  # type: ignore[assignment]
        its.word = word
        if token.message is not None:
            its.message = token.message
        if token.segment is not None:
            its.segment = token.segment
        if token.special:
            its.special = True


def _token(step: Step) -> pb.Token:
    return pb.Token(
        index=step.index,
        id=step.id,
        text=step.text,
        start=step.start,
        end=step.end,
        logprob=step.logprob,
        alternatives=[pb.Alternative(**asdict(alternative)) for alternative in step.alternatives],
        special=step.special,
        word=step.word,
        source_index=step.source_index,
    )


def _attribution(row: Attribution) -> pb.Attribution:
    return pb.Attribution(
        token_index=row.token_index,
        # A list of Python floats is packed several times faster than an array of any kind.
        scores=row.scores.tolist(),
        source_indexes=[] if row.source_indexes is None else row.source_indexes.tolist(),
        target_token_id=row.target_token_id,
        contrast_token_id=row.contrast_token_id,
        error=row.error,
    )


def _item(item: EvaluationItem) -> pb.EvaluationItem:
    return pb.EvaluationItem(
        step=item.step,
        name=item.name,
        metric=_number(pb.Metric, item.metric),  # type: ignore[arg-type]
        value=item.value,
        points=[
            pb.EvaluationPoint(
                pi=point.pi, achieved_pi=point.achieved, alpha=point.alpha, mean=point.mean, samples=point.samples
            )
            for point in item.points
        ],
        flips=item.flips,
        expected_tokens=item.expected_tokens,
    )


def _summary(summary: EvaluationSummary) -> pb.EvaluationSummary:
    return pb.EvaluationSummary(
        metrics=[_metric_summary(metric) for metric in summary.metrics],
        steps=summary.steps,
        skipped_steps=summary.skipped,
        label_index=summary.label,
        answer_outside_labels=summary.is_outside,
        perturbable_tokens=summary.num_perturbable,
        sequences_run=summary.num_sequences,
        sequences_asked=summary.num_requested,
    )


def _metric_summary(summary: MetricSummary) -> pb.MetricSummary:
    return pb.MetricSummary(
        name=summary.name,
        metric=_number(pb.Metric, summary.metric),  # type: ignore[arg-type]
        interval=_interval(summary.interval),
        median=summary.median,
        difference_from_random=None if summary.difference is None else _interval(summary.difference),
        curve=summary.curve,
        expected_tokens=summary.expected_tokens,
        steps=summary.steps,
    )


def _interval(interval: Interval) -> pb.Interval:
    return pb.Interval(
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        kind=_number(pb.IntervalKind, interval.kind),  # type: ignore[arg-type]
        count=interval.n,
    )


def _finished(finished: Finished) -> pb.Finished:
    return pb.Finished(
        reason=_number(pb.FinishReason, finished.reason),  # type: ignore[arg-type]
        stop=finished.stop or "",
        usage=pb.Usage(
            prompt_tokens=finished.num_prompt_tokens,
            completion_tokens=finished.num_completion_tokens,
            attributed_tokens=finished.num_attributed_tokens,
            reused_prompt_tokens=finished.num_reused_tokens,
        ),
        timings=pb.Timings(
            queue_seconds=finished.queue_seconds,
            prefill_seconds=finished.prefill_seconds,
            decode_seconds=finished.decode_seconds,
            attribution_seconds=finished.attribution_seconds,
        ),
    )
