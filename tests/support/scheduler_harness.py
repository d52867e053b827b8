"""Runs requests on a scheduler and compares their outputs: batched against run by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from torch import Tensor

from gradellm_engine import (
    Attribution,
    AttributionSettings,
    Delivery,
    Engine,
    Event,
    Finished,
    PromptInput,
    Request,
    Sampling,
    Sources,
    Step,
)
from gradellm_engine.core.sampler import Distribution, choose_token, sampling_probs, uniform_draw
from gradellm_engine.core.scheduler import Scheduler
from gradellm_engine.core.scheduling.pass_timings import DEFAULT_MAX_GAP_SECONDS
from support.oracle import relative_error

TOLERANCE = 1e-5  # of scores in float32
PROMPT = "Once upon a time, a small red fox did not like rain."
SAMPLED = Sampling(max_new_tokens=10, temperature=1.1, seed=3)
PREFIX = AttributionSettings(sources=Sources.PREFIX)


def chunked(size: int, settings: AttributionSettings = PREFIX) -> AttributionSettings:
    """The settings with scores delivered for `size` tokens at a time."""
    return replace(settings, delivery=Delivery.CHUNKED, chunk_size=size)


def prompt_ids(*ids: int) -> PromptInput:
    return PromptInput(prompt_ids=ids)


@dataclass
class RequestOutput:
    """All events of a request, in order, and the error that ended it."""

    events: list[Event] = field(default_factory=list)
    error: Exception | None = None

    @property
    def steps(self) -> list[Step]:
        return [event for event in self.events if isinstance(event, Step)]

    @property
    def ids(self) -> list[int]:
        return [step.id for step in self.steps]

    @property
    def attributions(self) -> dict[int, Attribution]:
        return {event.token_index: event for event in self.events if isinstance(event, Attribution)}

    @property
    def rows(self) -> list[Tensor]:
        return [attribution.scores for attribution in self.attributions.values()]

    @property
    def finished(self) -> Finished | None:
        return next((event for event in self.events if isinstance(event, Finished)), None)


def scheduler_of(
    engine: Engine, *, max_running: int, num_tokens: int, max_gap: float = DEFAULT_MAX_GAP_SECONDS
) -> Scheduler:
    """Another scheduler of a loaded model, with an empty KV cache of `num_tokens`."""
    engine.model.runner.allocate_pool(num_tokens)
    return Scheduler(engine.model.runner, max_running=max_running, max_gap=max_gap)


def finish(
    scheduler: Scheduler, requests: Sequence[Request], outputs: Sequence[RequestOutput] | None = None
) -> list[RequestOutput]:
    """Run submitted requests to their end; `outputs` are what has been collected of them before."""
    outputs = list(outputs) if outputs is not None else [RequestOutput() for _ in requests]
    for _ in range(10_000):
        if all(request.is_closed for request in requests):
            break
        for _ in scheduler.step():
            collect(requests, outputs)
    collect(requests, outputs)  # of requests that had ended before they ran
    assert all(request.is_closed for request in requests)
    return outputs


def collect(requests: Sequence[Request], outputs: Sequence[RequestOutput]) -> None:
    """Add the requests' new events to their outputs."""
    for request, output in zip(requests, outputs, strict=True):
        output.events += request.take_events()
        output.error = request.error


def run(scheduler: Scheduler, requests: Sequence[Request]) -> list[RequestOutput]:
    """Submit requests and run them together to their end."""
    for request in requests:
        scheduler.submit(request)
    return finish(scheduler, requests)


def run_alone(engine: Engine, request: Request) -> RequestOutput:
    """Run a request by itself: one token a pass, no prefix reused."""
    (output,) = run(scheduler_of(engine, max_running=1, num_tokens=request.max_num_tokens), [request])
    return output


class Margins:
    """How close each sampled token was to another one: below the rounding error, either may be sampled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.smallest: dict[tuple[int, int], float] = {}  # by seed and step
        monkeypatch.setattr("gradellm_engine.core.request_spec.choose_token", self._choose)

    def _choose(self, distribution: Distribution, sampling: Sampling, seed: int, step: int) -> int:
        token_id = choose_token(distribution, sampling, seed, step)
        ordered = distribution.logits.double().sort(descending=True).values
        gaps = [(ordered[0] - ordered[1]).item()]
        if sampling.temperature > 0:
            cumulated, draw = sampling_probs(distribution.logits, sampling).cumsum(-1), uniform_draw(seed, step)
            gaps = [(cumulated - draw).abs().min().item()]
            if 0 < sampling.top_k < len(ordered):
                gaps.append((ordered[sampling.top_k - 1] - ordered[sampling.top_k]).item())
            if sampling.top_p < 1:
                every = sampling_probs(distribution.logits, replace(sampling, top_p=1.0))
                mass = every.sort(descending=True).values.cumsum(-1)
                gaps.append((mass - sampling.top_p).abs().min().item())
        self.smallest.setdefault((seed, step), min(gaps))
        return token_id


@dataclass
class Comparison:
    """Outputs of requests that ran together, compared with the outputs of the same requests run by themselves."""

    num_vectors: int = 0
    num_near_ties: int = 0
    errors: list[float] = field(default_factory=list)

    def add(
        self, alone: RequestOutput, together: RequestOutput, seed: int, margins: Margins | None, *, is_cut: bool = False
    ) -> None:
        """Compare two runs of one request; `is_cut` where `together` was cancelled before its end."""
        for index, (a, b) in enumerate(zip(alone.steps, together.steps, strict=not is_cut and not alone.error)):
            if a.id != b.id:
                assert margins is not None
                assert margins.smallest[seed, index] <= TOLERANCE
                self.num_near_ties += 1
                return  # the two completions differ from here on
            for name in ("index", "text", "start", "end", "special", "is_new", "source_index"):
                assert getattr(a, name) == getattr(b, name)
            assert abs(a.logprob - b.logprob) <= 1e-4
            assert [x.id for x in a.alternatives[:1]] == [x.id for x in b.alternatives[:1]] or margins is not None
        self._add_scores(alone, together, is_cut=is_cut)
        if not is_cut:
            assert type(together.error) is type(alone.error)
            assert str(together.error) == str(alone.error)
            assert (together.finished is None) == (alone.finished is None)
            if alone.finished is not None and together.finished is not None:
                for name in ("reason", "stop", "text", "num_prompt_tokens", "num_attributed_tokens"):
                    assert getattr(together.finished, name) == getattr(alone.finished, name)

    def _add_scores(self, alone: RequestOutput, together: RequestOutput, *, is_cut: bool) -> None:
        expected_rows, rows = alone.attributions, together.attributions
        assert set(rows) <= set(expected_rows) if is_cut else set(rows) == set(expected_rows)
        for index, row in rows.items():
            expected = expected_rows[index]
            assert row.target_token_id == expected.target_token_id
            assert row.contrast_token_id == expected.contrast_token_id
            assert row.scores.shape == expected.scores.shape
            self.num_vectors += 1
            self.errors.append(relative_error(row.scores, expected.scores.double()))
