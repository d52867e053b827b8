"""Linear layers whose weights never change: computed where it is fastest, together, and not twice for the same token.

- The fastest kernel: `gradellm_engine.layers.gemm`.
- Layers of one input. Queries, keys and values are products with the same input, and so are an MLP's gate and its
  content. Their weights lie together in memory, so that one call computes them all, forward and backward.
- Known outputs. A token that is read once more, to be explained, gives every layer the input that it gave it the first
  time. What the layer made of it is at hand then (`gradellm_engine.passes.activation_cache`): only the backward pass
  reads weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gradellm_engine.layers.gemm import GemmWeight, Kernel, layout_for_backward


class LinearOutputCache(Protocol):
    """What layers give in a pass."""

    def get(self, layer: nn.Module) -> Tensor | None:
        """What this one gives, where that is known. [1, T, out]"""

    def put(self, layer: nn.Module, output: Tensor) -> None:
        """It has given this. [1, T, out]"""

    def put_all(self, outputs: Mapping[nn.Module, Tensor]) -> None:
        """All of them have given these, once, and nobody has written to them since. [1, T, out] each"""


current_output_cache: ContextVar[LinearOutputCache | None] = ContextVar("gradellm_outputs", default=None)


def replace_linears(model: nn.Module) -> None:
    """Make every plain linear layer of `model` a `FrozenLinear`.

    Not those with a product of their own: subclasses of layers and of tensors, such as quantised ones, and what was
    given a forward of its own, as by accelerate's placement.
    """
    for module in model.modules():
        if type(module) is nn.Linear and type(module.weight) is nn.Parameter and "forward" not in vars(module):
            module.__class__ = FrozenLinear
            # Attributes of modules that are no parameters are found at once.
            module.gemm_weight = GemmWeight(module.weight, module.bias)  # type: ignore[assignment]
            module.fused_group = None  # type: ignore[assignment]


def fuse_shared_input_linears(model: nn.Module, run: Callable[[], object]) -> None:
    """Join the layers of `model` that get the same input one after the other, as `run` shows, which runs it once."""
    calls: list[tuple[FrozenLinear, Tensor]] = []  # which holds the inputs, so that none can take another's place
    hooks = [
        module.register_forward_pre_hook(lambda layer, args: calls.append((layer, args[0])))
        for module in model.modules()
        if type(module) is FrozenLinear
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    group: list[FrozenLinear] = []
    given: Tensor | None = None
    seen: set[FrozenLinear] = set()
    for layer, x in calls:
        if x is not given or layer in seen or (group and not _go_together(group[0], layer)):
            _join(group)
            group, given = [], x
        if layer not in seen:
            seen.add(layer)
            group.append(layer)
    _join(group)


def enable_batch_invariance(model: nn.Module) -> None:
    """Have every linear layer of `model` give a token the same whatever tokens are beside it."""
    for module in model.modules():
        if type(module) is Conv1D:  # of GPT-2: a linear layer, its weight stored the other way
            module.__class__ = _InvariantConv1D
            module.take_over()  # type: ignore[operator]
        elif type(module) is FrozenLinear:
            module.gemm_weight.enable_batch_invariance()
            if module.fused_group is not None:
                module.fused_group.enable_batch_invariance()


def _join(group: Sequence[FrozenLinear]) -> None:
    if len(group) > 1 and any(_is_fast(layer) for layer in group):
        FusedLinearGroup(group)


def _go_together(one: FrozenLinear, other: FrozenLinear) -> bool:
    same = one.weight.device == other.weight.device and one.weight.dtype == other.weight.dtype
    return same and (one.bias is None) == (other.bias is None)


def _is_fast(layer: FrozenLinear) -> bool:
    """Whether a decode step computes it by a kernel that gains from more weights."""
    return layer.gemm_weight.kernel(layer.weight[:1]) is not Kernel.DEFAULT


class FrozenLinear(nn.Linear):
    """`nn.Linear` with frozen weights.

    Attributes:
        frozen: its numbers.
        joint: with which layers it is computed; None for alone.
    """

    gemm_weight: GemmWeight
    fused_group: FusedLinearGroup | None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (as in nn.Linear)
        """[.., in] -> [.., out]"""
        outputs = current_output_cache.get()
        output = (
            _output(self, input, outputs) if self.fused_group is None else self.fused_group.output(self, input, outputs)
        )
        if outputs is not None:
            outputs.put(self, output)
        return output


class _InvariantConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's linear layers, by the same products."""

    gemm_weight: GemmWeight

    def take_over(self) -> None:
        """Take the numbers that are there."""
        self.gemm_weight = GemmWeight(self.weight.t(), self.bias)
        self.gemm_weight.enable_batch_invariance()

    def forward(self, x: Tensor) -> Tensor:
        """[.., in] -> [.., out]"""
        if x.requires_grad and torch.is_grad_enabled():
            output: Tensor = _Product.apply(x, self.gemm_weight, [self.nf], None)[0]  # type: ignore[no-untyped-call]
            return output
        return self.gemm_weight.product(x)


def _output(layer: FrozenLinear, x: Tensor, outputs: LinearOutputCache | None) -> Tensor:
    known = _known((layer,), x, outputs)
    if known is None and layer.gemm_weight.kernel(x) is Kernel.DEFAULT:
        return layer.gemm_weight.product(x)  # torch's own node costs less than ours
    if x.requires_grad and torch.is_grad_enabled():
        output: Tensor = _Product.apply(x, layer.gemm_weight, [layer.out_features], known)[0]  # type: ignore[no-untyped-call]
        return output
    return layer.gemm_weight.product(x) if known is None else known[0]


def _known(layers: Sequence[FrozenLinear], x: Tensor, outputs: LinearOutputCache | None) -> tuple[Tensor, ...] | None:
    """What layers give for x, where it is known of all of them."""
    if outputs is None:
        return None
    known = tuple(outputs.get(layer) for layer in layers)
    if any(output is None or output.shape[:-1] != x.shape[:-1] for output in known):
        return None
    return known  # type: ignore[return-value]


class FusedLinearGroup:
    """Layers that get the same input: whichever is called first computes all.

    Making one moves their weights to where they lie together.
    """

    def __init__(self, layers: Sequence[FrozenLinear]) -> None:
        self._layers = tuple(layers)
        self._sizes = [layer.out_features for layer in layers]
        weight = layout_for_backward(torch.cat([layer.weight.detach() for layer in layers]))
        bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
        self._gemm_weight = GemmWeight(weight, bias)
        for layer, its_weight in zip(layers, torch.split(weight, self._sizes), strict=True):
            layer.weight.data = its_weight
            layer.gemm_weight = GemmWeight(its_weight, layer.bias)
            layer.fused_group = self
        self._input: Tensor | None = None
        self._version = 0
        self._left: dict[FrozenLinear, Tensor] = {}  # outputs for that input which nobody has taken yet

    def enable_batch_invariance(self) -> None:
        """See `GemmWeight.become_invariant`."""
        self._gemm_weight.enable_batch_invariance()

    def output(self, layer: FrozenLinear, x: Tensor, outputs: LinearOutputCache | None) -> Tensor:
        """What one of them gives. [.., in] -> [.., out]"""
        if self._input is not x or self._version != x._version or layer not in self._left:
            if self._gemm_weight.kernel(x) is Kernel.DEFAULT:
                return _output(layer, x, outputs)
            self._input, self._version = x, x._version
            self._left = dict(zip(self._layers, self._outputs(x, _known(self._layers, x, outputs)), strict=True))
        taken = self._left.pop(layer)
        if not self._left:
            self._input = None
        return taken

    def _outputs(self, x: Tensor, known: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        if x.requires_grad and torch.is_grad_enabled():
            made: tuple[Tensor, ...] = _Product.apply(x, self._gemm_weight, self._sizes, known)  # type: ignore[no-untyped-call]
            return made
        return torch.split(self._gemm_weight.product(x), self._sizes, -1) if known is None else known


class _Product(torch.autograd.Function):
    """Layers of one input as a node of the graph."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        frozen: GemmWeight,
        sizes: list[int],
        known: tuple[Tensor, ...] | None,
    ) -> tuple[Tensor, ...]:
        ctx.frozen = frozen
        if known is not None:
            return known
        return (frozen.product(x),) if len(sizes) == 1 else torch.split(frozen.product(x), sizes, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        frozen: GemmWeight = ctx.frozen
        together = gradients[0] if len(gradients) == 1 else torch.cat(gradients, -1)
        return frozen.gradient(together), None, None, None
