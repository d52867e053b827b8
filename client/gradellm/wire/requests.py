"""From keywords to request protos, checked as far as can be done without the server.

The server knows the model and its limits, so it judges values; here is judged what could not be said on the wire, or
would be said wrong: types, integers out of range, unknown names, and choices of "exactly one of". Every error names its
keyword. The keywords of a call are one TypedDict, the same for both clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from gradellm.errors import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import validation
from gradellm.wire.responses import enum_names

if TYPE_CHECKING:
    from gradellm.explanation.explanation import Explanation
    from gradellm.models import (
        Aggregation,
        Delivery,
        Loosening,
        Magnitude,
        Metric,
        NormaliseOver,
        Objective,
        Perturb,
        Preset,
        Rectify,
        Removal,
        Resolution,
        Rotary,
        Similarity,
        Sources,
    )

__all__ = [
    "AttributeKeywords",
    "AttributionKeywords",
    "CallKeywords",
    "EvaluateKeywords",
    "GenerateKeywords",
    "TokenizeKeywords",
    "attribute_request",
    "deadline",
    "evaluate_request",
    "generate_request",
    "server_info_request",
    "tokenize_request",
]

Message = Mapping[str, str] | tuple[str, str]
"""A turn of a conversation: {"role": ..., "content": ...}, or (role, content)."""
Segment = tuple[int, int] | tuple[int, int, int]
"""A stretch of the caller's text in code points: (start, end) of a prompt, or (message, start, end) of messages."""


class CallKeywords(TypedDict, total=False):
    """The keyword of every call."""

    timeout: float | None
    """Seconds until the call fails with DeadlineExceededError. None, the default, means no limit."""


class InputKeywords(TypedDict, total=False):
    """The prompt in its other forms. Exactly one of prompt, messages and prompt_ids must be given."""

    messages: Sequence[Message] | None
    """A conversation, rendered by the model's chat template."""
    prompt_ids: Sequence[int] | None
    """Token ids, taken as they are."""
    segments: Mapping[str, Segment] | None
    """Named stretches of the prompt, such as the documents of a retrieval prompt."""


class AttributionKeywords(TypedDict, total=False):
    """What to explain, and how. A keyword that is left out, or None, has its preset's value."""

    attribution: Preset | None
    """The preset: "paper" (the default), "unloosened", "grad_eclip" or "knockout". None turns attribution off."""
    method: str | None
    """The method's name, "grad_ellm" by default; `server_info().methods` lists them."""
    loosening: Loosening | None
    layers: Literal["all"] | int | Sequence[int] | None
    """"all", how many of the last, or which, counted from the embedding side, 0 first."""
    similarity: Similarity | None
    rotary: Rotary | None
    rectify: Rectify | None
    magnitude: Magnitude | None
    normalise_over: NormaliseOver | None
    objective: Objective | None
    """What of the target is differentiated, or watched while the prompt changes: "logit" by default."""
    aggregation: Aggregation | None
    """How a token's numbers, one a channel, become one score: the "norm" (the default), or their signed "sum"."""
    steps: int | None
    """Places on the path of integrated gradients, 50 by default."""
    samples: int | None
    """Samples of methods that draw some."""
    attribution_seed: int | None
    """Makes what a method draws repeatable; 0 by default."""
    layer: int | None
    """The layer whose output is taken, 0 first; -1 is the embedding, by default the middle one."""
    baseline_ids: Sequence[int] | None
    """Token ids in place of the prompt's where they are taken away; zero embeddings by default."""
    target: int | None
    """Explain this token id's logit at every step, instead of the generated token's own."""
    contrast: int | str | None
    """Explain why the target and not this: a token id, a text's first token, or "runner_up"."""
    sources: Sources | None
    """Score the "prompt" (the default), or the "prefix": the completion so far as well."""
    resolution: Resolution | None
    """One score a "token" (the default), a "word" or a "segment"."""
    top_k_sources: int | None
    """Return only this many scores a token, the largest by magnitude."""
    delivery: Delivery | None
    """When scores come: "per_token" (the default), or "chunked", for several tokens at once, which costs less."""
    chunk_size: int | None
    """Tokens that are explained at once, chunked or in `attribute`, 1 to 256; the server chooses by default."""


class TokenizeKeywords(CallKeywords, InputKeywords, total=False):
    """The keywords of `tokenize`."""


class GenerateKeywords(CallKeywords, InputKeywords, AttributionKeywords, total=False):
    """The keywords of `generate` and `explain`."""

    max_new_tokens: int | None
    """Tokens of the completion at most; by default 256, or what the context leaves."""
    temperature: float | None
    """0, the default, is greedy decoding."""
    top_k: int | None
    """Sample from the k most probable tokens; 0, the default, means all."""
    top_p: float | None
    """Sample from the most probable tokens that hold this probability, in (0, 1]; 1, the default, means all."""
    seed: int | None
    """Makes sampling repeatable. The server chooses one by default and returns it in the provenance."""
    stop: str | Sequence[str] | None
    """End the completion before the first of these texts."""
    num_alternatives: int | None
    """Return this many most probable tokens beside each generated one."""
    forced_ids: Sequence[int] | None
    """Token ids that the completion begins with: resume after them."""
    first_attribution: int | None
    """The first completion token to explain, at most the number of forced ones (the default)."""


class AttributeKeywords(CallKeywords, InputKeywords, AttributionKeywords, total=False):
    """The keywords of `attribute`. Exactly one of completion and completion_ids must be given."""

    completion: str | None
    """The completion as text."""
    completion_ids: Sequence[int] | None
    """The completion as token ids."""
    num_alternatives: int | None
    """Return this many most probable tokens beside each completion token."""


class EvaluateKeywords(CallKeywords, InputKeywords, total=False):
    """The keywords of `evaluate`. At most one of completion, completion_ids, labels, explanation and max_new_tokens."""

    completion: str | None
    """The completion as text. Without any, the model generates one first."""
    completion_ids: Sequence[int] | None
    """The completion as token ids."""
    labels: Sequence[str] | None
    """Words that answer: the model's likeliest one, by its first token, is what is explained."""
    explanation: Explanation | None
    """An earlier explanation, in place of prompt and completion. Its own scores are evaluated, by the name
    "explanation", beside "random" or the `methods` that are given."""
    max_new_tokens: int | None
    """Of the completion that is generated first."""
    temperature: float | None
    top_k: int | None
    top_p: float | None
    stop: str | Sequence[str] | None
    generation_seed: int | None
    """Of sampling that completion; the server chooses one by default."""
    methods: Sequence[str] | Mapping[str, Mapping[str, Any] | None] | None
    """What is evaluated: names of methods and presets; or names of your own, each with keywords of attribution. By
    default "grad_ellm" and "random", without which there is nothing to compare with."""
    scores: Mapping[str, Mapping[int, Sequence[float]]] | None
    """Your own attributions, from wherever they are: by name, for each token that is evaluated, one score a token of
    the prompt (or of the whole prefix)."""
    metrics: Sequence[Metric] | None
    """By default "pi_soft_ns" and "pi_soft_nc"."""
    pis: Sequence[float] | None
    """The shares of the text that are kept, ascending; by default 0.05, 0.10 .. 0.95."""
    samples: int | None
    """Masks drawn for each share; 3 by default."""
    stride: int | None
    """Every so many tokens of the completion are evaluated; 5 by default."""
    offset: int | None
    """From this one on; 0 by default."""
    seed: int | None
    """Of masks, of ties and of random scores; 0 by default. Equal seeds give equal numbers."""
    perturb: Perturb | None
    """Which tokens may be perturbed: those of the "user" (the default), the whole "prompt", or the "prefix"."""
    perturb_positions: Sequence[int] | None
    """In place of `perturb`: these tokens of the prompt."""
    removal: Removal | None
    """What insertion and deletion do to a token: "remove" (the default), "zero" its embedding, or "pad"."""
    raw_scores: bool | None
    """Whether soft_ns and soft_nc take scores as they are, clipped to 0..1."""
    rationale: Sequence[str] | None
    """Names of the segments that people gave as the reason, for auprc and token_f1."""


def evaluate_request(prompt: str | None, keywords: EvaluateKeywords) -> pb.EvaluateRequest:
    """Build the request of `evaluate` and `evaluate_events`."""
    validation.refuse_unknown("evaluate", keywords, EvaluateKeywords)
    explanation = keywords.get("explanation")
    if explanation is not None:
        return _explanation_request(prompt, explanation, keywords)
    request = pb.EvaluateRequest(
        input=_input(prompt, keywords),
        completion=validation.optional(validation.text, "completion", keywords),
        completion_ids=validation.optional(validation.some_int32s, "completion_ids", keywords),
        labels=validation.texts("labels", keywords),
        evaluation=_evaluation(keywords, keywords.get("methods"), keywords.get("scores") or {}),
    )
    if (generation := _generation(keywords)) is not None:
        request.generation.CopyFrom(generation)
    ways = [name for name in ("completion", "completion_ids", "labels") if keywords.get(name) is not None]
    ways += [name for name in _GENERATION if keywords.get(name) is not None][:1]
    if len(ways) > 1:
        raise InvalidRequestError.of(ways[1], f"has no meaning beside {ways[0]}: a completion is given, or generated")
    return request


_GENERATION = ("max_new_tokens", "temperature", "top_k", "top_p", "stop", "generation_seed")


def _generation(keywords: EvaluateKeywords) -> pb.GenerationOptions | None:
    if all(keywords.get(name) is None for name in _GENERATION):
        return None
    return pb.GenerationOptions(
        max_new_tokens=validation.optional(validation.int32, "max_new_tokens", keywords),
        temperature=validation.optional(validation.number, "temperature", keywords),
        top_k=validation.optional(validation.int32, "top_k", keywords),
        top_p=validation.optional(validation.number, "top_p", keywords),
        seed=validation.optional(validation.int64, "generation_seed", keywords),
        stop=validation.stop_texts(keywords.get("stop")),
    )


def _explanation_request(
    prompt: str | None, explanation: Explanation, keywords: EvaluateKeywords
) -> pb.EvaluateRequest:
    """The same tokens again, as ids; what could be perturbed then can be now."""
    for name in ("messages", "prompt_ids", "segments", "completion", "completion_ids", "labels", *_GENERATION):
        if keywords.get(name) is not None:
            raise InvalidRequestError.of(name, "has no meaning beside explanation, which holds prompt and completion")
    if prompt is not None:
        raise InvalidRequestError.of("prompt", "has no meaning beside explanation, which holds prompt and completion")
    own = _own_scores(explanation)
    if own.keys() & (keywords.get("scores") or {}).keys():
        raise InvalidRequestError.of("scores", "'explanation' is what the explanation's own scores are called")
    methods = keywords.get("methods") if "methods" in keywords or not own else ("random",)
    perturbed = keywords.get("perturb") is not None or keywords.get("perturb_positions") is not None
    positions = [i for i, token in enumerate(explanation.prompt_tokens) if token.role == "user" and not token.special]
    request = pb.EvaluateRequest(
        input=pb.Input(prompt_ids=[token.id for token in explanation.prompt_tokens]),
        completion_ids=[token.id for token in explanation.tokens],
        evaluation=_evaluation(keywords, methods, {**own, **(keywords.get("scores") or {})}),
    )
    if not perturbed:
        request.evaluation.perturb_positions.extend(positions)
    return request


def _own_scores(explanation: Explanation) -> dict[str, dict[int, Sequence[float]]]:
    """An explanation's rows; none where it has no attribution."""
    if not explanation.tokens or explanation.tokens[0].index != 0:
        raise InvalidRequestError.of("explanation", "must begin with the completion's first token")
    if not explanation.attributions:
        return {}
    settings = explanation.started.provenance.attribution
    if explanation.started.sources or (settings is not None and settings.top_k_sources is not None):
        raise InvalidRequestError.of(
            "explanation", 'its scores must be one a token: explain with resolution="token" and without top_k_sources'
        )
    return {"explanation": {row.token_index: row.scores for row in explanation.attributions}}


def _evaluation(
    keywords: EvaluateKeywords, methods: object, scores: Mapping[str, Mapping[int, Sequence[float]]]
) -> pb.EvaluationOptions:
    return pb.EvaluationOptions(
        methods=_evaluated(("grad_ellm", "random") if methods is None and not scores else methods or ()),
        scores=[_given_scores(name, rows) for name, rows in validation.mapping("scores", scores).items()],
        metrics=validation.enum_values(pb.Metric, "metrics", keywords),
        pis=[validation.number(f"pis[{i}]", pi) for i, pi in enumerate(validation.several("pis", keywords))],
        samples=validation.optional(validation.int32, "samples", keywords),
        stride=validation.optional(validation.int32, "stride", keywords),
        offset=validation.optional(validation.int32, "offset", keywords),
        seed=validation.optional(validation.int64, "seed", keywords),
        perturb=validation.enum_value(pb.Perturb, "perturb", keywords),
        perturb_positions=validation.optional(validation.some_int32s, "perturb_positions", keywords),
        removal=validation.enum_value(pb.Removal, "removal", keywords),
        raw_scores=validation.optional(validation.boolean, "raw_scores", keywords),
        rationale=validation.texts("rationale", keywords),
    )


def _evaluated(methods: object) -> list[pb.EvaluatedMethod]:
    named = methods if isinstance(methods, Mapping) else dict.fromkeys(validation.items("methods", methods))
    presets = enum_names(pb.Preset.DESCRIPTOR).values()
    built = []
    for name, said in named.items():
        options = said if said is not None else {"attribution": name} if name in presets else {"method": name}
        if not isinstance(options, Mapping):
            raise InvalidRequestError.of(
                f"methods[{name!r}]", f"must be keywords of attribution, not {validation.shown(options)}"
            )
        for keyword in options.keys() - AttributionKeywords.__annotations__.keys():
            raise InvalidRequestError.of(f"methods[{name!r}]", f"{keyword} is not a keyword of attribution")
        built.append(
            pb.EvaluatedMethod(
                name=validation.text("methods", name), attribution=_attribution(cast("AttributionKeywords", options))
            )
        )
    return built


def _given_scores(name: str, rows: object) -> pb.GivenScores:
    where = f"scores[{name!r}]"
    return pb.GivenScores(
        name=validation.text("scores", name),
        rows=[
            pb.ScoreRow(
                step=validation.int32(where, step),
                scores=[
                    validation.number(f"{where}[{step}]", score) for score in validation.items(f"{where}[{step}]", row)
                ],
            )
            for step, row in validation.mapping(where, rows).items()
        ],
    )


def generate_request(prompt: str | None, keywords: GenerateKeywords) -> pb.GenerateRequest:
    """Build the request of `generate` and `explain`."""
    validation.refuse_unknown("generate", keywords, GenerateKeywords)
    request = pb.GenerateRequest(
        input=_input(prompt, keywords),
        max_new_tokens=validation.optional(validation.int32, "max_new_tokens", keywords),
        temperature=validation.optional(validation.number, "temperature", keywords),
        top_k=validation.optional(validation.int32, "top_k", keywords),
        top_p=validation.optional(validation.number, "top_p", keywords),
        seed=validation.optional(validation.int64, "seed", keywords),
        stop=validation.stop_texts(keywords.get("stop")),
        num_alternatives=validation.optional(validation.int32, "num_alternatives", keywords),
        forced_ids=validation.optional(validation.int32s, "forced_ids", keywords),
        first_attribution=validation.optional(validation.int32, "first_attribution", keywords),
    )
    if keywords.get("attribution", "paper") is not None:
        request.attribution.CopyFrom(_attribution(keywords))
    else:
        _refuse_attribution_keywords(keywords)
    return request


def attribute_request(prompt: str | None, keywords: AttributeKeywords) -> pb.AttributeRequest:
    """Build the request of `attribute` and `attribute_events`."""
    validation.refuse_unknown("attribute", keywords, AttributeKeywords)
    validation.exactly_one({name: keywords.get(name) for name in ("completion", "completion_ids")})
    if keywords.get("attribution", "paper") is None:
        raise InvalidRequestError.of("attribution", "None turns attribution off, and attribute() does nothing else")
    return pb.AttributeRequest(
        input=_input(prompt, keywords),
        completion=validation.optional(validation.text, "completion", keywords),
        completion_ids=validation.optional(validation.some_int32s, "completion_ids", keywords),
        attribution=_attribution(keywords),
        num_alternatives=validation.optional(validation.int32, "num_alternatives", keywords),
    )


def tokenize_request(prompt: str | None, keywords: TokenizeKeywords) -> pb.TokenizeRequest:
    """Build the request of `tokenize`."""
    validation.refuse_unknown("tokenize", keywords, TokenizeKeywords)
    return pb.TokenizeRequest(input=_input(prompt, keywords))


def server_info_request(keywords: CallKeywords) -> pb.GetServerInfoRequest:
    """Build the request of `server_info`."""
    validation.refuse_unknown("server_info", keywords, CallKeywords)
    return pb.GetServerInfoRequest()


def deadline(keywords: CallKeywords) -> float | None:
    """Return the keyword `timeout`, in seconds, checked."""
    timeout = keywords.get("timeout")
    if timeout is None:
        return None
    seconds = validation.number("timeout", timeout)
    if not 0 < seconds < 1e9:  # gRPC reads some of the values outside as "no limit" and fails on others
        raise InvalidRequestError.of(
            "timeout", f"must be seconds above 0, or None for no limit, not {validation.shown(timeout)}"
        )
    return seconds


# --- the parts of a request ---------------------------------------------------------------------------------------


def _input(prompt: str | None, keywords: InputKeywords) -> pb.Input:
    messages, segments = keywords.get("messages"), keywords.get("segments")
    validation.exactly_one({"prompt": prompt, "messages": messages, "prompt_ids": keywords.get("prompt_ids")})
    return pb.Input(
        prompt=None if prompt is None else validation.text("prompt", prompt),
        messages=None if messages is None else _messages(messages),
        prompt_ids=validation.optional(validation.some_int32s, "prompt_ids", keywords),
        segments=None if segments is None else _segments(segments, of_messages=messages is not None),
    )


def _messages(messages: Sequence[Message]) -> list[pb.Message]:
    built = []
    for index, message in enumerate(validation.items("messages", messages)):
        name = f"messages[{index}]"
        pair = message
        if isinstance(message, Mapping):
            if message.keys() != {"role", "content"}:
                raise InvalidRequestError.of(
                    name, f"needs the keys role and content alone, has {validation.listed(message)}"
                )
            pair = (message["role"], message["content"])
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InvalidRequestError.of(
                name, f"must map role and content, or be a pair of them, not {validation.shown(message)}"
            )
        role, content = pair
        built.append(
            pb.Message(role=validation.text(f"{name}.role", role), content=validation.text(f"{name}.content", content))
        )
    if not built:
        raise InvalidRequestError.of("messages", "is empty; a conversation has at least one message")
    return built


def _segments(segments: Mapping[str, Segment], *, of_messages: bool) -> list[pb.Segment]:
    if not isinstance(segments, Mapping):
        raise InvalidRequestError.of(
            "segments", f"must map names to stretches of text, not {validation.shown(segments)}"
        )
    form = "(message, start, end) as the prompt is in messages" if of_messages else "(start, end)"
    built = []
    for name, stretch in segments.items():
        where = f"segments[{name!r}]"
        numbers = validation.int32s(where, stretch)
        if len(numbers) != (3 if of_messages else 2):
            raise InvalidRequestError.of(where, f"must be {form}, not {validation.shown(stretch)}")
        *message, start, end = numbers
        built.append(
            pb.Segment(name=validation.text("segments", name), message=next(iter(message), None), start=start, end=end),
        )
    return built


def _attribution(keywords: AttributionKeywords) -> pb.AttributionOptions:
    contrast, layers = keywords.get("contrast"), keywords.get("layers")
    return pb.AttributionOptions(
        method=validation.optional(validation.text, "method", keywords),
        preset=validation.enum_value(pb.Preset, "attribution", keywords),
        loosening=validation.enum_value(pb.Loosening, "loosening", keywords),
        layers=None if layers is None else _layers(layers),
        similarity=validation.enum_value(pb.Similarity, "similarity", keywords),
        rotary=validation.enum_value(pb.Rotary, "rotary", keywords),
        rectify=validation.enum_value(pb.Rectify, "rectify", keywords),
        magnitude=validation.enum_value(pb.Magnitude, "magnitude", keywords),
        normalise_over=validation.enum_value(pb.NormaliseOver, "normalise_over", keywords),
        objective=validation.enum_value(pb.Objective, "objective", keywords),
        aggregation=validation.enum_value(pb.Aggregation, "aggregation", keywords),
        steps=validation.optional(validation.int32, "steps", keywords),
        samples=validation.optional(validation.int32, "samples", keywords),
        seed=validation.optional(validation.int64, "attribution_seed", keywords),
        layer=validation.optional(validation.int32, "layer", keywords),
        baseline_ids=validation.optional(validation.some_int32s, "baseline_ids", keywords),
        target_token_id=validation.optional(validation.int32, "target", keywords),
        contrast=None if contrast is None else _contrast(contrast),
        sources=validation.enum_value(pb.Sources, "sources", keywords),
        resolution=validation.enum_value(pb.Resolution, "resolution", keywords),
        top_k_sources=validation.optional(validation.int32, "top_k_sources", keywords),
        delivery=validation.enum_value(pb.Delivery, "delivery", keywords),
        chunk_size=validation.optional(validation.int32, "chunk_size", keywords),
    )


def _layers(layers: object) -> pb.Layers | None:
    if isinstance(layers, str):
        if layers != "all":
            raise InvalidRequestError.of("layers", f'must be "all", a number or a list of indexes, not {layers!r}')
        return None
    if isinstance(layers, Iterable):
        return pb.Layers(indexes=validation.some_int32s("layers", layers))
    return pb.Layers(last=validation.int32("layers", layers))


def _contrast(contrast: object) -> pb.Contrast:
    if contrast == "runner_up":
        return pb.Contrast(runner_up=True)
    if isinstance(contrast, str):
        return pb.Contrast(text=validation.text("contrast", contrast))
    return pb.Contrast(token_id=validation.int32("contrast", contrast))


def _refuse_attribution_keywords(keywords: Mapping[str, object]) -> None:
    names = [*AttributionKeywords.__annotations__, "first_attribution"]
    for name in names:
        if keywords.get(name) is not None:
            raise InvalidRequestError.of(name, "has no meaning with attribution=None, which turns attribution off")
