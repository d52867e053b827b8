"""One engine that evaluates one example after the other, in its own process.

What is asked and what is kept is the SDK's (`gradellm.evaluation.run_spec`); between the two, messages of the wire
contract become engine calls and events as in the server, without a wire.

A record depends on its example, the plan, the model, the machine's kind and the number of threads, to the last bit. It
does not depend on what was evaluated before, nor on how busy the machine is:

1. one example at a time, so that no pass is shared;
2. no prefix of an earlier prompt is taken up, for a prompt that is read in other pieces has other last digits;
3. batches of changed texts are as large as memory allows, not as time would have it; and how much memory that is, is
   said and not found out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradellm.errors import InvalidRequestError
from gradellm.evaluation.examples import Example
from gradellm.evaluation.report import EvaluationReport
from gradellm.evaluation.run_spec import PLAUSIBILITY, RunSpec
from gradellm.models import Event, Metric, ServerInfo
from gradellm.transport import calls
from gradellm.wire import responses
from gradellm_engine import ComputationError, Engine, OutOfMemoryError
from gradellm_engine import InvalidRequestError as RefusedError
from gradellm_engine.core.request import Request
from gradellm_engine.model.quantization import Quantization
from gradellm_server.rpc import conversion

METHOD_BYTES = 2**32


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is made; equal ones make engines of equal numbers on equal machines.

    Attributes:
        model: a path or hub id; None for the demo model.
        revision: on the hub.
        dtype: of weights and arithmetic.
        quantization: of the weights.
        device: where the model lies; auto is a GPU where there is one.
        threads: of the CPU.
        context_tokens: less than the model's own; None for that.
        method_bytes: memory for batches of changed texts, and for methods that look at whole completions.
    """

    model: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    quantization: str = "none"
    device: str = "auto"
    threads: int = 1
    context_tokens: int | None = None
    method_bytes: int = METHOD_BYTES


@dataclass(frozen=True)
class Outcome:
    """What came of an example: a record, or why there is none."""

    record: dict[str, Any] | None
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """What a model is.

    Attributes:
        info: what a server of it says of itself, but for a server's own limits.
        refusals: presets that it cannot be explained by, and why.
    """

    info: ServerInfo
    refusals: Mapping[str, str]


class Evaluator:
    """An engine, and how it is asked."""

    def __init__(self, options: EngineOptions, tell: Callable[[str], None] = lambda stage: None) -> None:
        """Load the model. Raises ModelLoadError."""
        self._engine = Engine.load(
            options.model,
            revision=options.revision,
            dtype=options.dtype,
            quantization=Quantization(options.quantization),
            device=options.device,
            context_tokens=options.context_tokens,
            max_running=1,
            method_bytes=options.method_bytes,
            threads=options.threads,
            use_graphs=False,  # recordings pay over long completions, and take a while in every actor
            progress=tell,
        )

    def facts(self, presets: Iterable[str]) -> Facts:
        """What the model is, and which of Grad-ELLM's presets it cannot be explained by; found by trying."""
        refusals = {}
        for name in presets:
            call = calls.attribute("a", {"completion": "a", "attribution": name})  # type: ignore[typeddict-item]
            try:
                conversion.STREAMS["Attribute"][1](call.request, self._engine)
            except RefusedError as error:
                refusals[name] = str(error)
        return Facts(responses.server_info(conversion.server_info(self._engine, {})), refusals)

    def outcomes(self, plan: RunSpec, examples: Iterable[Example]) -> Iterator[tuple[str, Outcome]]:
        """Evaluate examples; each one's id, and what came of it."""
        for example in examples:
            yield example.id, self.outcome(plan, example)

    def outcome(self, plan: RunSpec, example: Example) -> Outcome:
        """Evaluate an example. What is its own fault is an outcome; anything else is raised."""
        try:
            try:
                return Outcome(self._record(plan, example, ()))
            except RefusedError as error:
                # A rationale that holds all or none of the text's tokens says nothing; the other metrics still do.
                if not error.field.endswith("rationale"):
                    raise
                return Outcome(self._record(plan, example, PLAUSIBILITY))
        except (RefusedError, InvalidRequestError, ComputationError, OutOfMemoryError) as error:
            return Outcome(None, f"{example.origin}: {error}")

    def _record(self, plan: RunSpec, example: Example, without: Sequence[Metric]) -> dict[str, Any]:
        prompt, keywords = plan.request(example, without=without)
        start: Callable[..., Request]
        kind: Any
        _, start, kind = conversion.STREAMS["Evaluate"]
        stream = start(calls.evaluate(prompt, keywords).request, self._engine, owner=example.id)
        if stream.allowance is None:
            raise ValueError("an evaluation has an allowance")
        stream.allowance.is_steady = True
        scheduler, events = self._engine.scheduler, list[Event]()
        scheduler.submit(stream)
        try:
            while not stream.is_closed:
                for _ in scheduler.step():
                    pass
                told = (
                    answer for event in stream.take_events() for answer in conversion.answers(kind, self._engine, event)
                )
                events += [event for event in map(responses.event, told) if event is not None]
        finally:
            scheduler.cancel(stream)
        if stream.error is not None:
            raise stream.error
        return plan.record(example, EvaluationReport.from_events(events))
