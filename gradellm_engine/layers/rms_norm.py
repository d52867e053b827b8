"""RMS norms with frozen weights as one node of the autograd graph each.

    forward    n = x r,  r = (mean of x^2 + eps)^(-1/2)        y = n w
    backward   with g = (dl/dy) w:  dx = r (g - n mean(g n))

Autograd makes seven nodes of one, whose backward passes are three times as many small operations: half a millisecond
and more of an explained token in a model of 125M parameters. Kernels for CPUs make one operation of each direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.cpu_kernels.dispatch import kernels_for
from gradellm_engine.layers.module_patch import Patch, mix_in_class
from gradellm_engine.utils.torch_compat import functorch_is_active

_EPS_NAMES = ("variance_epsilon", "eps")


@dataclass(frozen=True)
class RMSForm:
    """How a norm computes; always in float32.

    Attributes:
        scale: what the normalised input is multiplied with. [hidden]
        eps: what is added to the mean square.
        multiplies_in_input_dtype: whether the scale is applied after the cast back to the input's dtype.
    """

    scale: Tensor
    eps: float
    multiplies_in_input_dtype: bool

    def inverse(self, x: Tensor) -> Tensor:
        """Each row's r. [.., hidden] -> [.., 1]"""
        return torch.rsqrt(_to_float32(x).pow(2).mean(-1, keepdim=True) + self.eps)

    def output(self, normed: Tensor, dtype: torch.dtype) -> Tensor:
        """Each row's y from n, in the input's dtype. [.., hidden] -> [.., hidden]"""
        if normed.dtype is dtype:
            return normed * self.scale
        return normed.to(dtype) * self.scale if self.multiplies_in_input_dtype else (normed * self.scale).to(dtype)

    def gradient(self, normed: Tensor, inverse: Tensor, gradient: Tensor) -> Tensor:
        """The gradient by the input from n, r and dl/dy, in the dtype of dl/dy.

        [.., hidden], [.., 1], [.., hidden] -> [.., hidden]
        """
        scales_first = self.multiplies_in_input_dtype
        g = _to_float32(gradient * self.scale) if scales_first else _to_float32(gradient) * self.scale
        along = (g * normed).sum(-1, keepdim=True)
        by_input = torch.addcmul(g, normed, along, value=-1 / normed.shape[-1]) * inverse
        return by_input if by_input.dtype is gradient.dtype else by_input.to(gradient.dtype)


def _to_float32(x: Tensor) -> Tensor:
    """`x` in float32. The check first: `Tensor.to` of a float32 tensor takes as long as a small product."""
    return x if x.dtype is torch.float32 else x.to(torch.float32)


def replace_norms(model: nn.Module) -> list[Patch]:
    """Make every RMS norm of `model` a `FrozenNorm`: every module that computes an RMS norm, to the last bit.

    Modules with a `forward` of their own, as accelerate's placement gives them, stay as they are.
    """
    patches = []
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Norm") and "forward" not in vars(module):
            form = _form_of(module)
            if form is not None:
                patches.append(mix_in_class(name, module, FrozenNorm, "Frozen", form=form))
    return patches


@torch.no_grad()
def _form_of(module: nn.Module) -> RMSForm | None:
    """How a module computes, if it is an RMS norm; found by comparing its output. None in float64, left to autograd."""
    eps = next((vars(module)[name] for name in _EPS_NAMES if name in vars(module)), None)
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if not isinstance(eps, float) or type(weight) is not nn.Parameter or weight.dim() != 1:
        return None
    if weight.dtype is torch.float64 or [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    drawn = torch.randn((2, 3, len(weight)), generator=torch.Generator().manual_seed(0))
    drawn[0] *= eps**0.5  # so small that eps shows in the result
    x, w = drawn.to(weight), weight.detach()
    for form in (RMSForm(w, eps, True), RMSForm(w, eps, False), RMSForm(1 + w.float(), eps, False)):
        if torch.equal(form.output(_to_float32(x) * form.inverse(x), x.dtype), module(x)):
            return form
    return None


class FrozenNorm(nn.Module):
    """Mixin for RMS norms with frozen weights.

    Attributes:
        form: how the norm computes.
    """

    form: RMSForm

    def forward(self, x: Tensor) -> Tensor:
        """[.., hidden] -> [.., hidden]"""
        if x.requires_grad and torch.is_grad_enabled() and not functorch_is_active():
            output: Tensor = _Normed.apply(x, self.form)  # type: ignore[no-untyped-call]
            return output
        kernels = kernels_for(x, self.form.scale)
        own: Tensor = super().forward(x) if kernels is None else kernels.rms_norm_op(x, self.form.scale, self.form.eps)
        return own


class _Normed(torch.autograd.Function):
    """A norm as a node of the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: RMSForm) -> Tensor:  # noqa: ANN401
        if (kernels := kernels_for(x, form.scale)) is not None:
            ctx.form = form
            ctx.save_for_backward(x)
            output: Tensor = kernels.rms_norm_op(x, form.scale, form.eps)
            return output
        inverse = form.inverse(x)
        normed = _to_float32(x) * inverse
        ctx.form = form
        ctx.save_for_backward(x, normed, inverse)
        return form.output(normed, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        x, *saved = ctx.saved_tensors
        kernels = kernels_for(x, gradients[0], ctx.form.scale)
        if kernels is not None and not torch.is_grad_enabled():
            return kernels.rms_norm_backward_op(x, ctx.form.scale, ctx.form.eps, gradients[0]), None
        if saved:
            normed, inverse = saved
        if torch.is_grad_enabled() or not saved:  # for second derivatives n and r must depend on x
            inverse = ctx.form.inverse(x)
            normed = _to_float32(x) * inverse
        return ctx.form.gradient(normed, inverse, gradients[0]), None
