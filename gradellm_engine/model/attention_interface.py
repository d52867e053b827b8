"""The attention function that the engine registers with Transformers' AttentionInterface.

The family's own module computes queries, keys and values; this function hands them to the pass that runs
(`gradellm_engine.passes`). The pass travels in a context variable and not in the model's keyword arguments, because
some families drop those they do not know.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.kv_cache.pool import LayerShape
from gradellm_engine.passes.base import AttentionPass, layer_attention_output
from gradellm_engine.passes.full_sequence import SequenceAttention

ATTENTION_KERNEL = "gradellm"

Function = TypeVar("Function", bound=Callable[..., Any])
RotaryHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


@dataclass
class AttentionProbe:
    """Records the attention calls of one forward pass, by layer index, instead of computing attention.

    Attributes:
        modules: the attention modules.
        shapes: what each layer stores in the KV cache.
        num_heads: query heads a layer, on this rank.
        rotaries: the cosines that each layer takes; layers that share a rotary embedding share the tensor.
        is_plain: whether all layers' attention is plain (`AttentionForm.is_plain`).
    """

    modules: dict[int, nn.Module] = field(default_factory=dict)
    shapes: dict[int, LayerShape] = field(default_factory=dict)
    num_heads: set[int] = field(default_factory=set)
    rotaries: dict[int, Tensor] = field(default_factory=dict)
    is_plain: bool = True

    def record(
        self, module: nn.Module, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm
    ) -> Tensor:
        """Record a layer; zeros of the shape of its output. Shapes as for `attention_forward`."""
        self.is_plain &= form.is_plain
        self.modules[index] = module
        self.num_heads.add(query.shape[1])
        self.shapes[index] = LayerShape(key.shape[1], key.shape[3], value.shape[3], key.dtype, key.device)
        return value.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))


current_pass: ContextVar[AttentionPass | AttentionProbe | SequenceAttention] = ContextVar("gradellm_pass")


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,  # noqa: ANN401 (Transformers' signature)
) -> tuple[Tensor, None]:
    """Attention output of one layer, in the signature of Transformers' AttentionInterface.

    query [B, H, T, D]; key [B, G, T, D]; value [B, G, T, Dv]; returns [B, T, H, Dv]. B is 1 except in passes over full
    sequences.

    Raises:
        RuntimeError: if the model is called directly and not through its `ModelRunner`.
    """
    current = current_pass.get(None)
    if current is None:
        raise RuntimeError("this model belongs to a gradellm ModelRunner; call it through the runner")
    index = int(module.layer_idx)  # type: ignore[arg-type]
    form = AttentionForm(
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
        window=kwargs.get("sliding_window"),
    )
    if isinstance(current, AttentionProbe):
        return current.record(module, index, query, key, value, form), None
    if isinstance(current, SequenceAttention):
        return current.output(index, query, key, value, form), None
    current.store(index, key.detach()[0], value.detach()[0])
    return layer_attention_output(current, current.layer_attention(module, index, form), index, query, key, value), None


AttentionInterface.register(ATTENTION_KERNEL, attention_forward)


def register_untraced() -> None:
    """Register the attention function so that torch.compile breaks its graph there and compiles only the rest."""
    AttentionInterface.register(ATTENTION_KERNEL, untraced(attention_forward))


def untraced(function: Function) -> Function:
    """`function`, excluded from torch.compile. Not applied at import, because loading the compiler takes a second."""
    disabled: Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled


def rotary_hook(index: int) -> RotaryHook:
    """A forward pre-hook of layer `index`'s attention module that stores the rotary embedding of new tokens."""

    def store_rotary(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current, embeddings = current_pass.get(None), kwargs.get("position_embeddings")
        if embeddings is None or current is None:
            return
        if isinstance(current, AttentionProbe):
            current.rotaries[index] = embeddings[0]
        elif not isinstance(current, SequenceAttention):
            current.store_rotary(index, embeddings[0][0], embeddings[1][0])

    return store_rotary
