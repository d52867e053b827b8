"""A stream of events that outlives the server it came from.

When a server dies or drains in mid-stream, another one can go on: token ids are truth, a sampling draw is a pure
function of (seed, step), and a vector is a pure function of the tokens before it. So a broken Generate is sent again
with the tokens that have come as its forced beginning; Attribute and Evaluate, which compute the same again, are sent
as they were, and what has come already is passed over. The caller sees one stream: no token twice, none missing.

There is no input or output here: both clients send what `request` says and give back what comes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gradellm.errors import StreamBrokenError, UnavailableError
from gradellm.models import Event
from gradellm.v1 import explainer_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from gradellm.models import Finished, Started
    from gradellm.transport.calls import Call

__all__ = ["ResumableStream"]

_SAME_MODEL = ("weights_sha256", "config_sha256", "tokenizer_sha256", "chat_template_sha256", "dtype", "quantization")


class ResumableStream:
    """One stream, over as many calls as it takes."""

    def __init__(self, call: Call[Event | None]) -> None:
        self._call = call
        self._request: Any = call.request
        self._started: Started | None = None
        self._ids: list[int] = []  # of tokens that came
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

    @property
    def request(self) -> Message:
        """What the next call is to send."""
        self._num_calls += 1
        if self._started is None:
            return self._call.request
        sampling = self._started.provenance.sampling
        if isinstance(self._request, pb.EvaluateRequest):
            again = pb.EvaluateRequest()
            again.CopyFrom(self._request)
            if again.HasField("generation") and sampling is not None:
                again.generation.seed = sampling.seed
            return again
        if not isinstance(self._request, pb.GenerateRequest):
            return self._call.request
        on = pb.GenerateRequest()
        on.CopyFrom(self._request)
        if sampling is not None:
            on.max_new_tokens, on.seed = sampling.max_new_tokens, sampling.seed
        on.forced_ids[:] = [*self._forced, *self._ids]
        if on.HasField("attribution"):
            on.first_attribution = self._next_attribution
        return on

    def take(self, response: Any, target: str) -> Event | None:  # noqa: ANN401 (one of three messages)
        """Return the event that a message carries; None where the caller has it already, or need not know it.

        Raises StreamBrokenError where the server at `target` is not one that can go on.
        """
        event = self._call.read(response)
        if event is None:
            return None
        if event.started is not None:
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
            return Event(finished=self._whole(event.finished))
        return event

    @property
    def is_over(self) -> bool:
        """Whether its last event has come: what fails now is no loss."""
        return self._is_over

    def cut_off(self, target: str) -> UnavailableError | None:
        """Return what failed where a call ended in order, but its stream did not: a proxy may have cut it off."""
        if self._is_over or self._started is None:
            return None
        return UnavailableError(f"the stream from {target} ended before it was finished")

    @property
    def _forced(self) -> list[int]:
        return list(self._request.forced_ids) if isinstance(self._request, pb.GenerateRequest) else []

    def _take_started(self, event: Event, target: str) -> Event | None:
        started = event.started
        before, self._started = self._started, self._started or started
        if before is None or started is None:
            return event
        ours, theirs = before.provenance.model, started.provenance.model
        for name in _SAME_MODEL:
            if ours is None or theirs is None:
                break
            was, now = getattr(ours, name, None), getattr(theirs, name, None)
            if name == "config_sha256" and not (was and now):
                continue  # one of the two servers is older, and does not tell it
            if was != now:
                raise StreamBrokenError(
                    f"the stream cannot go on at {target}: its {name} is {now or 'none'}, where the stream began "
                    f"it was {was or 'none'}; replicas must host the same model in the same way"
                )
        if [token.id for token in before.prompt_tokens] != [token.id for token in started.prompt_tokens]:
            raise StreamBrokenError(
                f"the stream cannot go on at {target}: it makes other tokens of the prompt, perhaps since its chat "
                "template writes the time; send prompt_ids"
            )
        return None

    def _whole(self, finished: Finished) -> Finished:
        """Counts of the whole stream, where the server that ended it knows only its own part."""
        if self._num_calls == 1 or not isinstance(self._request, pb.GenerateRequest):
            return finished
        return replace(finished, usage=replace(finished.usage, attributed_tokens=self._num_attributed))
