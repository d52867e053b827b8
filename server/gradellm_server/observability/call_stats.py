"""What the messages of a call tell of it: counts and times, for metrics, the log and traces; never text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from google.protobuf.message import Message

from gradellm.v1 import explainer_pb2 as pb

Answer = pb.GenerateResponse | pb.AttributeResponse | pb.EvaluateResponse


@dataclass(frozen=True)
class Timings:
    """What a finished call spent, in seconds; see `gradellm_engine.core.outputs.Finished`."""

    queue: float
    prefill: float
    decode: float
    attribution: float


@dataclass
class CallStats:
    """Of one call, up to its latest message.

    Attributes:
        generates: whether its tokens are the model's own, rather than the caller's.
        is_chat: whether its prompt is messages.
        method: what explains its tokens, by the registry's name; empty where nothing does.
        sampling: how tokens are chosen, as numbers by their names on the wire.
        num_prompt_tokens: as `started` said it.
        num_reused_tokens: of them, read by an earlier call; known at the end.
        num_tokens: tokens told.
        num_attributed: tokens whose scores were told.
        first_token_at: seconds of the monotonic clock; None until there is one.
        last_token_at: likewise.
        finish_reason: in small letters; empty until it has finished.
        timings: None until it has finished.
        kind: of the latest message: started, token, attribution, progress, prompt_progress, item, summary or
            finished.
        gap_seconds: before the latest message, if it is a token and not the first.
        lag_tokens: told since the token that the latest message explains, if it explains one.
        metric: of the latest message, if it is an item: in small letters.
    """

    generates: bool = False
    is_chat: bool = False
    method: str = ""
    sampling: dict[str, int | float] = field(default_factory=dict)
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_tokens: int = 0
    num_attributed: int = 0
    first_token_at: float | None = None
    last_token_at: float | None = None
    finish_reason: str = ""
    timings: Timings | None = None
    kind: str = ""
    gap_seconds: float | None = None
    lag_tokens: int | None = None
    metric: str = ""
    _last_index: int = -1

    def read(self, request: Message) -> None:
        """Take a request."""
        match request:
            case pb.GenerateRequest():
                self.generates = True
            case pb.EvaluateRequest():
                given = request.HasField("completion") or request.completion_ids or request.labels
                self.generates = not given
            case pb.AttributeRequest() | pb.TokenizeRequest():
                pass
            case _:
                return
        self.is_chat = bool(request.input.messages)

    def answered(self, answer: Message, now: float) -> None:
        """Take an answer, told at `now`, in seconds of the monotonic clock."""
        self.gap_seconds, self.lag_tokens, self.metric = None, None, ""
        if not isinstance(answer, Answer):
            self.kind = ""
            return
        self.kind = cast("str", answer.WhichOneof("event"))
        match self.kind:
            case "started":
                self._started(answer.started)
            case "token":
                self._token(answer.token, now)
            case "attribution" if not isinstance(answer, pb.EvaluateResponse):
                self.num_attributed += 1
                self.lag_tokens = max(0, self._last_index - answer.attribution.token_index)
            case "item" if isinstance(answer, pb.EvaluateResponse):
                self.metric = _small(pb.Metric.Name(answer.item.metric), "METRIC_")
            case "finished":
                self._finished(answer.finished)

    def _started(self, started: pb.Started) -> None:
        provenance = started.provenance
        self.num_prompt_tokens = len(started.prompt_tokens)
        self.method = provenance.attribution.method
        chosen = provenance.sampling
        self.sampling = {"max_new_tokens": chosen.max_new_tokens, "temperature": chosen.temperature}
        self.sampling |= {"top_k": chosen.top_k, "top_p": chosen.top_p, "seed": chosen.seed}

    def _token(self, token: pb.Token, now: float) -> None:
        self.gap_seconds = None if self.last_token_at is None else now - self.last_token_at
        if self.first_token_at is None:
            self.first_token_at = now
        self.last_token_at = now
        self.num_tokens += 1
        self._last_index = token.index

    def _finished(self, finished: pb.Finished) -> None:
        self.finish_reason = _small(pb.FinishReason.Name(finished.reason), "FINISH_REASON_")
        self.num_reused_tokens = finished.usage.reused_prompt_tokens
        took = finished.timings
        self.timings = Timings(took.queue_seconds, took.prefill_seconds, took.decode_seconds, took.attribution_seconds)


def _small(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


FINISH_REASONS = tuple(_small(name, "FINISH_REASON_") for name in pb.FinishReason.keys()[1:])
EVALUATION_METRICS = tuple(_small(name, "METRIC_") for name in pb.Metric.keys()[1:])
