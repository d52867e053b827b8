"""Baseline Grad-ELLM: for every token one forward and one backward pass over the whole prefix.

A straightforward implementation without a KV cache, on Transformers' attention, with autograd through all positions.
Its scores equal this engine's, which runs one token's forward and backward pass instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gradellm_engine.attention.ops import AttentionForm, attend, value_gradients, visibility
from gradellm_engine.attribution.grad_ellm import layer_maps, layer_scores
from gradellm_engine.params import GradEllm

_NAME = "gradellm_bench_recompute"
_captured: list[
    tuple[Tensor, Tensor, Tensor, Tensor, AttentionForm]
] = []  # q, k, v, o, form of each layer of the running pass


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ANN401 (Transformers' signature)
) -> tuple[Tensor, None]:
    output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)
    if not output.requires_grad:
        output.requires_grad_()  # the first layer's: with frozen parameters no graph leads to it
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    form = AttentionForm(scaling, window=kwargs.get("sliding_window"))
    _captured.append((query.detach()[0], key.detach()[0], value.detach()[0], output, form))
    return output, None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def recompute_step(model: PreTrainedModel, ids: list[int]) -> tuple[int, Tensor]:
    """The greedy next token after `ids`, and its scores. [S]"""
    attention = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    try:
        with torch.enable_grad():
            input_ids = torch.tensor([ids], device=model.device)
            logits = model(input_ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        chosen = int(logits.argmax())
        gradients = torch.autograd.grad(logits[chosen], [output for _, _, _, output, _ in _captured])
        total = torch.zeros(len(ids), device=model.device)
        for (q, K, V, _, form), gradient in zip(_captured, gradients, strict=True):
            total += _scores(q[:, -1:], K, V, gradient[0, -1:].transpose(0, 1), form)
    finally:
        _captured.clear()
        model.set_attn_implementation(attention)
    return chosen, total.cpu()


def _scores(q: Tensor, K: Tensor, V: Tensor, w: Tensor, form: AttentionForm) -> Tensor:
    """One layer's scores. q, w [H, 1, D or Dv]; K, V [G, S, D or Dv] -> [S]"""
    G, S, _ = K.shape
    first = form.first_visible(S - 1)
    visible = visibility(S - 1, 1, first, S - first, form.window, q.device)
    grouped = [x.reshape(G, -1, *x.shape[1:]).float() for x in (q, w)]
    forward = attend(grouped[0], K[:, first:].float(), V[:, first:].float(), visible, form)
    maps = layer_maps(forward, grouped[1], value_gradients(forward, grouped[1]), GradEllm())
    scores = layer_scores(maps, GradEllm(), visible)
    return torch.nn.functional.pad(scores[0], (first, 0))
