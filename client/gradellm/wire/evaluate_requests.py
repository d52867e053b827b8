"""From the keywords of `evaluate` to an EvaluateRequest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from gradellm.errors import InvalidRequestError
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import validation
from gradellm.wire.keywords import AttributionKeywords, EvaluateKeywords, InputKeywords
from gradellm.wire.requests import attribution_options, prompt_input
from gradellm.wire.responses import enum_names

if TYPE_CHECKING:
    from gradellm.wire.keywords import ExplanationLike

__all__ = ["evaluate_request"]

_NO_TOKENS = "has no meaning in evaluate, whose stride and offset choose the tokens"
_GENERATION = ("max_new_tokens", "temperature", "top_k", "top_p", "stop", "generation_seed")


def evaluate_request(prompt: str | None, keywords: EvaluateKeywords) -> pb.EvaluateRequest:
    """Build the request of `evaluate` and `evaluate_events`."""
    validation.refuse_unknown("evaluate", keywords, EvaluateKeywords)
    explanation = keywords.get("explanation")
    if explanation is not None:
        return _explanation_request(prompt, explanation, keywords)
    request = pb.EvaluateRequest(
        input=prompt_input(prompt, keywords),
        completion=validation.optional(validation.text, "completion", keywords),
        completion_ids=validation.optional(validation.some_int32s, "completion_ids", keywords),
        labels=validation.texts("labels", keywords),
        evaluation=_evaluation_options(keywords, keywords.get("methods"), keywords.get("scores") or {}),
    )
    if (generation := _generation_options(keywords)) is not None:
        request.generation.CopyFrom(generation)
    sources = [name for name in ("completion", "completion_ids", "labels") if keywords.get(name) is not None]
    sources += [name for name in _GENERATION if keywords.get(name) is not None][:1]
    if len(sources) > 1:
        raise InvalidRequestError.of(
            sources[1], f"cannot be combined with {sources[0]}: the completion is either given or generated"
        )
    return request


def _generation_options(keywords: EvaluateKeywords) -> pb.GenerationOptions | None:
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
    prompt: str | None, explanation: ExplanationLike, keywords: EvaluateKeywords
) -> pb.EvaluateRequest:
    """Build the request from a stored explanation: its token ids, and by default its user tokens as perturbable."""
    for name in (*InputKeywords.__annotations__, "completion", "completion_ids", "labels", *_GENERATION):
        if keywords.get(name) is not None:
            raise InvalidRequestError.of(name, "cannot be combined with explanation, which has prompt and completion")
    if prompt is not None:
        raise InvalidRequestError.of("prompt", "cannot be combined with explanation, which has prompt and completion")
    scores = _scores_of(explanation)
    if scores.keys() & (keywords.get("scores") or {}).keys():
        raise InvalidRequestError.of("scores", "the name 'explanation' is reserved for the explanation's own scores")
    methods = keywords.get("methods") if "methods" in keywords or not scores else ("random",)
    names_positions = keywords.get("perturb") is not None or keywords.get("perturb_positions") is not None
    positions = [i for i, token in enumerate(explanation.prompt_tokens) if token.role == "user" and not token.special]
    request = pb.EvaluateRequest(
        input=pb.Input(prompt_ids=[token.id for token in explanation.prompt_tokens]),
        completion_ids=[token.id for token in explanation.tokens],
        evaluation=_evaluation_options(keywords, methods, {**scores, **(keywords.get("scores") or {})}),
    )
    if not names_positions:
        request.evaluation.perturb_positions.extend(positions)
    return request


def _scores_of(explanation: ExplanationLike) -> dict[str, dict[int, Sequence[float]]]:
    """Return an explanation's rows as the scores named "explanation"; empty if it has no attribution."""
    if not explanation.tokens or explanation.tokens[0].index != 0:
        raise InvalidRequestError.of("explanation", "must begin with the completion's first token")
    if not explanation.attributions:
        return {}
    settings = explanation.started.provenance.attribution
    if explanation.started.sources or (settings is not None and settings.top_k_sources is not None):
        raise InvalidRequestError.of(
            "explanation", 'needs one score per token: explain with resolution="token" and without top_k_sources'
        )
    return {"explanation": {row.token_index: row.scores for row in explanation.attributions}}


def _evaluation_options(
    keywords: EvaluateKeywords, methods: object, scores: Mapping[str, Mapping[int, Sequence[float]]]
) -> pb.EvaluationOptions:
    return pb.EvaluationOptions(
        methods=_default_methods() if methods is None and not scores else _evaluated_methods(methods or ()),
        scores=[_given_scores(name, rows) for name, rows in validation.mapping("scores", scores).items()],
        metrics=validation.enum_values(pb.Metric, "metrics", keywords),
        pis=[validation.number(f"pis[{i}]", pi) for i, pi in enumerate(validation.optional_list("pis", keywords))],
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


def _default_methods() -> list[pb.EvaluatedMethod]:
    """The server's default, which the server names, and the random baseline."""
    return [pb.EvaluatedMethod(), *_evaluated_methods(("random",))]


def _evaluated_methods(methods: object) -> list[pb.EvaluatedMethod]:
    keywords_by_name = (
        methods if isinstance(methods, Mapping) else dict.fromkeys(validation.as_list("methods", methods))
    )
    presets = enum_names(pb.Preset.DESCRIPTOR).values()
    evaluated = []
    for name, method_keywords in keywords_by_name.items():
        options = (
            method_keywords
            if method_keywords is not None
            else {"attribution": name}
            if name in presets
            else {"method": name}
        )
        if not isinstance(options, Mapping):
            raise InvalidRequestError.of(
                f"methods[{name!r}]", f"must be keywords of attribution, not {validation.short_repr(options)}"
            )
        for keyword in options.keys() - AttributionKeywords.__annotations__.keys():
            raise InvalidRequestError.of(f"methods[{name!r}]", f"{keyword} is not a keyword of attribution")
        evaluated.append(
            pb.EvaluatedMethod(
                name=validation.text("methods", name),
                attribution=attribution_options(cast("AttributionKeywords", options), unknown_text=_NO_TOKENS),
            )
        )
    return evaluated


def _given_scores(name: str, rows: object) -> pb.GivenScores:
    where = f"scores[{name!r}]"
    return pb.GivenScores(
        name=validation.text("scores", name),
        rows=[
            pb.ScoreRow(
                step=validation.int32(where, step),
                scores=[
                    validation.number(f"{where}[{step}]", score)
                    for score in validation.as_list(f"{where}[{step}]", row)
                ],
            )
            for step, row in validation.mapping(where, rows).items()
        ],
    )
