"""The rotary embedding of queries and keys as one node of the autograd graph, and its inverse.

Rotation multiplies each pair of channels with s (cos, sin), so its backward pass is the same function with (cos, -sin),
whatever the pairing, the width or the scaling s. Autograd makes fourteen nodes a layer of it.

Without a graph, many tokens at once are rotated by rows of all heads (`rotated`): (a, b) becomes
(a cos - b sin, b cos + a sin). Transformers computes that head by head, in seven passes over memory whose inner loops
are half a head long. With a token's heads adjacent in memory, and its cosines repeated as often, it is four passes with
inner loops as long as a row. Every number is the same sum of the same products, so results are bit-identical.

Transformers' attention modules call the rotary function of their family by its global name. `replace_rotary` gives the
attention modules of one model a `forward` with the same code, in whose globals that name is our function: no other
model is affected, and a call costs what it did.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.cpu_kernels.dispatch import kernels_for
from gradellm_engine.layers.module_patch import Patch, replace_class
from gradellm_engine.utils.torch_compat import functorch_is_active

NAME = "apply_rotary_pos_emb"  # in all of Transformers' modules
MIN_NUMBERS = 2**14  # of queries or keys, for the row layout; below it, its calls cost more than it saves
_FLOATS_PER_MOVE = 4  # float32 numbers in the widest dtype; narrow heads are moved three times faster by it

Rotate = Callable[..., tuple[Tensor, Tensor]]
KernelsFor = Callable[[Tensor, Tensor, Tensor, Tensor], ModuleType | None]


def replace_rotary(model: nn.Module) -> list[Patch]:
    """Make the rotary embedding one autograd node in the attention modules of `model`, and in no other model's."""
    classes: dict[type[nn.Module], type[nn.Module]] = {}
    patches: list[Patch] = []
    for name, module in model.named_modules():
        original = type(module)
        if original not in classes and _calls_rotary(original.forward):
            classes[original] = _with_fused_rotary(original)
        if original in classes:
            patches.append(replace_class(name, module, classes[original]))
            patches += _replace_hooked_forward(name, module, original.forward)
    return patches


def rotary_function(module: nn.Module) -> Rotate:
    """The rotary function that an attention module calls."""
    names = getattr(type(module).forward, "__globals__", {})
    rotate: Rotate = names[NAME] if NAME in names else vars(sys.modules[type(module).__module__])[NAME]
    return rotate


def _calls_rotary(forward: Callable[..., Any]) -> bool:
    """Whether an attention module's `forward` calls its family's rotary function, and that is not fused yet."""
    if not isinstance(forward, FunctionType) or NAME not in _names(forward.__code__):
        return False
    return NAME in forward.__globals__ and not hasattr(forward.__globals__[NAME], "is_fused_node")


def _names(code: CodeType) -> Iterator[str]:
    """Global names that code uses, in functions inside it, too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _with_fused_rotary(original: type[nn.Module]) -> type[nn.Module]:
    """A subclass of an attention class whose `forward` is the same code, with the rotary embedding as one node."""
    forward: Any = original.forward
    names = forward.__globals__ | {NAME: fused_autograd_node(forward.__globals__[NAME])}
    patched = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    patched.__kwdefaults__ = forward.__kwdefaults__
    functools.update_wrapper(patched, forward)
    members = {"forward": patched, "__module__": original.__module__}
    return type(f"FusedRotary{original.__name__}", (original,), members)


def _replace_hooked_forward(name: str, module: nn.Module, original: Callable[..., Any]) -> list[Patch]:
    """Patch the bound `forward` that accelerate's placement saved before this patch, in `_old_forward`."""
    hooked_forward = vars(module).get("_old_forward")
    if not isinstance(hooked_forward, MethodType) or hooked_forward.__func__ is not original:
        return []
    module._old_forward = MethodType(type(module).forward, module)  # type: ignore[assignment]

    def undo() -> None:
        module._old_forward = hooked_forward  # type: ignore[assignment]

    return [Patch(name, "_old_forward", f"{type(module).__name__}.forward", undo)]


def fused_autograd_node(rotate: Rotate) -> Rotate:
    """The same function of queries, keys, cosines and sines, with a backward pass of its own."""
    has_rows = rotates_halves(rotate)

    def halves_kernels(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> ModuleType | None:
        return _halves_kernels(q, k, cos, sin) if has_rows else None

    @functools.wraps(rotate)
    def rotates(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        if args or kwargs or not _takes_fused_node(q, k, cos, sin):
            if not torch.is_grad_enabled() and not any(q.stride()):
                # A stub of `ProjectionStubs`: one number seen as a tensor, which is not used.
                return q, k if not any(k.stride()) else rotates(k, k, cos, sin, *args, **kwargs)[1]
            if not (args or kwargs) and _is_plain_inference() and (kernels := halves_kernels(q, k, cos, sin)):
                both: tuple[Tensor, Tensor] = kernels.rotate_halves_op(q, k, cos, sin, 1.0)
                return both
            if has_rows and not (args or kwargs) and _is_plain_inference() and supports_row_layout(q, k, cos, sin):
                return rotated(q, cos, sin), rotated(k, cos, sin)
            return rotate(q, k, cos, sin, *args, **kwargs)
        both = _Rotated.apply(q, k, cos, sin, rotate, halves_kernels)  # type: ignore[no-untyped-call]
        return both  # noqa: RET504

    rotates.is_fused_node = True  # type: ignore[attr-defined]
    return rotates


def _takes_fused_node(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether gradients are wanted of queries and keys alone, by an ordinary backward pass.

    In float64, autograd stays in charge and rounds as it does: some families rotate in float32 there, too.
    """
    if not (q.requires_grad and k.requires_grad and torch.is_grad_enabled()) or q.dtype is torch.float64:
        return False
    return _no_functorch_or_compile() and not (cos.requires_grad or sin.requires_grad)


def _is_plain_inference() -> bool:
    """Whether the call is not differentiated, compiled or transformed."""
    return not torch.is_grad_enabled() and _no_functorch_or_compile()


def _no_functorch_or_compile() -> bool:
    """Whether neither torch.compile traces the call nor a `torch.func` transform runs it."""
    return not torch.compiler.is_compiling() and not functorch_is_active()


class _Rotated(torch.autograd.Function):
    """Rotation of queries and keys."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        q: Tensor,
        k: Tensor,
        cos: Tensor,
        sin: Tensor,
        rotate: Rotate,
        kernels_for_halves: KernelsFor,
    ) -> tuple[Tensor, Tensor]:
        ctx.rotate, ctx.kernels_for_halves = rotate, kernels_for_halves
        ctx.save_for_backward(cos, sin)
        kernels = kernels_for_halves(q, k, cos, sin)
        both: tuple[Tensor, Tensor]
        both = rotate(q, k, cos, sin) if kernels is None else kernels.rotate_halves_op(q, k, cos, sin, 1.0)
        return both

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        cos, sin = ctx.saved_tensors
        kernels = None if torch.is_grad_enabled() else ctx.kernels_for_halves(*gradients, cos, sin)
        if kernels is not None:
            return *kernels.rotate_halves_op(*gradients, cos, sin, -1.0), None, None, None, None
        return *ctx.rotate(*gradients, cos, -sin), None, None, None, None


def rotates_halves(rotate: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    """Whether a family's function rotates a head's halves, where a head is as wide as its cosines; tried once."""
    drawn = torch.randn((4, 2, 3, 8), generator=torch.Generator().manual_seed(0))
    q, k = drawn[0][None], drawn[1][None]  # [1, 2, 3, 8]
    cos, sin = drawn[2, :1], drawn[3, :1]
    try:
        found = rotate(q, k, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError):  # other arguments or other shapes
        return False
    return all(torch.equal(actual, rotated(x, cos, sin)) for actual, x in zip(found, (q, k), strict=True))


def _halves_kernels(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> ModuleType | None:
    """The kernels that rotate these queries and keys by halves, if there are any. [1, H, T, D], [1, T, D]"""
    is_one_sequence = q.dim() == 4 and q.shape[0] == 1 and cos.shape == sin.shape == (1, q.shape[2], q.shape[3])
    return kernels_for(q, k, cos, sin) if is_one_sequence and k.shape[-1] == q.shape[-1] else None


def supports_row_layout(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether `rotated` pays, and queries and keys lie in memory as projections leave them. [B, H, T, D], [1, T, D]"""
    is_one_table = cos.dim() == 3 and cos.shape == sin.shape and cos.shape[0] == 1 and cos.shape[-1] == q.shape[-1]
    if not is_one_table or q.dim() != 4 or q.numel() < MIN_NUMBERS or cos.shape[1] != q.shape[2]:
        return False
    same = all(x.dtype is torch.float32 and x.device.type == "cpu" for x in (q, k, cos, sin))
    return same and k.shape[-1] == q.shape[-1] and all(x.transpose(1, 2).is_contiguous() for x in (q, k))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys with their halves rotated. [B, H, T, D], [1, T, D] twice -> [B, H, T, D]"""
    B, H, T, D = x.shape
    rows, half = x.transpose(1, 2), D // 2
    signed = torch.cat((-sin[..., :half], sin[..., half:]), -1)
    other = _halves_swapped(rows).reshape(B, T, H * D).mul_(signed.repeat(1, 1, H))
    return (rows.reshape(B, T, H * D) * cos.repeat(1, 1, H)).add_(other).view(B, T, H, D).transpose(1, 2)


def _halves_swapped(rows: Tensor) -> Tensor:
    """(a, b) becomes (b, a). [.., D]"""
    half = rows.shape[-1] // 2
    if half % _FLOATS_PER_MOVE == 0 and rows.is_contiguous() and rows.storage_offset() % _FLOATS_PER_MOVE == 0:
        return rows.view(torch.complex128).roll(half // _FLOATS_PER_MOVE, -1).view(torch.float32)
    return rows.roll(half, -1)


def unrotated(module: nn.Module, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Queries or keys of an attention module before the rotary embedding, by the family's function run backwards.

    A rotary embedding multiplies each pair of channels with s (cos, sin): the inverse is (cos, -sin) / (cos^2 + sin^2).

    Args:
        module: the layer's attention.
        x: [B, heads, tokens, D]
        cosines: of the tokens. [tokens, width] or [B, tokens, width]
        sines: of the tokens, in the shape of `cosines`.
    """
    rotate = rotary_function(module)
    cos, sin = (c.to(x.device, x.dtype).view(-1, *c.shape[-2:]) for c in (cosines, sines))
    norm = cos.square() + sin.square()
    width = getattr(module, "rotary_ndims", x.shape[-1])  # some modules cut off the part that is not rotated themselves
    result: Tensor = rotate(x[..., :width], x[..., :width], cos / norm, -sin / norm)[0]
    return torch.cat((result, x[..., width:]), -1)
