"""Requests from the wire: messages to the engine's settings, which validate themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import (
    MAX_CHOICES,
    MAX_EVALUATED_METHODS,
    MAX_LABELS,
    MAX_LOGIT_BIASES,
    MAX_PIS,
    MAX_STOP_TEXTS,
    MAX_STOP_TOKEN_IDS,
    AttributionSettings,
    Contrast,
    Delivery,
    EvaluatedMethod,
    EvaluationSettings,
    GradEllm,
    InvalidRequestError,
    MessageSpan,
    Metric,
    Perturb,
    PromptInput,
    PromptLimits,
    Random,
    Removal,
    Resolution,
    Sampling,
    Segment,
    Sources,
    StructuredOutput,
    TemplateOptions,
    TokenSelection,
    ToolCall,
    method_named,
)
from gradellm_engine import Message as ChatMessage
from gradellm_server.rpc.wire_enums import PRESET_NUMBERS, PRESETS, SWITCH_ENUMS, choice, member_of, set_fields

# The switches of methods that are numbers, by their fields' names; `wire_enums.SWITCH_ENUMS` has the enums.
NUMERIC_SWITCHES = ("steps", "samples", "seed", "layer")
# The fields that choose what an attribution is: where one of them is set, no default applies.
_CHOICES = frozenset({"method", "preset", "layers", "baseline_ids", *SWITCH_ENUMS, *NUMERIC_SWITCHES})
NO_MEANING_IN_EVALUATE = "has no meaning in Evaluate, which perturbs each token of the prompt and looks at what follows"

RequestMessage = TypeVar("RequestMessage", bound=Message)


def parse(kind: type[RequestMessage], payload: bytes) -> RequestMessage:
    """Parse a request.

    Raises:
        InvalidRequestError: if the bytes are not such a message, or hold text that is not UTF-8.
    """
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise InvalidRequestError(
            "request", f"{len(payload)} bytes that are not a valid {kind.DESCRIPTOR.full_name}: {error}"
        ) from error


def read_input(request: pb.Input, limits: PromptLimits) -> PromptInput:
    """The prompt, in any of its forms; its counts are checked against the limits first."""
    limits.check_counts(
        num_ids=len(request.prompt_ids),
        num_messages=len(request.messages),
        num_segments=len(request.segments),
        num_message_spans=len(request.message_spans),
    )
    limits.check_length("input.tools", len(request.tools))
    return PromptInput(
        prompt=request.prompt if request.HasField("prompt") else None,
        messages=tuple(map(_read_message, request.messages)),
        prompt_ids=tuple(request.prompt_ids),
        segments=tuple(
            Segment(s.name, s.start, s.end, s.message if s.HasField("message") else None) for s in request.segments
        ),
        message_spans=tuple(MessageSpan(span.role, span.start, span.end) for span in request.message_spans),
        template=TemplateOptions(
            TemplateOptions.parsed_kwargs(request.chat_template_kwargs) if request.chat_template_kwargs else {},
            request.add_generation_prompt if request.HasField("add_generation_prompt") else None,
            request.continue_final_message,
        ),
        tools=request.tools,
    )


def _read_message(message: pb.Message) -> ChatMessage:
    calls = tuple(ToolCall(call.name, call.arguments, call.id) for call in message.tool_calls)
    return ChatMessage(message.role, message.content, calls, message.tool_call_id, message.name, message.reasoning)


def read_sampling(request: pb.GenerateRequest | pb.GenerationOptions, defaults: Sampling = Sampling()) -> Sampling:
    """The sampling parameters; those that are not set are the defaults'."""
    _check_count("stop", len(request.stop), MAX_STOP_TEXTS)
    wanted = set_fields(request, "max_new_tokens", "temperature", "top_k", "top_p", "seed")
    if isinstance(request, pb.GenerateRequest):
        _check_count("logit_bias", len(request.logit_bias), MAX_LOGIT_BIASES)
        _check_count("stop_token_ids", len(request.stop_token_ids), MAX_STOP_TOKEN_IDS)
        penalties = ("repetition_penalty", "frequency_penalty", "presence_penalty")
        wanted |= set_fields(request, "min_p", *penalties, "skip_special_tokens")
        wanted |= {name: getattr(request, name) for name in ("min_new_tokens", "ignore_eos", "num_alternatives")}
        wanted["logit_bias"] = tuple(sorted(request.logit_bias.items()))
        wanted["stop_token_ids"] = tuple(dict.fromkeys(request.stop_token_ids))
    return replace(defaults, stop=tuple(request.stop), **wanted)


def read_structured_output(request: pb.GenerateRequest) -> StructuredOutput | None:
    """What a completion has to be; None where the request does not say.

    Raises:
        InvalidRequestError: naming the field.
    """
    if not request.HasField("structured_output"):
        return None
    message = request.structured_output
    match message.WhichOneof("constraint"):
        case "choice":
            _check_count("structured_output.choice", len(message.choice.texts), MAX_CHOICES)
            if not message.choice.texts:
                raise InvalidRequestError("structured_output.choice", "needs at least one text")
            return StructuredOutput(choice=tuple(message.choice.texts))
        case "json_object":
            if not message.json_object:
                raise InvalidRequestError("structured_output.json_object", "must be true, or left out")
            return StructuredOutput(json_object=True)
        case "json_schema":
            return StructuredOutput(json_schema=message.json_schema)
        case "grammar":
            return StructuredOutput(grammar=message.grammar)
        case "regex":
            return StructuredOutput(regex=message.regex)
        case _:
            return StructuredOutput()  # raises: a constraint is needed


def read_attribution(request: pb.AttributionOptions) -> AttributionSettings:
    """The attribution settings; a switch that is not set has the preset's or the method's default."""
    method = method_named(request.method or GradEllm.name)
    switches = _switches(request)
    for name in switches:
        if name not in method.switch_names:
            available = ", ".join(method.switch_names)
            hint = f"its switches are {available}" if available else "it has no switches"
            raise InvalidRequestError(f"attribution.{name}", f"is not a switch of {method.name}; {hint}")
    if request.preset and method.name != GradEllm.name:
        raise InvalidRequestError("attribution.preset", f"presets are {GradEllm.name}'s, not {method.name}'s")
    return AttributionSettings(
        method=_preset(request.preset, switches) if method.name == GradEllm.name else method.switches(**switches),
        contrast=_contrast(request.contrast) if request.HasField("contrast") else None,
        sources=choice(Sources, pb.Sources, request, "sources") or Sources.PROMPT,
        resolution=choice(Resolution, pb.Resolution, request, "resolution") or Resolution.TOKEN,
        delivery=choice(Delivery, pb.Delivery, request, "delivery") or Delivery.PER_TOKEN,
        tokens=_tokens(request.tokens),
        **set_fields(request, "target_token_id", "top_k_sources", "chunk_size"),
    )


def name_presets(request: Message, default: str, recommended: str) -> None:
    """Write a preset's own name into attribution options that name none, or `recommended`.

    A request for tokens alone is not changed: Generate without attribution. An evaluated method without a name has the
    default's own.

    Args:
        request: of Generate, Attribute or Evaluate, or the first one of Follow.
        default: the server's default, of options that name no preset, no method and no switch.
        recommended: what `recommended` stands for, for this model.
    """
    numbers = PRESET_NUMBERS[default], PRESET_NUMBERS[recommended]
    match request:
        case pb.GenerateRequest() if request.HasField("attribution"):
            _name_preset(request.attribution, *numbers)
        case pb.AttributeRequest() | pb.FollowStart():
            _name_preset(request.attribution, *numbers)
        case pb.EvaluateRequest():
            for method in request.evaluation.methods[:MAX_EVALUATED_METHODS]:  # more are refused when they are read
                if _name_preset(method.attribution, *numbers):
                    method.name = method.name or default


def _name_preset(options: pb.AttributionOptions, default: Any, recommended: Any) -> bool:  # noqa: ANN401 (pb.Preset)
    """Write the preset of some options; return whether it is the default."""
    if options.preset == pb.PRESET_RECOMMENDED:
        options.preset = recommended
    elif _CHOICES.isdisjoint(field.name for field, _ in options.ListFields()):
        options.preset = default
        return True
    return False


def read_evaluation(request: pb.EvaluationOptions, labels: Sequence[str]) -> EvaluationSettings:
    """The evaluation settings, with defaults for unset fields."""
    _check_count("methods", len(request.methods) + len(request.scores), MAX_EVALUATED_METHODS)
    _check_count("metrics", len(request.metrics), len(Metric))
    _check_count("pis", len(request.pis), MAX_PIS)
    _check_count("labels", len(labels), MAX_LABELS)
    seed = request.seed if request.HasField("seed") else 0
    optional: dict[str, Any] = set_fields(request, "samples", "stride", "offset")
    if request.metrics:
        optional["metrics"] = tuple(member_of(Metric, pb.Metric, number, "metrics") for number in request.metrics)
    if request.pis:
        optional["pis"] = tuple(request.pis)
    methods = [_evaluated_method(method, seed) for method in request.methods]
    scores = [_evaluated_scores(scores) for scores in request.scores]
    return EvaluationSettings(
        methods=(*methods, *scores),
        seed=seed,
        perturb=choice(Perturb, pb.Perturb, request, "perturb", "evaluation") or Perturb.USER,
        positions=tuple(request.perturb_positions),
        removal=choice(Removal, pb.Removal, request, "removal", "evaluation") or Removal.REMOVE,
        labels=tuple(labels),
        raw_scores=request.raw_scores,
        rationale=tuple(request.rationale),
        **optional,
    )


def _check_count(field: str, count: int, limit: int) -> None:
    """Refuse a repeated field that is too long, before any of it is read."""
    if count > limit:
        raise InvalidRequestError(field, f"{count:,} were given; the limit is {limit}")


def _evaluated_method(request: pb.EvaluatedMethod, seed: int) -> EvaluatedMethod:
    """A method of the server. The random baseline takes the evaluation's seed unless it has one of its own."""
    options = request.attribution
    for name in ("target_token_id", "contrast", "top_k_sources", "chunk_size", "tokens"):
        if options.HasField(name):
            raise InvalidRequestError(f"attribution.{name}", NO_MEANING_IN_EVALUATE)
    for name in ("sources", "resolution", "delivery"):
        if getattr(options, name):
            raise InvalidRequestError(f"attribution.{name}", NO_MEANING_IN_EVALUATE)
    switches = read_attribution(options).method
    if isinstance(switches, Random) and not options.HasField("seed"):
        switches = Random(seed=max(0, seed))  # a negative seed is refused later, as the evaluation's field
    return EvaluatedMethod(request.name or switches.name, switches)


def _evaluated_scores(request: pb.GivenScores) -> EvaluatedMethod:
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
    """The switches of any method that are set."""
    enums = {name: choice(kind, wire, request, name) for name, (kind, wire) in SWITCH_ENUMS.items()}
    repeated = {"layers": _layers(request), "baseline_ids": tuple(request.baseline_ids)}
    return {
        **{name: value for name, value in {**enums, **repeated}.items() if value not in (None, ())},
        **set_fields(request, *NUMERIC_SWITCHES),
    }


def _preset(number: int, switches: Mapping[str, Any]) -> GradEllm:
    """Grad-ELLM's switches: those of a preset, overridden by the ones that are set."""
    if number and number not in PRESETS:
        raise InvalidRequestError("attribution.preset", f"{number} is not a Preset that this server knows")
    return GradEllm.preset(PRESETS[number] if number else "paper", **switches)


def _layers(request: pb.AttributionOptions) -> int | tuple[int, ...] | None:
    layers = request.layers
    if layers.HasField("last") and layers.indexes:
        raise InvalidRequestError("attribution.layers", "give either last or indexes, not both")
    if layers.HasField("last"):
        return layers.last
    return tuple(layers.indexes) or None


def _tokens(request: pb.TokenSelection) -> TokenSelection | None:
    """The selected tokens; None for all."""
    if not (request.indexes or request.spans):
        return None
    return TokenSelection(tuple(request.indexes), tuple((span.start, span.end) for span in request.spans))


def _contrast(request: pb.Contrast) -> Contrast:
    match request.WhichOneof("token"):
        case "token_id":
            return Contrast(token_id=request.token_id)
        case "text":
            return Contrast(text=request.text)
        case _:
            return Contrast(runner_up=request.runner_up)
