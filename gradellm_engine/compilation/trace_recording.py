"""Records a CPU trace: runs one pass with proxies that record its calls of attention and of cached outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.compilation.cpu_trace import CpuTrace, TraceContext, TraceKey
from gradellm_engine.compilation.tracer import (
    CommonSubexpressions,
    NotTraceable,
    Tracer,
    Value,
    codegen,
    eliminate_dead_code,
    free_variables,
)
from gradellm_engine.layers.linear import current_output_cache
from gradellm_engine.passes.base import AttentionPass, LayerAttention, QKVGrads

Model = Callable[[Tensor, AttentionPass], Tensor]  # tokens and positions [2, T], the pass -> logits [T, .]


@dataclass(frozen=True)
class _TracedAttention:
    """A layer's attention, as a trace calls it.

    Its results are contiguous, whatever pass computes them, because the recorded operations include views that need
    the strides of the recording.
    """

    module: nn.Module
    index: int
    form: AttentionForm

    def forward(self, context: TraceContext, query: Tensor) -> Tensor:
        context.sites[self.index] = site = context.run.layer_attention(self.module, self.index, self.form)
        return site.output(query).contiguous()

    def backward(self, context: TraceContext, query: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
        """The gradients by queries, keys and values; by values alone where attention weights are constants."""
        gradients = context.sites.pop(self.index).backward(query, gradient, needs_input_grad=True)
        if gradients is None:
            raise RuntimeError("attention returned no gradients in a traced backward pass")
        return tuple(by.contiguous() for by in gradients if by is not None)

    def backward_lowest(self, context: TraceContext, query: Tensor, gradient: Tensor) -> None:
        """Of the lowest layer that is explained: nothing below needs a gradient."""
        context.sites.pop(self.index).backward(query, gradient, needs_input_grad=False)


@dataclass(frozen=True)
class _Recording:
    """A pass that is being traced.

    Attributes:
        tracer: the tracer.
        context: the pass's state.
        context_value: `context` in the trace, where it differs at each execution.
    """

    tracer: Tracer
    context: TraceContext
    context_value: Value

    def call(
        self,
        function: Callable[..., Any],
        *inputs: Tensor,
        has_results: bool = True,
        has_side_effects: bool = True,
    ) -> Any:  # noqa: ANN401
        """Run and record a call of a function of the context and tensors."""
        with self.tracer.pause():
            result = function(self.context, *inputs)
        self.tracer.call(
            function,
            self.context_value,
            *inputs,
            results=result if has_results else None,
            has_side_effects=has_side_effects,
        )
        return result


@dataclass(frozen=True)
class _RecordingLayer:
    """A `LayerAttention` that records its calls."""

    recording: _Recording
    attention: _TracedAttention

    def output(self, query: Tensor) -> Tensor:
        output: Tensor = self.recording.call(self.attention.forward, query)
        return output

    def backward(self, query: Tensor, gradient: Tensor, *, needs_input_grad: bool) -> QKVGrads | None:
        if not needs_input_grad:
            self.recording.call(self.attention.backward_lowest, query, gradient, has_results=False)
            return None
        *by_query_and_key, by_value = self.recording.call(self.attention.backward, query, gradient)
        dq, dk = by_query_and_key or (None, None)
        return dq, dk, by_value


class _RecordingPass:
    """An `AttentionPass` that records its calls."""

    def __init__(self, recording: _Recording, *, has_new: bool) -> None:
        """`has_new` tells whether the pass's tokens are new; replayed tokens have nothing to store."""
        run = recording.context.run
        self.graph_anchor, self.lowest = run.graph_anchor, run.lowest
        self.output_is_used, self.num_logits = run.output_is_used, run.num_logits
        self.relevance_rows = run.relevance_rows
        self.ids_and_positions = run.ids_and_positions
        self._recording, self._has_new = recording, has_new

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        def store(context: TraceContext, keys: Tensor, values: Tensor) -> None:
            context.run.store(index, keys, values)

        if self._has_new:
            self._recording.call(store, keys, values, has_results=False)

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        def store_rotary(context: TraceContext, cosines: Tensor, sines: Tensor) -> None:
            context.run.store_rotary(index, cosines, sines)

        if self._has_new:
            self._recording.call(store_rotary, cosines, sines, has_results=False)

    def layer_attention(self, module: nn.Module, index: int, form: AttentionForm) -> LayerAttention:
        return _RecordingLayer(self._recording, _TracedAttention(module, index, form))

    def heat_maps(self) -> list[Tensor]:
        return self._recording.context.run.heat_maps()


class _RecordingOutputs:
    """A `LinearOutputCache` that records its calls."""

    def __init__(self, recording: _Recording, key: TraceKey) -> None:
        self._recording, self._is_cached, self._num_rows = recording, key.is_cached, key.num_rows
        self._outputs: dict[nn.Module, tuple[Tensor, int] | None] = {}  # with their version counters

    def get(self, layer: nn.Module) -> Tensor | None:
        def cached(context: TraceContext) -> Tensor:
            output = None if context.outputs is None else context.outputs.get(layer)
            if output is None:
                raise RuntimeError("a traced replay found no cached output of a linear layer")
            return output.contiguous()

        if not self._is_cached or self._recording.tracer.paused:  # paused: the language-model head runs
            return None
        output: Tensor = self._recording.call(cached, has_side_effects=False)
        return output

    def put(self, layer: nn.Module, output: Tensor) -> None:
        if not self._is_cached and not self._recording.tracer.paused:
            self._outputs[layer] = None if layer in self._outputs else (output, output._version)

    def put_all(self, outputs: Mapping[nn.Module, Tensor]) -> None:
        for layer, output in outputs.items():
            self.put(layer, output)

    def keep_last(self, num_tokens: int) -> None:
        raise NotTraceable("the last layer is computed for some tokens alone")

    def settled(self) -> dict[nn.Module, Tensor]:
        """After the pass: outputs of layers that ran once, with a row a token, unmodified since. [1, T, out] each"""
        once = {layer: output for layer, output in self._outputs.items() if output is not None}
        rows = (1, self._num_rows)
        return {
            layer: output
            for layer, (output, version) in once.items()
            if output._version == version and output.shape[:-1] == rows
        }


def record_trace(model: Model, head: nn.Module, key: TraceKey, context: TraceContext) -> CpuTrace:
    """Run a pass, an explained one also backward with a gradient of zeros, and record its trace.

    Args:
        model: runs the pass.
        head: the language-model head.
        key: the pass's.
        context: holds the pass, before it runs.

    Raises:
        NotTraceable: if the pass's operations depend on data.
    """
    tracer = Tracer()
    try:
        return _record(model, head, key, context, tracer)
    finally:
        tracer.clear()


@dataclass
class _HeadCut:
    """Hooks that cut the language-model head out of a trace: `LogitHead` runs it.

    Attributes:
        tracer: paused while the head runs.
        has_columns: whether the head will give two logits a token.
        input: the head's. [1, T, hidden]
        output: the head's. [1, T, .]
        end_of_forward: the number of operations recorded before the head.
        num_calls: how often the head ran.
    """

    tracer: Tracer
    has_columns: bool
    input: Tensor | None = None
    output: Tensor | None = None
    end_of_forward: int = 0
    num_calls: int = 0

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.num_calls += 1
        self.input = args[0]
        self.end_of_forward = len(self.tracer.operations)
        self.tracer.paused = True

    def after(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.output = output.detach()[..., :2] if self.has_columns else output.detach()
        self.tracer.new(self.output)
        self.tracer.paused = False
        return self.output

    def ends(self) -> tuple[Tensor, Tensor]:
        """The head's input and output.

        Raises:
            NotTraceable: if it did not run exactly once.
        """
        if self.num_calls != 1 or self.input is None or self.output is None:
            raise NotTraceable("the language-model head does not run exactly once")
        return self.input, self.output


def _record(model: Model, head: nn.Module, key: TraceKey, context: TraceContext, tracer: Tracer) -> CpuTrace:
    row = context.run.ids_and_positions
    context_value, tokens = tracer.free_value(), tracer.new(row)
    recording = _Recording(tracer, context, context_value)
    outputs = _RecordingOutputs(recording, key)
    cut = _HeadCut(tracer, key.has_columns)
    hooks = [head.register_forward_pre_hook(cut.before), head.register_forward_hook(cut.after)]
    token = current_output_cache.set(outputs if key.records_outputs or key.is_cached else None)
    try:
        with torch.set_grad_enabled(key.lowest is not None), tracer:
            logits = tracer.value(model(row, _RecordingPass(recording, has_new=not key.is_cached)))
            end_of_logits = len(tracer.operations)
            head_input, head_output = cut.ends()
            with tracer.pause():
                gradient = torch.zeros_like(head_input)
            head_gradient = tracer.new(gradient)
            if key.lowest is not None:
                torch.autograd.backward(head_input, gradient)
    finally:
        current_output_cache.reset(token)
        for hook in hooks:
            hook.remove()
    constants, common = tracer.constants, CommonSubexpressions(tracer.written)
    forward = common.eliminate(tracer.operations[: cut.end_of_forward])
    postprocess = tracer.operations[cut.end_of_forward : end_of_logits]
    backward = eliminate_dead_code(common.eliminate(tracer.operations[end_of_logits:]), ())

    def value(tensor: Tensor) -> Value:
        found = tracer.value(tensor)
        return common.substitutes.get(found, found)

    hidden, head_result = value(head_input), tracer.value(head_output)
    layer_outputs = {layer: value(output) for layer, output in outputs.settled().items()}
    saved = free_variables(backward) - {context_value, head_gradient, *constants}
    saved_in_order = sorted(saved, key=lambda value: value.number)
    results = [hidden, *layer_outputs.values(), *saved_in_order]
    return CpuTrace(
        forward=codegen([context_value, tokens], eliminate_dead_code(forward, results), results, constants),
        layers=list(layer_outputs),
        logits_postprocess=codegen([head_result], eliminate_dead_code(postprocess, [logits]), [logits], constants),
        backward=codegen([context_value, head_gradient, *saved_in_order], backward, [], constants),
    )
