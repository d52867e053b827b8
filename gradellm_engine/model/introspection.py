"""What the engine learns of a model from one forward pass at load: its layers, and what each stores in the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from gradellm_engine.errors import UnsupportedModelError
from gradellm_engine.kv_cache.pool import LayerShape, RotaryShape
from gradellm_engine.model.attention_interface import AttentionProbe, rotary_hook, untraced


@dataclass(frozen=True)
class ModelLayout:
    """A decoder's layers.

    Attributes:
        blocks: the decoder layers, in order.
        attentions: each layer's attention module.
        layer_shapes: what each attention layer stores for a token.
        rotaries: the rotary embeddings that the model computes.
        rotary_of: which of `rotaries` a layer takes, by layer index.
        num_heads: the numbers of query heads that layers have on this rank.
    """

    blocks: list[nn.Module]
    attentions: list[nn.Module]
    layer_shapes: list[LayerShape]
    rotaries: list[RotaryShape]
    rotary_of: dict[int, int]
    num_heads: set[int]


def probe_layers(
    model: PreTrainedModel, probe: AttentionProbe, run: Callable[[AttentionProbe], object], *, is_compiled: bool
) -> ModelLayout:
    """Derive a model's layout from a probe, and leave a hook on one layer of each rotary embedding.

    Args:
        model: the model.
        probe: has recorded a forward pass.
        run: runs the model on one token, with the probe as its pass; called once more, for the rotary embeddings.
        is_compiled: whether layers will be compiled, so that the hooks must be excluded from it.

    Raises:
        UnsupportedModelError: if a layer's attention does not go through Transformers' AttentionInterface.
    """
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    if num_layers < 1 or sorted(probe.modules) != list(range(num_layers)):
        raise UnsupportedModelError(
            f"{type(model).__name__}: {len(probe.modules)} of {num_layers} layers go through "
            "Transformers' AttentionInterface; all must"
        )
    attentions = [probe.modules[index] for index in range(num_layers)]
    rotaries, rotary_of = _hook_rotaries(probe, run, is_compiled=is_compiled)
    return ModelLayout(
        blocks=_blocks(model, attentions),
        attentions=attentions,
        layer_shapes=[probe.shapes[index] for index in range(num_layers)],
        rotaries=rotaries,
        rotary_of=rotary_of,
        num_heads=probe.num_heads,
    )


def _hook_rotaries(
    probe: AttentionProbe, run: Callable[[AttentionProbe], object], *, is_compiled: bool
) -> tuple[list[RotaryShape], dict[int, int]]:
    """Hook every attention module, and keep the hook of one layer for each rotary embedding: it stores for all."""
    hooks = {}
    for index, module in probe.modules.items():
        hook = rotary_hook(index)
        hooks[index] = module.register_forward_pre_hook(untraced(hook) if is_compiled else hook, with_kwargs=True)
    run(probe)
    rotaries: list[RotaryShape] = []
    tables: dict[int, int] = {}  # by id of the cosines
    rotary_of: dict[int, int] = {}
    for index, handle in hooks.items():
        cos = probe.rotaries.get(index)
        if cos is not None and id(cos) not in tables:
            tables[id(cos)] = len(rotaries)
            rotaries.append(RotaryShape(cos.shape[-1], cos.dtype, cos.device))
        else:
            handle.remove()
        if cos is not None:
            rotary_of[index] = tables[id(cos)]
    return rotaries, rotary_of


def _blocks(model: nn.Module, attentions: Sequence[nn.Module]) -> list[nn.Module]:
    """The decoder layers: the parents of the attention modules."""
    names = {id(module): name for name, module in model.named_modules()}
    return [model.get_submodule(names[id(module)].rpartition(".")[0]) for module in attentions]
