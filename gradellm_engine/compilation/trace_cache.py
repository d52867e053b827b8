"""The CPU traces of a model, by what decides a pass's operations; recorded when they are due, and then executed."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from gradellm_engine.compilation.cpu_trace import CpuTrace, TraceContext, TraceKey
from gradellm_engine.compilation.executor import Batch
from gradellm_engine.compilation.trace_recording import Model, record_trace
from gradellm_engine.compilation.tracer import NotTraceable
from gradellm_engine.layers.linear import current_output_cache
from gradellm_engine.passes.base import AttentionPass
from gradellm_engine.passes.explained_pass import ExplainedPass

MAX_ROWS = 64  # of a traced pass: in a larger one the arithmetic takes so long that Python's share does not matter
MAX_TRACES = 64  # the least recently used is dropped
TRACE_AFTER_USES = 2  # a pass may be the only one of its key, and tracing takes as long as several passes

logger = logging.getLogger(__name__)


class CpuTraceCache:
    """Traces by key, each recorded when its key is due for the second time; an `Executor`.

    Attributes:
        uses_before: how often a key is due before its trace is recorded.
        is_possible: whether this model's passes can be traced, as far as is known.
    """

    def __init__(self, model: Model, head: nn.Module, uses_before: int = TRACE_AFTER_USES) -> None:
        self._model, self._head = model, head
        self._traces: OrderedDict[TraceKey, CpuTrace] = OrderedDict()
        self._uses: dict[TraceKey, int] = {}
        self.uses_before = uses_before
        self.is_possible = True

    def __len__(self) -> int:
        return len(self._traces)

    @property
    def keys(self) -> list[TraceKey]:
        """The keys of the traces, least recently used first."""
        return list(self._traces)

    def disable(self, reason: str) -> None:
        """Drop all traces, and record none from now on."""
        logger.info("CPU traces disabled: decode steps run eagerly: %s", reason)
        self.is_possible = False
        self._traces.clear()

    def execute(self, batch: Batch) -> ExplainedPass | None:
        """See `Executor`; runs batches whose trace is recorded or can be now."""
        outputs = current_output_cache.get()
        records_outputs = outputs is not None and any(chunk.is_new for chunk in batch.chunks)
        if outputs is not None and not (records_outputs or batch.is_cached):
            return None
        run, head = batch.run, batch.head
        if not isinstance(run.relevance_rows, bool):  # some of the tokens alone: which they are is no constant
            return None
        key = TraceKey(
            num_rows=sum(len(chunk.ids) for chunk in batch.chunks),
            lowest=None if run.graph_anchor is None else run.lowest,
            records_outputs=records_outputs,
            is_cached=batch.is_cached,
            has_columns=head is not None and head.has_columns,
            num_logits=run.num_logits,
            propagates_relevance=run.relevance_rows,
        )
        trace = self._trace(key, batch.build_pass)
        if trace is None:
            return None
        context = TraceContext(run, outputs)
        if head is None:
            return ExplainedPass(trace.logits(context, self._head), run, None)
        return ExplainedPass(trace.explained_logits(context, head), run, head.backward)

    def _trace(self, key: TraceKey, build_pass: Callable[[], AttentionPass]) -> CpuTrace | None:
        """The trace of a key; None while or where there is none. `build_pass` makes a pass to record."""
        if key in self._traces:
            self._traces.move_to_end(key)
            return self._traces[key]
        if not self.is_possible or key.num_rows > MAX_ROWS:
            return None
        self._uses[key] = self._uses.get(key, 0) + 1
        if self._uses[key] < self.uses_before:
            return None
        try:
            trace = record_trace(self._model, self._head, key, TraceContext(build_pass(), current_output_cache.get()))
        except NotTraceable as reason:
            self.disable(str(reason))
            return None
        self._traces[key] = trace
        if len(self._traces) > MAX_TRACES:
            del self._uses[self._traces.popitem(last=False)[0]]
        return trace
