"""A stream of events that is resumed on another server when its server fails or drains.

A sampled token is a pure function of (seed, step) and the tokens before it, and so is an attribution row. So a broken
Generate is resumed with the received tokens as forced ids; Attribute and Evaluate, which are deterministic, are
repeated, and the events that were already received are dropped. The caller sees one stream without missing or repeated
events. A resumption asks for the settings that the first server resolved, so that servers with other defaults give rows
of the same kind.

Pure logic without I/O: both clients send `request` and pass the responses to `take`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gradellm.errors import StreamBrokenError, UnavailableError, UnimplementedError
from gradellm.models import Event
from gradellm.transport.resumed_sampling import copy_sampling, ignored_fields
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

    from gradellm.models import Finished, Started
    from gradellm.transport.calls import Call

__all__ = ["ResumableStream"]

_NO_SWITCHES = ("preset", "sources", "resolution", "delivery")  # fields that are enums, and no switches of a method
_SAME_MODEL = ("weights_sha256", "config_sha256", "tokenizer_sha256", "chat_template_sha256", "dtype", "quantization")


def _by_switches_alone(attribution: pb.AttributionOptions) -> None:
    """Leave out the preset: the resolved switches say all of it, also to a server that does not have the preset."""
    attribution.ClearField("preset")


class ResumableStream:
    """One stream of events over one or more calls."""

    def __init__(self, call: Call[Event | None]) -> None:
        self._call = call
        self._request: Any = call.request
        self._sent: Any = call.request  # last
        self._started: Started | None = None
        self._settings: pb.Provenance | None = None  # that the first server resolved
        self._ids: list[int] = []  # of received tokens
        self._next_token = len(self._forced)
        self._next_attribution = self._next_token
        if isinstance(self._request, pb.GenerateRequest) and self._request.HasField("first_attribution"):
            self._next_attribution = self._request.first_attribution
        self._items: set[tuple[int, str, object]] = set()
        self._progress = self._prompt_progress = -1.0
        self._has_summary = False
        self._num_attributed = 0
        self._num_calls = 0
        self._is_over = False
        self.running: Any = None
        """The running call of gRPC, set by the client, so that another thread can cancel it."""

    @property
    def request(self) -> Message:
        """The request of the next call."""
        self._num_calls += 1
        if self._started is not None:
            self._sent = self._resumed()
        sent: Message = self._sent
        return sent

    def _resumed(self) -> Message:
        """Return a request for the rest of the stream, with the settings of the first server."""
        if self._started is None:
            raise RuntimeError("the stream has not begun")
        sampling = self._started.provenance.sampling
        settings = self._settings or pb.Provenance()
        if isinstance(self._request, pb.EvaluateRequest):
            retried = pb.EvaluateRequest()
            retried.CopyFrom(self._request)
            if retried.HasField("generation") and sampling is not None:
                retried.generation.seed = sampling.seed
            if settings.evaluation.methods:
                del retried.evaluation.methods[:]
                retried.evaluation.methods.extend(settings.evaluation.methods)
                for method in retried.evaluation.methods:
                    _by_switches_alone(method.attribution)
            return retried
        resumed = type(self._request)()
        resumed.CopyFrom(self._request)
        if settings.HasField("attribution"):
            resumed.attribution.CopyFrom(settings.attribution)
            _by_switches_alone(resumed.attribution)
        if not isinstance(resumed, pb.GenerateRequest):  # deterministic: the same events once more
            repeated: Message = resumed
            return repeated
        if settings.HasField("sampling"):
            copy_sampling(settings.sampling, resumed)
        resumed.forced_ids[:] = [*self._forced, *self._ids]
        if resumed.HasField("attribution"):
            resumed.first_attribution = self._next_attribution
        return resumed

    def take(self, response: Any, target: str) -> Event | None:  # noqa: ANN401 (one of four messages)
        """Return the event of a message; None if the caller has it already, or the client does not know its kind.

        Raises StreamBrokenError if the server at `target` cannot resume the stream, and UnimplementedError if it is too
        old for a switch of the request.
        """
        event = self._call.read(response)
        if event is None:
            return None
        if event.started is not None:
            self._check_switches(response.started.provenance, target)
            self._settings = self._settings or response.started.provenance
            return self._take_started(event, target)
        if event.token is not None:
            if event.token.index < self._next_token:
                return None
            self._next_token = event.token.index + 1
            self._ids.append(event.token.id)
        elif event.attribution is not None:
            if event.attribution.token_index < self._next_attribution:
                return None
            self._next_attribution = event.attribution.token_index + 1
            self._num_attributed += 1
        elif event.item is not None:
            key = (event.item.step, event.item.name, event.item.metric)
            if key in self._items:
                return None
            self._items.add(key)
        elif event.progress is not None:
            if event.progress.done <= self._progress:
                return None
            self._progress = event.progress.done
        elif event.prompt_progress is not None:
            if event.prompt_progress.done <= self._prompt_progress or self._ids:
                return None
            self._prompt_progress = event.prompt_progress.done
        elif event.summary is not None:
            if self._has_summary:
                return None
            self._has_summary = True
        elif event.finished is not None:
            self._is_over = True
            return Event(finished=self._with_total_usage(event.finished))
        return event

    @property
    def is_over(self) -> bool:
        """Whether the last event has arrived; a later failure of the call does not matter."""
        return self._is_over

    def truncated(self, target: str) -> UnavailableError | None:
        """Return the error of a call that ended without an error before `finished`, as when a proxy truncates it."""
        if self._is_over or self._started is None:
            return None
        return UnavailableError(f"the stream from {target} ended before it was finished")

    @property
    def _forced(self) -> list[int]:
        return list(self._request.forced_ids) if isinstance(self._request, pb.GenerateRequest) else []

    def _check_switches(self, settings: pb.Provenance, target: str) -> None:
        """Raise UnimplementedError if a switch that the request sets has no value in the settings that the server used.

        A server that is older than the switch does not see it. Nor does one that continues what a newer one began.
        """
        is_constrained = "structured_output" in {field.name for field, _ in self._request.ListFields()}
        if is_constrained and not settings.HasField("structured_output"):
            raise UnimplementedError(
                f"the server at {target} is older than structured output, and would ignore it: upgrade the server"
            )
        for sent, used in self._attributions(settings):
            for field, _ in sent.ListFields():
                is_switch = field.enum_type is not None and field.name not in _NO_SWITCHES
                resolved = getattr(used, field.name)
                is_ignored = not resolved if is_switch else field.name == "tokens" and not resolved.indexes
                if is_ignored:
                    raise UnimplementedError(
                        f"the server at {target} is older than the {'switch' if is_switch else 'field'} {field.name}, "
                        f"and would ignore it: upgrade the server, or leave {field.name} out"
                    )
        if isinstance(self._sent, pb.GenerateRequest) and (ignored := ignored_fields(self._sent, settings.sampling)):
            raise UnimplementedError(
                f"the server at {target} is older than the field {ignored[0]}, and would ignore it: upgrade the "
                f"server, or leave {ignored[0]} out"
            )

    def _attributions(self, settings: pb.Provenance) -> Iterator[tuple[pb.AttributionOptions, pb.AttributionOptions]]:
        """Yield the attribution options that were sent with those that the server used."""
        if isinstance(self._sent, pb.EvaluateRequest):
            for sent, used in zip(self._sent.evaluation.methods, settings.evaluation.methods, strict=False):
                yield sent.attribution, used.attribution
        elif self._sent.HasField("attribution"):
            yield self._sent.attribution, settings.attribution

    def _take_started(self, event: Event, target: str) -> Event | None:
        started = event.started
        first, self._started = self._started, self._started or started
        if first is None or started is None:
            return event
        expected, model = first.provenance.model, started.provenance.model
        for name in _SAME_MODEL:
            if expected is None or model is None:
                break
            was, now = getattr(expected, name, None), getattr(model, name, None)
            if name == "config_sha256" and not (was and now):
                continue  # older servers do not send it
            if was != now:
                raise StreamBrokenError(
                    f"the stream cannot be resumed at {target}: its {name} is {now or 'none'}, and was "
                    f"{was or 'none'} where the stream began; replicas must host the same model with the same settings"
                )
        if [token.id for token in first.prompt_tokens] != [token.id for token in started.prompt_tokens]:
            raise StreamBrokenError(
                f"the stream cannot be resumed at {target}: it tokenizes the prompt differently, perhaps because its "
                "chat template includes the time; send prompt_ids"
            )
        return None

    def _with_total_usage(self, finished: Finished) -> Finished:
        """Replace the last server's count of attributed tokens by that of the whole stream."""
        if self._num_calls == 1 or not isinstance(self._request, pb.GenerateRequest | pb.FollowStart):
            return finished
        return replace(finished, usage=replace(finished.usage, attributed_tokens=self._num_attributed))
