"""Events to the wire: converts the engine's events of a request to the messages of its stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import (
    Agreement,
    Attribution,
    ChunkAgreement,
    Engine,
    EvaluationItem,
    EvaluationSummary,
    Event,
    Finished,
    Interval,
    MetricSummary,
    Progress,
    Prompt,
    PromptProgress,
    Resolution,
    Started,
    Step,
    Verdict,
)
from gradellm_server.rpc.settings_to_wire import provenance
from gradellm_server.rpc.wire_enums import ROLES, number_of

Response = TypeVar("Response", pb.GenerateResponse, pb.AttributeResponse, pb.EvaluateResponse, pb.FollowResponse)


def responses(kind: type[Response], engine: Engine, event: Event) -> Sequence[Response]:
    """The messages for an event: one, or none for a token that the caller has already."""
    if isinstance(event, Step) and not event.is_new:
        return []
    return [kind(**_event(event, engine))]


def add_prompt_tokens(field: RepeatedCompositeFieldContainer[pb.PromptToken], prompt: Prompt) -> None:
    """Add a prompt's tokens to a message's field, in place: there may be many thousands."""
    for token, word in zip(prompt.tokens, prompt.words, strict=True):
        added = field.add()
        added.id, added.text, added.start, added.end = token.id, token.text, token.start, token.end
        added.role = ROLES[token.role]  # type: ignore[assignment]
        added.word = word
        if token.message is not None:
            added.message = token.message
        if token.segment is not None:
            added.segment = token.segment
        if token.special:
            added.special = True


def _event(event: Event, engine: Engine) -> dict[str, Any]:
    """The field of a response's `event` oneof, by its name."""
    match event:
        case Started():
            return {"started": _started(event, engine)}
        case Step():
            return {"token": _token(event)}
        case Attribution():
            return {"attribution": _attribution(event)}
        case ChunkAgreement():
            return {"agreement": _agreement(event)}
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


def _started(started: Started, engine: Engine) -> pb.Started:
    attribution = started.attribution
    by_token = attribution is None or attribution.resolution is Resolution.TOKEN
    message = pb.Started(
        prompt_text=started.prompt.text,
        unplaced_messages=started.prompt.unplaced_messages,
        unscored_tokens=started.unscored_tokens,
        sources=[] if by_token else [pb.Source(**asdict(source)) for source in started.sources],
        provenance=provenance(started, engine),
    )
    add_prompt_tokens(message.prompt_tokens, started.prompt)
    return message


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
        forced_by_grammar=step.forced_by_grammar,
    )


def _attribution(row: Attribution) -> pb.Attribution:
    return pb.Attribution(
        token_index=row.token_index,
        # Protobuf packs a list of Python floats several times faster than an array.
        scores=row.scores.tolist(),
        source_indexes=[] if row.source_indexes is None else row.source_indexes.tolist(),
        target_token_id=row.target_token_id,
        contrast_token_id=row.contrast_token_id,
        error=row.error,
    )


def _agreement(agreement: ChunkAgreement) -> pb.Agreement:
    return pb.Agreement(
        first_token=agreement.first_token,
        tokens=agreement.chunk.num_tokens,
        largest=agreement.chunk.largest,
        mean=agreement.chunk.mean,
        total=_agreement_total(agreement.total, agreement.verdict),
    )


def _agreement_total(total: Agreement, verdict: Verdict) -> pb.AgreementTotal:
    return pb.AgreementTotal(
        tokens=total.num_tokens,
        largest=total.largest,
        mean=total.mean,
        noise=total.noise,
        logprobs=total.num_logprobs,
        verdict=number_of(pb.Verdict, verdict),  # type: ignore[arg-type]
    )


def _item(item: EvaluationItem) -> pb.EvaluationItem:
    return pb.EvaluationItem(
        step=item.step,
        name=item.name,
        metric=number_of(pb.Metric, item.metric),  # type: ignore[arg-type]
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
        metric=number_of(pb.Metric, summary.metric),  # type: ignore[arg-type]
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
        kind=number_of(pb.IntervalKind, interval.kind),  # type: ignore[arg-type]
        count=interval.n,
    )


def _finished(finished: Finished) -> pb.Finished:
    return pb.Finished(
        reason=number_of(pb.FinishReason, finished.reason),  # type: ignore[arg-type]
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
        agreement=None
        if finished.verdict is None or finished.agreement is None
        else _agreement_total(finished.agreement, finished.verdict),
    )
