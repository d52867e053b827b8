"""CPU traces: the operations of a decode step, recorded once and run without the modules' Python and autograd.

A decode step of a small model on a CPU is a thousand operations on one row. Calling them through the modules, and
recording them for the backward pass, takes a sixth of an explained step's time. Outside of attention the number of rows
alone decides which operations a step is made of. So one step is traced (`gradellm_engine.compilation.tracer`), and its
operations become Python functions without branches for the forward and the backward pass. These call back into the pass
for the operations that are not the model's: a layer's attention, and reads of cached linear outputs.

A trace does on a CPU what a CUDA graph (`gradellm_engine.compilation.cuda_graphs`) does on a GPU, where attention is
captured, too. A model whose control flow depends on data, such as a mixture of experts, cannot be traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gradellm_engine.layers.linear import LinearOutputCache
from gradellm_engine.passes.base import AttentionPass, LayerAttention
from gradellm_engine.passes.lm_head import LogitHead
from gradellm_engine.utils.torch_compat import below_autograd


@dataclass(frozen=True)
class TraceKey:
    """What decides which operations a pass is made of.

    Attributes:
        num_rows: tokens.
        lowest: the lowest layer that is explained; None for a pass without a graph.
        records_outputs: whether the outputs of linear layers are put into the cache.
        is_cached: whether they are taken from the cache: a replay.
        has_columns: whether the head gives two logits a token.
        num_logits: tokens at the end of the row whose logits are computed; 0 for all.
        propagates_relevance: whether the backward pass propagates relevance.
    """

    num_rows: int
    lowest: int | None = None
    records_outputs: bool = False
    is_cached: bool = False
    has_columns: bool = False
    num_logits: int = 0
    propagates_relevance: bool = False


@dataclass
class TraceContext:
    """The state of one execution of a trace.

    Attributes:
        run: the pass, which computes attention.
        outputs: the cache of linear layers' outputs; None for none.
        sites: the pass's attention layers between their forward and backward pass, by layer index.
    """

    run: AttentionPass
    outputs: LinearOutputCache | None
    sites: dict[int, LayerAttention] = field(default_factory=dict)


@dataclass(frozen=True)
class CpuTrace:
    """The generated functions of one `TraceKey`.

    Attributes:
        forward: from a context, and tokens and positions [2, T]: the head's input [1, T, hidden], then the outputs of
            `layers`, then what `backward` takes.
        layers: linear layers whose outputs are put into the cache.
        logits_postprocess: from the head's output [1, T, .] the logits [T, .], alone.
        backward: from a context, the gradient by the head's input [1, T, hidden], and what `forward` saved for it:
            attention's backward passes.
    """

    forward: Callable[..., tuple[Tensor, ...]]
    layers: Sequence[nn.Module]
    logits_postprocess: Callable[[Tensor], tuple[Tensor]]
    backward: Callable[..., tuple[()]]

    def logits(self, context: TraceContext, head: nn.Module) -> Tensor:
        """The logits of a pass that explains nothing. [T, V], or of its last `num_logits` tokens"""
        with torch.no_grad():
            return self.logits_postprocess(head(self._hidden(context)[0]))[0]

    def explained_logits(self, context: TraceContext, head: LogitHead) -> Tensor:
        """The logits of an explained pass, whose backward pass `head` starts. [T, V] or [T, 2]"""
        hidden, saved = self._hidden(context)

        def backward(gradient: Tensor) -> None:
            with torch.no_grad(), below_autograd():
                self.backward(context, gradient, *saved)

        return head.read_hidden(hidden, lambda output: self.logits_postprocess(output)[0], backward)

    def _hidden(self, context: TraceContext) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.no_grad(), below_autograd():
            hidden, *rest = self.forward(context, context.run.ids_and_positions)
        if context.outputs is not None and self.layers:
            context.outputs.put_all(dict(zip(self.layers, rest, strict=False)))
        return hidden, tuple(rest[len(self.layers) :])
