"""All that is replaced in a loaded Transformers model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from torch import nn

from gradellm_engine.layers.batch_invariant import patch_elementwise_modules
from gradellm_engine.layers.gated_mlp import FrozenGatedMLP, replace_gated_mlps
from gradellm_engine.layers.linear import enable_batch_invariance, replace_linears
from gradellm_engine.layers.module_patch import Patch
from gradellm_engine.layers.relevance_rules import RelevanceRules, is_activation
from gradellm_engine.layers.rms_norm import replace_norms
from gradellm_engine.layers.rotary import replace_rotary
from gradellm_engine.layers.rotary_switch import use_rotary_sets
from gradellm_engine.layers.widening import widen_activations

logger = logging.getLogger(__name__)


def apply_patches(
    model: nn.Module, *, rotary_switch: int | None = None, replaces_layers: bool = False, batch_invariant: bool = False
) -> list[Patch]:
    """Replace modules of `model`; return what was replaced, in order. Counts per kind are logged at debug level.

    Args:
        model: a loaded model whose parameters are frozen.
        rotary_switch: tokens up to which a sequence has the short rotary factors; None for a model with one set.
        replaces_layers: whether linear layers, RMS norms and rotary embeddings get faster forms. They pay where the
            layers run eagerly, not where torch.compile fuses them.
        batch_invariant: whether results must not depend on batch composition. The faster forms, and the fused linear
            layers, must be there already.
    """
    patches: list[Patch] = []
    if rotary_switch is not None:
        patches += use_rotary_sets(model, rotary_switch)
    if replaces_layers:
        patches += widen_activations(model)
        patches += replace_gated_mlps(model)  # before linear layers are replaced whose rounding differs
        patches += [*replace_linears(model), *replace_norms(model), *replace_rotary(model)]
    if batch_invariant:
        patches += [*enable_batch_invariance(model), *patch_elementwise_modules(model)]
    for (original, replacement), count in Counter((patch.original, patch.replacement) for patch in patches).items():
        logger.debug("%s: %d x %s now runs as %s", type(model).__name__, count, original, replacement)
    return patches


def add_relevance_rules(model: nn.Module, rules: RelevanceRules, gates: Sequence[str]) -> None:
    """Let activations and gates of `model` have gradients by `rules`.

    Args:
        model: a model whose modules are replaced already.
        rules: tell which tokens have them.
        gates: names of the layers whose outputs are multiplied with each other; empty for none.
    """
    gated_mlps = [module for module in model.modules() if isinstance(module, FrozenGatedMLP)]
    for mlp in gated_mlps:
        mlp.relevance_rules = rules
    inside = {part for mlp in gated_mlps for part in mlp.children()}
    for name, module in model.named_modules():
        if module in inside:
            continue
        if is_activation(module):
            module.register_forward_hook(rules.activation_hook)
        elif name.rpartition(".")[2] in gates:
            module.register_forward_hook(rules.gate_hook)


def undo_patches(patches: Sequence[Patch]) -> None:
    """Put back what `apply_patches` replaced."""
    for patch in reversed(patches):
        patch.undo()
