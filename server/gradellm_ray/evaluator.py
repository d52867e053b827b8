"""An engine in this process that evaluates examples one after the other.

Requests and records are the SDK's (`gradellm.evaluation.run_spec`); wire messages are converted to engine calls and
events as in the server, without gRPC.

A record is reproducible to the last bit for the same example, run spec, model, kind of machine and number of threads.
It does not depend on earlier examples or on other load:

1. examples run one at a time, so that no batch is shared;
2. the prefix cache is not used, since a prompt that is prefilled in other chunks has other last digits;
3. batches of perturbed texts have the size that a fixed amount of memory allows; their size does not depend on time or
   on free memory.
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
from gradellm_engine import ComputationError, Engine, OutOfMemoryError, Quantization, Request
from gradellm_engine import InvalidRequestError as RefusedError
from gradellm_server.rpc import events_to_wire
from gradellm_server.rpc.rpcs import STREAMING_RPCS
from gradellm_server.rpc.server_info import server_info

METHOD_BYTES = 2**32


@dataclass(frozen=True)
class EngineOptions:
    """Options of an engine; equal options give equal numbers on equal machines.

    Attributes:
        model: a path or hub id; None for the demo model.
        revision: revision on the hub.
        dtype: of weights and arithmetic.
        quantization: of weights.
        device: auto is a GPU if there is one.
        threads: CPU threads.
        context_tokens: context limit; None for the model's own.
        method_bytes: memory for batches of perturbed texts and for post-hoc methods.
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
    """An example's record, or the error that prevented it."""

    record: dict[str, Any] | None
    error: str = ""


@dataclass(frozen=True)
class ModelDescription:
    """Description of a model.

    Attributes:
        info: ServerInfo of a server with this model, without a server's own limits.
        refusals: presets that do not support the model, with the reason.
    """

    info: ServerInfo
    refusals: Mapping[str, str]


class Evaluator:
    """Evaluates examples on one engine."""

    def __init__(self, options: EngineOptions, progress: Callable[[str], None] = lambda stage: None) -> None:
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
            use_graphs=False,  # capturing CUDA graphs pays off only for long completions
            progress=progress,
        )

    def describe_model(self, presets: Iterable[str]) -> ModelDescription:
        """Describe the model, and try which of Grad-ELLM's presets do not support it."""
        refusals = {}
        for name in presets:
            call = calls.attribute("a", {"completion": "a", "attribution": name})  # type: ignore[typeddict-item]
            try:
                STREAMING_RPCS["Attribute"][1](call.request, self._engine)
            except RefusedError as error:
                refusals[name] = str(error)
        info = server_info(self._engine, {}, self._engine.concrete_preset("recommended"))
        return ModelDescription(responses.server_info(info), refusals)

    def outcomes(self, plan: RunSpec, examples: Iterable[Example]) -> Iterator[tuple[str, Outcome]]:
        """Evaluate examples; yields each one's id and outcome."""
        for example in examples:
            yield example.id, self.outcome(plan, example)

    def outcome(self, plan: RunSpec, example: Example) -> Outcome:
        """Evaluate an example. Errors of the example itself are outcomes; other errors are raised."""
        try:
            try:
                return Outcome(self._record(plan, example, ()))
            except RefusedError as error:
                # Plausibility is undefined for a rationale with all or none of the tokens; other metrics are not.
                if not error.field.endswith("rationale"):
                    raise
                return Outcome(self._record(plan, example, PLAUSIBILITY))
        except (RefusedError, InvalidRequestError, ComputationError, OutOfMemoryError) as error:
            return Outcome(None, f"{example.origin}: {error}")

    def _record(self, plan: RunSpec, example: Example, without: Sequence[Metric]) -> dict[str, Any]:
        prompt, keywords = plan.request(example, without=without)
        start: Callable[..., Request]
        kind: Any
        _, start, kind = STREAMING_RPCS["Evaluate"]
        stream = start(calls.evaluate(prompt, keywords).request, self._engine, tenant=example.id)
        if stream.pass_budget is None:
            raise ValueError("the request is not an evaluation")
        stream.pass_budget.is_steady = True
        scheduler, events = self._engine.scheduler, list[Event]()
        scheduler.submit(stream)
        try:
            while not stream.is_closed:
                for _ in scheduler.step():
                    pass
                responses_of_step = (
                    answer
                    for event in stream.take_events()
                    for answer in events_to_wire.responses(kind, self._engine, event)
                )
                events += [event for event in map(responses.event, responses_of_step) if event is not None]
        finally:
            scheduler.cancel(stream)
        if stream.error is not None:
            raise stream.error
        return plan.record(example, EvaluationReport.from_events(events))
