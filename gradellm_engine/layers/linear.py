"""Linear layers with frozen weights: the fastest kernel, fused shared-input layers, cached outputs.

- Kernel selection: `gradellm_engine.layers.gemm`.
- Fused layers. Queries, keys and values are products with the same input, and so are an MLP's gate and up projection.
  Their weights are adjacent in memory, so that one GEMM computes them all, forward and backward.
- Cached outputs. When a token is replayed to be explained, every layer gets the input that it got the first time. Its
  output is cached (`gradellm_engine.passes.activation_cache`), and only the backward pass reads the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from gradellm_engine.layers.gemm import GemmWeight, Kernel, layout_for_backward
from gradellm_engine.layers.module_patch import Patch, replace_class
from gradellm_engine.utils.torch_compat import is_batched_tensor


class LinearOutputCache(Protocol):
    """Outputs of linear layers in one pass."""

    def get(self, layer: nn.Module) -> Tensor | None:
        """The cached output of a layer, if there is one. [1, T, out]"""

    def put(self, layer: nn.Module, output: Tensor) -> None:
        """Take a layer's output. [1, T, out]"""

    def put_all(self, outputs: Mapping[nn.Module, Tensor]) -> None:
        """Take the outputs of all layers, each computed once and not written to since. [1, T, out] each"""

    def keep_last(self, num_tokens: int) -> None:
        """From now on, outputs are those of the pass's last tokens."""


current_output_cache: ContextVar[LinearOutputCache | None] = ContextVar("gradellm_outputs", default=None)


def replace_linears(model: nn.Module, *, is_widened: bool = False) -> list[Patch]:
    """Make every plain linear layer of `model` a `FrozenLinear`; `is_widened` is that of `GemmWeight`.

    Layers with a product of their own stay as they are: subclasses of layers and of tensors, such as quantised ones,
    and layers with a `forward` of their own, as accelerate's placement gives them.
    """
    return [
        replace_class(
            name,
            module,
            FrozenLinear,
            gemm_weight=GemmWeight(module.weight, module.bias, is_widened=is_widened),
            fused_group=None,
        )
        for name, module in model.named_modules()
        if is_plain_linear(module)
    ]


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer without a product of its own; see `replace_linears`."""
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter and "forward" not in vars(module)


def fuse_shared_input_linears(model: nn.Module, run: Callable[[], object]) -> None:
    """Fuse the layers of `model` that get the same input in succession, observed in `run`, which runs it once."""
    calls: list[tuple[FrozenLinear, Tensor]] = []  # inputs are kept alive, so that their ids stay unique
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
    shared_input: Tensor | None = None
    seen: set[FrozenLinear] = set()
    for layer, x in calls:
        if x is not shared_input or layer in seen or (group and not _can_fuse(group[0], layer)):
            _fuse(group)
            group, shared_input = [], x
        if layer not in seen:
            seen.add(layer)
            group.append(layer)
    _fuse(group)


def pack_weights(model: nn.Module, head: nn.Module, max_bytes: int) -> list[Patch]:
    """Pack the weights of the linear layers of `model`: once for products, and again for gradients.

    Copies take as much memory as the weights. Those of products come first; packing stops at `max_bytes`. The head has
    none for gradients, of which it computes hardly any (`gradellm_engine.passes.lm_head`).
    """
    names: dict[GemmWeight, str] = {}
    with_gradients: list[GemmWeight] = []
    for name, layer in model.named_modules():
        if type(layer) is FrozenLinear and layer.multiplied not in names and layer.multiplied.can_be_packed:
            names[layer.multiplied] = name
            with_gradients += [layer.multiplied] if layer is not head else []
    patches: list[Patch] = []
    packings = [(weight, weight.pack) for weight in names] + [(w, w.pack_transposed) for w in with_gradients]
    for weight, pack in packings:
        max_bytes -= weight.weight.nbytes
        if max_bytes < 0:
            break
        pack()
        if len(patches) < len(names):
            patches.append(Patch(names[weight], "GEMM kernels", "packed GEMM kernels", weight.unpack))
    return patches


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the packed copies of the weights of `model`."""
    weights = {layer.multiplied for layer in model.modules() if type(layer) is FrozenLinear}
    return sum(weight.packed_bytes for weight in weights)


def enable_batch_invariance(model: nn.Module) -> list[Patch]:
    """Make every linear layer of `model` batch-invariant: a token's output does not depend on the other tokens."""
    patches = []
    for name, module in model.named_modules():
        if type(module) is Conv1D:  # GPT-2's linear layers, whose weight is stored transposed
            weight = GemmWeight(module.weight.t(), module.bias)
            weight.enable_batch_invariance()
            patches.append(replace_class(name, module, _InvariantConv1D, gemm_weight=weight))
        elif type(module) is FrozenLinear:
            patches.append(_enable_batch_invariance(name, module))
    return patches


def _enable_batch_invariance(name: str, layer: FrozenLinear) -> Patch:
    weight, group = layer.gemm_weight, layer.fused_group
    weight.enable_batch_invariance()
    if group is not None:
        group.enable_batch_invariance()

    def undo() -> None:
        weight.disable_batch_invariance()
        if group is not None:
            group.disable_batch_invariance()

    return Patch(name, "GEMM kernels", "batch-invariant GEMM kernels", undo)


def _fuse(group: Sequence[FrozenLinear]) -> None:
    if len(group) > 1 and any(_gains_from_fusion(layer) for layer in group):
        FusedLinearGroup(group)


def _can_fuse(first: FrozenLinear, second: FrozenLinear) -> bool:
    same = first.weight.device == second.weight.device and first.weight.dtype == second.weight.dtype
    return same and (first.bias is None) == (second.bias is None)


def _gains_from_fusion(layer: FrozenLinear) -> bool:
    """Whether a decode step computes the layer by a kernel that is faster for larger weights."""
    return layer.gemm_weight.is_widened or layer.gemm_weight.kernel(layer.weight[:1]) is not Kernel.DEFAULT


class FrozenLinear(nn.Linear):
    """`nn.Linear` with frozen weights.

    Attributes:
        gemm_weight: the weight and its kernels.
        fused_group: the layers that it is computed with; None for none.
    """

    gemm_weight: GemmWeight
    fused_group: FusedLinearGroup | None

    @property
    def output_dtype(self) -> torch.dtype:
        """The dtype of the output."""
        return torch.float32 if self.gemm_weight.is_widened else self.weight.dtype

    @property
    def multiplied(self) -> GemmWeight:
        """The weight of the product that computes the layer: its own, or that of the layers it is fused with."""
        return self.gemm_weight if self.fused_group is None else self.fused_group.gemm_weight

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (as in nn.Linear)
        """[.., in] -> [.., out]"""
        cache = current_output_cache.get()
        group = self.fused_group
        output = _output(self, input, cache) if group is None else group.output(self, input, cache)
        if cache is not None:
            cache.put(self, output)
        return output


class _InvariantConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's linear layers with batch-invariant GEMMs."""

    gemm_weight: GemmWeight

    def forward(self, x: Tensor) -> Tensor:
        """[.., in] -> [.., out]"""
        if x.requires_grad and torch.is_grad_enabled():
            output: Tensor = _Product.apply(x, self.gemm_weight, [self.nf], None)[0]  # type: ignore[no-untyped-call]
            return output
        return self.gemm_weight.product(x)


def _output(layer: FrozenLinear, x: Tensor, cache: LinearOutputCache | None) -> Tensor:
    cached = _cached((layer,), x, cache)
    if cached is None and layer.gemm_weight.kernel(x) is Kernel.DEFAULT:
        return layer.gemm_weight.product(x)  # torch's own autograd node costs less than ours
    if x.requires_grad and torch.is_grad_enabled():
        output: Tensor = _Product.apply(x, layer.gemm_weight, [layer.out_features], cached)[0]  # type: ignore[no-untyped-call]
        return output
    return layer.gemm_weight.product(x) if cached is None else cached[0]


def _cached(layers: Sequence[FrozenLinear], x: Tensor, cache: LinearOutputCache | None) -> tuple[Tensor, ...] | None:
    """The cached outputs for x; None unless all layers have one."""
    if cache is None:
        return None
    cached = tuple(cache.get(layer) for layer in layers)
    if any(output is None or output.shape[:-1] != x.shape[:-1] for output in cached):
        return None
    return cached  # type: ignore[return-value]


class FusedLinearGroup:
    """Layers that get the same input: the first one called computes all in one GEMM.

    Creating a group moves the layers' weights to one tensor.

    Attributes:
        gemm_weight: that tensor and its kernels.
    """

    def __init__(self, layers: Sequence[FrozenLinear]) -> None:
        self._layers = tuple(layers)
        self._sizes = [layer.out_features for layer in layers]
        weight = layout_for_backward(torch.cat([layer.weight.detach() for layer in layers]))
        bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
        is_widened = layers[0].gemm_weight.is_widened
        self.gemm_weight = GemmWeight(weight, bias, is_widened=is_widened)
        for layer, own_weight in zip(layers, torch.split(weight, self._sizes), strict=True):
            layer.weight.data = own_weight
            layer.gemm_weight = GemmWeight(own_weight, layer.bias, is_widened=is_widened)
            layer.fused_group = self
        self._input: Tensor | None = None
        self._version = 0
        self._outputs: dict[FrozenLinear, Tensor] = {}  # for that input, of layers that were not called yet

    def enable_batch_invariance(self) -> None:
        """See `GemmWeight.enable_batch_invariance`."""
        self.gemm_weight.enable_batch_invariance()

    def disable_batch_invariance(self) -> None:
        """See `GemmWeight.disable_batch_invariance`."""
        self.gemm_weight.disable_batch_invariance()

    def output(self, layer: FrozenLinear, x: Tensor, cache: LinearOutputCache | None) -> Tensor:
        """The output of one of the layers. [.., in] -> [.., out]"""
        if self._input is not x or self._version != x._version or layer not in self._outputs:
            if self.gemm_weight.kernel(x) is Kernel.DEFAULT:
                return _output(layer, x, cache)
            self._input, self._version = x, x._version
            self._outputs = dict(zip(self._layers, self._compute(x, _cached(self._layers, x, cache)), strict=True))
        output = self._outputs.pop(layer)
        if not self._outputs:
            self._input = None
        return output

    def _compute(self, x: Tensor, cached: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        if x.requires_grad and torch.is_grad_enabled():
            outputs: tuple[Tensor, ...] = _Product.apply(x, self.gemm_weight, self._sizes, cached)  # type: ignore[no-untyped-call]
            return outputs
        return torch.split(self.gemm_weight.product(x), self._sizes, -1) if cached is None else cached


class _Product(torch.autograd.Function):
    """Layers of one input as a node of the graph; forward returns the cached outputs where there are any."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: GemmWeight,
        sizes: list[int],
        cached: tuple[Tensor, ...] | None,
    ) -> tuple[Tensor, ...]:
        ctx.weight = weight
        if cached is not None:
            return cached
        return (weight.product(x),) if len(sizes) == 1 else torch.split(weight.product(x), sizes, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        weight: GemmWeight = ctx.weight
        return weight.gradient(_side_by_side(gradients)), None, None, None


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Rows of some tensors next to each other; without a copy where they are so in memory. [.., width] each"""
    first = parts[0]
    width = sum(part.shape[-1] for part in parts)
    if len(parts) > 1 and not is_batched_tensor(first) and first.stride(-1) == 1 and first.stride(-2) == width:
        offsets = accumulate((part.shape[-1] for part in parts), initial=first.storage_offset())
        if all(
            part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            and part.storage_offset() == offset
            and part.stride() == first.stride()
            for part, offset in zip(parts, offsets, strict=False)
        ):
            return first.as_strided((*first.shape[:-1], width), first.stride())
    return first if len(parts) == 1 else torch.cat(tuple(parts), -1)
