"""A model without its Python: what a pass does between attention layers, written down once and run in a row.

A decode step of a small model on a processor is a thousand operations on one row. What calls them, modules of many
lines, and what notes them for the backward pass, autograd, take a sixth of an explained step's time. But for attention,
a step does the same again and again: the number of rows alone decides which operations it is made of. So one step is
watched (`gradellm_engine.compilation.tracer`), and what the library was asked to do becomes Python functions without
branches, of the forward and of the backward pass. Where the step met what is not the model's (a layer's attention,
what linear layers gave before), they ask again.

It is what `gradellm_engine.compilation.cuda_graphs` is on a GPU, where attention is recorded, too. What a model does
after a look at its numbers, as mixtures of experts do, cannot be written down.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.compilation.tracer import NotTraceable, Tracer, Value, function, needed, taken
from gradellm_engine.layers.linear import LinearOutputCache, current_output_cache
from gradellm_engine.passes.base import AttentionPass, LayerAttention, QKVGrads
from gradellm_engine.passes.lm_head import LogitHead
from gradellm_engine.utils.torch_compat import below_autograd

MOST_ROWS = 64  # of a pass: beyond it, arithmetic takes so long that calls do not count
MOST_LINES = 64  # the one not used for longest is given up
USES_BEFORE = 2  # the first time that a kind of pass is due may be the last; to write it down takes as long as some do

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TraceKey:
    """What decides which operations a pass is made of.

    Attributes:
        num_rows: tokens.
        lowest: the lowest layer that is explained; None for no graph.
        notes: whether what linear layers give is kept.
        knows: whether it is known, of tokens that are read once more.
        has_columns: whether the head gives two logits a token.
    """

    num_rows: int
    lowest: int | None = None
    notes: bool = False
    knows: bool = False
    has_columns: bool = False


@dataclass
class TraceContext:
    """A pass while it runs.

    Attributes:
        run: what its attention layers do.
        outputs: what linear layers gave, or where it is kept.
        sites: its attention layers, by index.
    """

    run: AttentionPass
    outputs: LinearOutputCache | None
    sites: dict[int, LayerAttention] = field(default_factory=dict)


@dataclass(frozen=True)
class CpuTrace:
    """One kind of pass.

    Attributes:
        body: from a running pass, and tokens and positions [2, T]: what goes into the head [1, T, hidden], then what
            `layers` gave, then what `back` takes.
        layers: linear layers whose outputs are kept.
        behind: from what the head gives [1, T, .] the logits [T, .], alone.
        back: from a running pass, the gradient by what went into the head [1, T, hidden], and what `body` left for it:
            attention's backward passes.
    """

    body: Callable[..., tuple[Tensor, ...]]
    layers: Sequence[nn.Module]
    behind: Callable[[Tensor], tuple[Tensor]]
    back: Callable[..., tuple[()]]

    def logits(self, running: TraceContext, head: nn.Module) -> Tensor:
        """Of a pass that explains nothing. [T, V]"""
        with torch.no_grad():
            return self.behind(head(self._hidden(running)[0]))[0]

    def explained_logits(self, running: TraceContext, head: LogitHead) -> Tensor:
        """Of one that does, whose backward pass `head` begins. [T, V] or [T, 2]"""
        hidden, saved = self._hidden(running)

        def go_on(gradient: Tensor) -> None:
            with torch.no_grad(), below_autograd():
                self.back(running, gradient, *saved)

        return head.read_hidden(hidden, lambda given: self.behind(given)[0], go_on)

    def _hidden(self, running: TraceContext) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.no_grad(), below_autograd():
            hidden, *rest = self.body(running, running.run.ids_and_positions)
        if running.outputs is not None and self.layers:
            running.outputs.put_all(dict(zip(self.layers, rest, strict=False)))
        return hidden, tuple(rest[len(self.layers) :])


@dataclass(frozen=True)
class _Attention:
    """A layer's, as a straight line calls it.

    What it gives is contiguous, whatever kind of pass it comes from: whether it can be seen in another shape without a
    copy is written down.
    """

    module: nn.Module
    index: int
    form: AttentionForm

    def output(self, running: TraceContext, query: Tensor) -> Tensor:
        running.sites[self.index] = site = running.run.layer_attention(self.module, self.index, self.form)
        return site.output(query).contiguous()

    def gradients(self, running: TraceContext, query: Tensor, gradient: Tensor) -> QKVGrads:
        back = running.sites.pop(self.index).backward(query, gradient, needs_input_grad=True)
        if back is None:
            raise RuntimeError("attention gave no gradients")
        dq, dk, dv = back
        return dq.contiguous(), dk.contiguous(), dv.contiguous()

    def last(self, running: TraceContext, query: Tensor, gradient: Tensor) -> None:
        """The lowest layer that is explained: nothing below needs a gradient."""
        running.sites.pop(self.index).backward(query, gradient, needs_input_grad=False)


@dataclass(frozen=True)
class _Watched:
    """A pass that is written down; what its parts have in common.

    Attributes:
        tracer: what writes.
        running: the pass.
        name: `running`, there.
    """

    tracer: Tracer
    running: TraceContext
    name: Value

    def call(self, its: Callable[..., Any], *given: Tensor, gives: bool = True, changes: bool = True) -> Any:  # noqa: ANN401
        """What is not the model's, from the pass and tensors."""
        with self.tracer.off():
            result = its(self.running, *given)
        self.tracer.call(its, self.name, *given, gives=result if gives else None, changes=changes)
        return result


@dataclass(frozen=True)
class _WatchedSite:
    """See `gradellm_engine.passes.base.LayerAttention`."""

    watched: _Watched
    attention: _Attention

    def output(self, query: Tensor) -> Tensor:
        output: Tensor = self.watched.call(self.attention.output, query)
        return output

    def backward(self, query: Tensor, gradient: Tensor, *, needs_input_grad: bool) -> QKVGrads | None:
        if not needs_input_grad:
            self.watched.call(self.attention.last, query, gradient, gives=False)
            return None
        back: QKVGrads = self.watched.call(self.attention.gradients, query, gradient)
        return back


class _WatchedPass:
    """See `gradellm_engine.passes.base.AttentionPass`."""

    def __init__(self, watched: _Watched, *, has_new: bool) -> None:
        """`has_new` tells whether any of its tokens is new: of others there is nothing to store."""
        run = watched.running.run
        self.graph_anchor, self.lowest, self.output_is_used, self.ids_and_positions = (
            run.graph_anchor,
            run.lowest,
            run.output_is_used,
            run.ids_and_positions,
        )
        self._watched, self._has_new = watched, has_new

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        def store(running: TraceContext, keys: Tensor, values: Tensor) -> None:
            running.run.store(index, keys, values)

        if self._has_new:
            self._watched.call(store, keys, values, gives=False)

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        def store_rotary(running: TraceContext, cosines: Tensor, sines: Tensor) -> None:
            running.run.store_rotary(index, cosines, sines)

        if self._has_new:
            self._watched.call(store_rotary, cosines, sines, gives=False)

    def layer_attention(self, module: nn.Module, index: int, form: AttentionForm) -> LayerAttention:
        return _WatchedSite(self._watched, _Attention(module, index, form))

    def heat_maps(self) -> list[Tensor]:
        return self._watched.running.run.heat_maps()


class _WatchedOutputs:
    """See `gradellm_engine.layers.linear.LinearOutputCache`."""

    def __init__(self, watched: _Watched, kind: TraceKey) -> None:
        self._watched, self._are_known, self._num_rows = watched, kind.knows, kind.num_rows
        self._noted: dict[nn.Module, tuple[Tensor, int] | None] = {}  # and how often it had been written to

    def get(self, layer: nn.Module) -> Tensor | None:
        def known(running: TraceContext) -> Tensor:
            output = None if running.outputs is None else running.outputs.get(layer)
            if output is None:
                raise RuntimeError("what a linear layer gives is not known")
            return output.contiguous()

        if not self._are_known or self._watched.tracer.is_off:  # in the head
            return None
        output: Tensor = self._watched.call(known, changes=False)
        return output

    def put(self, layer: nn.Module, output: Tensor) -> None:
        if not self._are_known and not self._watched.tracer.is_off:  # as in the head
            self._noted[layer] = None if layer in self._noted else (output, output._version)

    def put_all(self, outputs: Mapping[nn.Module, Tensor]) -> None:
        for layer, output in outputs.items():
            self.put(layer, output)

    def settled(self) -> dict[nn.Module, Tensor]:
        """After the pass: what layers gave once, a row a token, and is the same still. [1, T, out] each"""
        noted = {layer: its for layer, its in self._noted.items() if its is not None}
        rows = (1, self._num_rows)
        return {
            layer: output
            for layer, (output, version) in noted.items()
            if output._version == version and output.shape[:-1] == rows
        }


Model = Callable[[Tensor, AttentionPass], Tensor]  # tokens and positions [2, T], the pass -> logits [T, .]


def record_trace(model: Model, head: nn.Module, kind: TraceKey, running: TraceContext) -> CpuTrace:
    """The line of a pass, which is carried out; an explained one backward, too, for a target that means nothing.

    Args:
        model: runs it.
        head: the language-model head.
        kind: of which kind it is.
        running: the pass, before it runs.

    Raises:
        Unrecordable: where what it does depends on numbers.
    """
    tracer = Tracer()
    try:
        return _written_down(model, head, kind, running, tracer)
    finally:
        tracer.forget()


def _written_down(model: Model, head: nn.Module, kind: TraceKey, running: TraceContext, tracer: Tracer) -> CpuTrace:
    row = running.run.ids_and_positions
    name, tokens = tracer.free(), tracer.new(row)
    watched = _Watched(tracer, running, name)
    outputs = _WatchedOutputs(watched, kind)
    ends: list[int] = []
    cut: list[Tensor] = []  # what goes into the head, and what comes of it

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        cut.append(args[0])
        ends.append(len(tracer.operations))
        tracer.is_off = True

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        cut.append(output.detach()[..., :2] if kind.has_columns else output.detach())
        tracer.new(cut[-1])
        tracer.is_off = False
        return cut[-1]

    hooks = [head.register_forward_pre_hook(before), head.register_forward_hook(after)]
    token = current_output_cache.set(outputs if kind.notes or kind.knows else None)
    try:
        with torch.set_grad_enabled(kind.lowest is not None), tracer:
            logits = tracer.value(model(row, _WatchedPass(watched, has_new=not kind.knows)))
            ends.append(len(tracer.operations))
            if len(cut) != 2:
                raise NotTraceable("the language-model head does not run once")
            with tracer.off():
                gradient = torch.zeros_like(cut[0])
            below = tracer.new(gradient)
            if kind.lowest is not None:
                torch.autograd.backward(cut[0], gradient)
    finally:
        current_output_cache.reset(token)
        for hook in hooks:
            hook.remove()
    hidden, given = map(tracer.value, cut)
    body, behind, back = (tracer.operations[begin:end] for begin, end in ((0, ends[0]), ends, (ends[1], None)))
    noted = {layer: tracer.value(output) for layer, output in outputs.settled().items()}
    back, constants = needed(back, ()), tracer.constants
    saved = sorted(taken(back) - {name, below, *constants}, key=lambda value: value.number)
    left = [hidden, *noted.values(), *saved]
    return CpuTrace(
        body=function([name, tokens], needed(body, left), left, constants),
        layers=list(noted),
        behind=function([given], needed(behind, [logits]), [logits], constants),
        back=function([name, below, *saved], back, [], constants),
    )


class CpuTraceCache:
    """Lines by kind of pass, written down when they are due for the second time.

    Attributes:
        uses_before: how often a kind is due until then.
        is_possible: whether this model's passes can be written down, as far as is known.
    """

    def __init__(self, model: Model, head: nn.Module, uses_before: int = USES_BEFORE) -> None:
        self._model, self._head = model, head
        self._lines: OrderedDict[TraceKey, CpuTrace] = OrderedDict()
        self._uses: dict[TraceKey, int] = {}
        self.uses_before = uses_before
        self.is_possible = True

    def __len__(self) -> int:
        return len(self._lines)

    def give_up(self, reason: str) -> None:
        """From now on there are none."""
        logger.info("decode steps run call by call: %s", reason)
        self.is_possible = False
        self._lines.clear()

    def line(self, kind: TraceKey, new_pass: Callable[[], AttentionPass]) -> CpuTrace | None:
        """That of a kind; None while or where there is none. `new_pass` gives one that is due."""
        if kind in self._lines:
            self._lines.move_to_end(kind)
            return self._lines[kind]
        if not self.is_possible or kind.num_rows > MOST_ROWS:
            return None
        self._uses[kind] = self._uses.get(kind, 0) + 1
        if self._uses[kind] < self.uses_before:
            return None
        try:
            line = record_trace(self._model, self._head, kind, TraceContext(new_pass(), current_output_cache.get()))
        except NotTraceable as reason:
            self.give_up(str(reason))
            return None
        self._lines[kind] = line
        if len(self._lines) > MOST_LINES:
            del self._uses[self._lines.popitem(last=False)[0]]
        return line
