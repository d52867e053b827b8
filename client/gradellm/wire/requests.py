"""From keywords to request protos, validated as far as possible without the server.

The server knows the model and its limits, so it validates values. This module refuses what the wire cannot carry
correctly: wrong types, integers out of range, unknown names, and several or none of exclusive keywords. Every error
names its keyword.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gradellm.errors import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import validation
from gradellm.wire.keywords import (
    AttributeKeywords,
    AttributionKeywords,
    CallKeywords,
    FollowKeywords,
    GenerateKeywords,
    InputKeywords,
    MessageSpan,
    Segment,
    TokenizeKeywords,
)
from gradellm.wire.messages import built_messages, tools_json
from gradellm.wire.sampling_fields import sampling_fields, template_fields
from gradellm.wire.structured_output import structured_output
from gradellm.wire.token_selection import token_selection

__all__ = [
    "attribute_request",
    "attribution_options",
    "deadline",
    "follow_request",
    "generate_request",
    "prompt_input",
    "server_info_request",
    "tokenize_request",
]


_NOT_WRITTEN = (
    "a text is looked up in a completion that exists, and this one is not written yet: give indexes; or generate with "
    "attribution=None, and pass the tokens' ids to attribute(completion_ids=...), with "
    "tokens=explanation.token_indexes(...)"
)
_NOT_FOLLOWED = "a text is looked up in a completion that exists, and this one is not written yet: give indexes"
_IDS_ALONE = (
    "a text is looked up in the keyword completion: give it instead of completion_ids, or choose tokens by indexes, or "
    "by (start, end) spans in a list"
)


def generate_request(prompt: str | None, keywords: GenerateKeywords) -> pb.GenerateRequest:
    """Build the request of `generate` and `explain`."""
    validation.refuse_unknown("generate", keywords, GenerateKeywords)
    request = pb.GenerateRequest(
        input=prompt_input(prompt, keywords),
        **sampling_fields(keywords),
        num_alternatives=validation.optional(validation.int32, "num_alternatives", keywords),
        forced_ids=validation.optional(validation.int32s, "forced_ids", keywords),
        first_attribution=validation.optional(validation.int32, "first_attribution", keywords),
    )
    if (constraint := structured_output(keywords)) is not None:
        request.structured_output.CopyFrom(constraint)
    if _is_explained(keywords):
        request.attribution.CopyFrom(attribution_options(keywords, unknown_text=_NOT_WRITTEN))
    else:
        _refuse_attribution_keywords(keywords)
    return request


def attribute_request(prompt: str | None, keywords: AttributeKeywords) -> pb.AttributeRequest:
    """Build the request of `attribute` and `attribute_events`."""
    validation.refuse_unknown("attribute", keywords, AttributeKeywords)
    validation.exactly_one({name: keywords.get(name) for name in ("completion", "completion_ids")})
    if not _is_explained(keywords):
        off = keywords["attribution"]
        raise InvalidRequestError.of("attribution", f"{off} turns attribution off, which attribute() cannot do without")
    return pb.AttributeRequest(
        input=prompt_input(prompt, keywords),
        completion=validation.optional(validation.text, "completion", keywords),
        completion_ids=validation.optional(validation.some_int32s, "completion_ids", keywords),
        attribution=attribution_options(keywords, keywords.get("completion"), unknown_text=_IDS_ALONE),
        num_alternatives=validation.optional(validation.int32, "num_alternatives", keywords),
    )


def follow_request(prompt: str | None, keywords: FollowKeywords) -> pb.FollowStart:
    """Build the first message of `follow`."""
    validation.refuse_unknown("follow", keywords, FollowKeywords)
    if not _is_explained(keywords):
        off = keywords["attribution"]
        raise InvalidRequestError.of("attribution", f"{off} turns attribution off, which follow() cannot do without")
    return pb.FollowStart(
        input=prompt_input(prompt, keywords),
        attribution=attribution_options(keywords, unknown_text=_NOT_FOLLOWED),
        max_new_tokens=validation.optional(validation.int32, "max_new_tokens", keywords),
        flush_seconds=validation.optional(validation.number, "flush_seconds", keywords),
        upstream_dtype=validation.enum_value(pb.UpstreamDtype, "upstream_dtype", keywords),
        num_alternatives=validation.optional(validation.int32, "num_alternatives", keywords),
    )


def tokenize_request(prompt: str | None, keywords: TokenizeKeywords) -> pb.TokenizeRequest:
    """Build the request of `tokenize`."""
    validation.refuse_unknown("tokenize", keywords, TokenizeKeywords)
    return pb.TokenizeRequest(input=prompt_input(prompt, keywords))


def server_info_request(keywords: CallKeywords) -> pb.GetServerInfoRequest:
    """Build the request of `server_info`."""
    validation.refuse_unknown("server_info", keywords, CallKeywords)
    return pb.GetServerInfoRequest()


def deadline(keywords: CallKeywords) -> float | None:
    """Return the keyword `timeout` in seconds, validated; None for no limit."""
    timeout = keywords.get("timeout")
    if timeout is None:
        return None
    seconds = validation.number("timeout", timeout)
    if not 0 < seconds < 1e9:  # outside, gRPC takes some values as "no limit" and fails on the rest
        raise InvalidRequestError.of(
            "timeout", f"must be seconds above 0, or None for no limit, not {validation.short_repr(timeout)}"
        )
    return seconds


def prompt_input(prompt: str | None, keywords: InputKeywords) -> pb.Input:
    """Build the prompt in one of its forms, with its segments."""
    messages, segments, spans = keywords.get("messages"), keywords.get("segments"), keywords.get("message_spans")
    validation.exactly_one({"prompt": prompt, "messages": messages, "prompt_ids": keywords.get("prompt_ids")})
    return pb.Input(
        prompt=None if prompt is None else validation.text("prompt", prompt),
        messages=None if messages is None else built_messages(messages),
        prompt_ids=validation.optional(validation.some_int32s, "prompt_ids", keywords),
        segments=None if segments is None else _segments(segments, of_messages=messages is not None),
        message_spans=None if spans is None else _message_spans(spans),
        **template_fields(keywords),
        tools=validation.optional(tools_json, "tools", keywords),
    )


def _message_spans(spans: Sequence[MessageSpan]) -> list[pb.MessageSpan]:
    built = []
    for index, span in enumerate(validation.as_list("message_spans", spans)):
        name = f"message_spans[{index}]"
        if isinstance(span, str) or not isinstance(span, Sequence) or len(span) != 3:
            raise InvalidRequestError.of(name, f"must be (role, start, end), not {validation.short_repr(span)}")
        role, start, end = span
        built.append(
            pb.MessageSpan(
                role=validation.text(f"{name}.role", role),
                start=validation.int32(f"{name}.start", start),
                end=validation.int32(f"{name}.end", end),
            )
        )
    return built


def _segments(segments: Mapping[str, Segment], *, of_messages: bool) -> list[pb.Segment]:
    if not isinstance(segments, Mapping):
        raise InvalidRequestError.of(
            "segments", f"must map names to spans of text, not {validation.short_repr(segments)}"
        )
    form = "(message, start, end) as the prompt is in messages" if of_messages else "(start, end)"
    built = []
    for name, span in segments.items():
        where = f"segments[{name!r}]"
        numbers = validation.int32s(where, span)
        if len(numbers) != (3 if of_messages else 2):
            raise InvalidRequestError.of(where, f"must be {form}, not {validation.short_repr(span)}")
        *message, start, end = numbers
        built.append(
            pb.Segment(name=validation.text("segments", name), message=next(iter(message), None), start=start, end=end),
        )
    return built


def attribution_options(
    keywords: AttributionKeywords, completion: str | None = None, *, unknown_text: str = ""
) -> pb.AttributionOptions:
    """Build the attribution options; an absent keyword leaves its field unset.

    `completion` is the text that the keyword `tokens` refers to; `unknown_text` says what to do where there is none.
    """
    contrast, layers, tokens = keywords.get("contrast"), keywords.get("layers"), keywords.get("tokens")
    return pb.AttributionOptions(
        method=validation.optional(validation.text, "method", keywords),
        preset=None
        if keywords.get("attribution") is True
        else validation.enum_value(pb.Preset, "attribution", keywords),
        loosening=validation.enum_value(pb.Loosening, "loosening", keywords),
        layers=None if layers is None else _layers(layers),
        similarity=validation.enum_value(pb.Similarity, "similarity", keywords),
        rotary=validation.enum_value(pb.Rotary, "rotary", keywords),
        rectify=validation.enum_value(pb.Rectify, "rectify", keywords),
        magnitude=validation.enum_value(pb.Magnitude, "magnitude", keywords),
        normalise_over=validation.enum_value(pb.NormaliseOver, "normalise_over", keywords),
        sink=validation.enum_value(pb.Sink, "sink", keywords),
        gradient=validation.enum_value(pb.Gradient, "gradient", keywords),
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
        tokens=None if tokens is None else token_selection(tokens, completion, unknown_text),
    )


def _is_explained(keywords: AttributionKeywords) -> bool:
    """Return whether a request wants an attribution: unless it turns it off."""
    attribution = keywords.get("attribution", True)
    return attribution is not None and attribution is not False


def _layers(layers: object) -> pb.Layers:
    if isinstance(layers, str):
        if layers != "all":
            raise InvalidRequestError.of("layers", f'must be "all", a number or a list of indexes, not {layers!r}')
        return pb.Layers()  # a switch that is set, to its default
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
    off = keywords["attribution"]
    for name in (*AttributionKeywords.__annotations__, "first_attribution"):
        if name != "attribution" and keywords.get(name) is not None:
            raise InvalidRequestError.of(name, f"has no meaning with attribution={off}, which turns attribution off")
