"""Statistics of a call's messages, for metrics, the access log and traces: counts and times, never text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from google.protobuf.message import Message

from gradellm.v1 import explainer_pb2 as pb

StreamResponse = pb.GenerateResponse | pb.AttributeResponse | pb.EvaluateResponse | pb.FollowResponse

_RPCS = pb.DESCRIPTOR.services_by_name["ExplainerService"].methods
RPC_NAMES = tuple(rpc.name for rpc in _RPCS)
STREAMING_RPC_NAMES = tuple(rpc.name for rpc in _RPCS if rpc.server_streaming)


@dataclass(frozen=True)
class Timings:
    """Where a finished call spent its time, in seconds; see `gradellm_engine.Finished`."""

    queue: float
    prefill: float
    decode: float
    attribution: float


@dataclass
class CallStats:
    """Statistics of one call, up to its latest message.

    Attributes:
        generates: whether the model generates its tokens; False for a given completion.
        is_chat: whether its prompt is given as messages.
        method: name of the attribution method; empty without attribution.
        sampling: sampling parameters by their fields' names.
        num_prompt_tokens: from `started`.
        num_reused_tokens: prompt tokens from the prefix cache; from `finished`.
        num_tokens: tokens sent.
        num_attributed: tokens whose scores were sent.
        first_token_at: seconds of the monotonic clock; None before the first token.
        last_token_at: monotonic time of the last token.
        finish_reason: in lower case; empty before `finished`.
        timings: None before `finished`.
        kind: of the latest message: started, token, attribution, agreement, progress, prompt_progress, item, summary
            or finished.
        gap_seconds: inter-token latency before the latest message, if it is a token and not the first.
        lag_tokens: tokens sent between a token and its scores, if the latest message has scores.
        lag_seconds: time between the arrival of a followed token and its scores, if the latest message has scores.
        verdict: of a finished Follow call, in lower case.
        noise: of a finished Follow call whose log-probabilities were compared, in nats.
        metric: of the latest message, in lower case, if it is an evaluation item.
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
    lag_seconds: float | None = None
    verdict: str = ""
    noise: float | None = None
    metric: str = ""
    _last_index: int = -1
    _arrived_at: dict[int, float] = field(default_factory=dict)  # of followed tokens without scores
    _num_appended: int = 0

    def on_request(self, request: Message) -> None:
        """Take the request into account."""
        match request:
            case pb.GenerateRequest():
                self.generates = True
            case pb.EvaluateRequest():
                has_completion = request.HasField("completion") or request.completion_ids or request.labels
                self.generates = not has_completion
            case pb.AttributeRequest() | pb.TokenizeRequest():
                pass
            case pb.FollowStart():
                self._num_appended = len(request.completion_ids)
            case _:
                return
        self.is_chat = bool(request.input.messages or request.input.message_spans)

    def on_appended(self, count: int, now: float) -> None:
        """Take tokens into account that came to a followed completion."""
        self._arrived_at |= dict.fromkeys(range(self._num_appended, self._num_appended + count), now)
        self._num_appended += count

    def on_response(self, response: Message, now: float) -> None:
        """Take a response into account that was sent at `now`, in seconds of the monotonic clock."""
        self.gap_seconds, self.lag_tokens, self.lag_seconds, self.metric = None, None, None, ""
        if not isinstance(response, StreamResponse):
            self.kind = ""
            return
        self.kind = cast("str", response.WhichOneof("event"))
        match self.kind:
            case "started":
                self._started(response.started)
            case "token":
                self._token(response.token, now)
            case "attribution" if not isinstance(response, pb.EvaluateResponse):
                self.num_attributed += 1
                self.lag_tokens = max(0, self._last_index - response.attribution.token_index)
                if (arrived_at := self._arrived_at.pop(response.attribution.token_index, None)) is not None:
                    self.lag_seconds = now - arrived_at
            case "item" if isinstance(response, pb.EvaluateResponse):
                self.metric = _lower(pb.Metric.Name(response.item.metric), "METRIC_")
            case "finished":
                self._finished(response.finished)

    def _started(self, started: pb.Started) -> None:
        provenance = started.provenance
        self.num_prompt_tokens = len(started.prompt_tokens)
        self.method = provenance.attribution.method
        sampling = provenance.sampling
        self.sampling = {"max_new_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
        self.sampling |= {"top_k": sampling.top_k, "top_p": sampling.top_p, "seed": sampling.seed}

    def _token(self, token: pb.Token, now: float) -> None:
        self.gap_seconds = None if self.last_token_at is None else now - self.last_token_at
        if self.first_token_at is None:
            self.first_token_at = now
        self.last_token_at = now
        self.num_tokens += 1
        self._last_index = token.index

    def _finished(self, finished: pb.Finished) -> None:
        self.finish_reason = _lower(pb.FinishReason.Name(finished.reason), "FINISH_REASON_")
        self.num_reused_tokens = finished.usage.reused_prompt_tokens
        if finished.HasField("agreement"):
            self.noise = finished.agreement.noise if finished.agreement.tokens else None
            self.verdict = _lower(pb.Verdict.Name(finished.agreement.verdict), "VERDICT_")
        timings = finished.timings
        self.timings = Timings(
            timings.queue_seconds, timings.prefill_seconds, timings.decode_seconds, timings.attribution_seconds
        )


def _lower(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


FINISH_REASONS = tuple(_lower(name, "FINISH_REASON_") for name in pb.FinishReason.keys()[1:])
VERDICTS = tuple(_lower(name, "VERDICT_") for name in pb.Verdict.keys()[1:])
EVALUATION_METRICS = tuple(_lower(name, "METRIC_") for name in pb.Metric.keys()[1:])
