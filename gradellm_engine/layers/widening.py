"""bfloat16 models on a CPU: weights stay in bfloat16, and everything between them is computed in float32.

A decode step's time is that of reading weights, so half the bytes take half the time. Activations are few, and CPUs
have no bfloat16 arithmetic but products: as float32 numbers they are faster, and results are nearer to the exact ones.
Products take them rounded where the processor multiplies bfloat16 numbers (`gradellm_engine.cpu_kernels.gemm`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from gradellm_engine.cpu_kernels.team import has_kernels
from gradellm_engine.layers.linear import FrozenLinear, is_plain_linear, replace_linears
from gradellm_engine.layers.module_patch import Patch, mix_in_class


class WidenedEmbedding(nn.Module):
    """Mixin for embeddings in bfloat16 whose rows are read as float32."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """[..] -> [.., hidden]"""
        rows: Tensor = super().forward(*args, **kwargs)
        return rows.float()


def widen_activations(model: nn.Module, *, is_exact: bool = False) -> list[Patch]:
    """Compute a bfloat16 model on a CPU in float32, with its matrices as they are; other models stay as they are.

    So do those with matrices that are neither plain linear layers nor embeddings, such as stacked experts. `is_exact`
    is that of `GemmWeight`, for all layers.
    """
    if not _can_widen(model):
        return []
    embeddings = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    patches = [mix_in_class(name, module, WidenedEmbedding, "Widened") for name, module in embeddings]
    patches += _widen_vectors(model) + replace_linears(model, is_widened=True)
    for module in model.modules():
        if isinstance(module, FrozenLinear):
            module.gemm_weight.is_exact = is_exact
    return patches


def _can_widen(model: nn.Module) -> bool:
    matrices = {id(parameter) for parameter in model.parameters() if parameter.dim() > 1}
    for module in model.modules():
        if isinstance(module, nn.Embedding) or is_plain_linear(module):
            matrices.discard(id(module.weight))
    kinds = {(parameter.device.type, parameter.dtype) for parameter in model.parameters()}
    return not matrices and kinds == {("cpu", torch.bfloat16)} and has_kernels()


def _widen_vectors(model: nn.Module) -> list[Patch]:
    """Biases, scales of norms, and buffers in float32."""
    patches = []
    for name, module in model.named_modules():
        own: Iterable[tuple[str, Tensor]] = [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]
        for key, tensor in own:
            if tensor.dtype is torch.bfloat16 and tensor.dim() < 2:
                undo = partial(setattr, tensor, "data", tensor.data)
                tensor.data = tensor.data.float()
                patches.append(Patch(f"{name}.{key}", "bfloat16", "float32", undo))
    return patches
