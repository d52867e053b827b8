"""A reference implementation of Grad-ELLM in float64: the formulas of docs/methods/grad_ellm.md, term by term.

It runs the whole prefix without a KV cache, with Transformers' eager attention and autograd. Queries, keys and values
are taken from the projections and rotated here; gradellm_engine provides only the names of the options.
"""

from __future__ import annotations

import itertools
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.masking_utils import eager_mask

from gradellm_engine.model.families import FAMILIES
from gradellm_engine.params import (
    GradEllm,
    Gradient,
    Loosening,
    Magnitude,
    NormaliseOver,
    Rectify,
    Rotary,
    Similarity,
    Sink,
)

Captured = dict[str, Tensor]

LAYER_CHOICES = itertools.cycle([None, 1, (0, 2), None, 2, (1,)])
# Every defined combination of values, with the layers in turn, for tests/engine/test_oracle.py. A new switch belongs
# here and in `layer_scores`.
SWITCHES = [
    GradEllm(similarity=s, rotary=p, rectify=r, normalise_over=n, layers=next(LAYER_CHOICES))
    for s, p, r, n in itertools.product(Similarity, Rotary, Rectify, NormaliseOver)
    if r is not Rectify.PER_HEAD
]
SWITCHES += [
    GradEllm(loosening=Loosening.NONE, rectify=r, layers=layers, sink=s)
    for r in Rectify
    for layers, s in itertools.product((None, 1), Sink)
]
SWITCHES += [
    GradEllm(loosening=Loosening.NONE, rectify=r, magnitude=m, layers=layers, sink=s)
    for m, r in (*((m, Rectify.NONE) for m in Magnitude), (Magnitude.KNOCKOUT, Rectify.PER_HEAD))
    for layers, s in itertools.product((None, (0, 1)), Sink)
]
SWITCHES += [
    GradEllm(similarity=s, normalise_over=n, layers=next(LAYER_CHOICES), sink=Sink.EXCLUDE)
    for s, n in itertools.product(Similarity, NormaliseOver)
]
SWITCHES += [
    GradEllm(gradient=Gradient.RELEVANCE, layers=(0, 2)),
    *(
        GradEllm(loosening=Loosening.NONE, rectify=r, magnitude=m, sink=s, gradient=Gradient.RELEVANCE)
        for m, r in (*((m, Rectify.NONE) for m in Magnitude), (Magnitude.KNOCKOUT, Rectify.PER_HEAD))
        for s in Sink
    ),
]


@dataclass(frozen=True)
class Layer:
    """One layer's attention at the last position, key-value heads repeated; float64."""

    q: Tensor  # [H, D]
    k: Tensor  # [H, S, D]
    q_unrotated: Tensor
    k_unrotated: Tensor
    v: Tensor  # [H, S, D]
    w: Tensor  # [H, D]
    weights: Tensor  # [H, S]
    visible: Tensor  # [S], bool


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding of x [heads, S, D], which pairs the two halves of the width."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Oracle:
    """The reference for Llama and Mistral models."""

    def __init__(self, path: Path, attention: str = "eager") -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation=attention)
        self.model.eval()

    def layers(
        self, ids: list[int], target: int, contrast: int | None = None, gradient: Gradient = Gradient.TRUE
    ) -> list[Layer]:
        config, runner = self.model.config, self.model.model
        S, H, G, D = len(ids), config.num_attention_heads, config.num_key_value_heads, config.head_dim
        window = getattr(config, "sliding_window", None) or S
        captured: list[Captured] = [{} for _ in runner.layers]
        with ExitStack() as hooks:
            if gradient is Gradient.RELEVANCE:
                propagate_relevance(hooks, self.model)
                for layer in runner.layers:
                    for module in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                        hooks.callback(module.register_forward_hook(lambda m, args, output: output.detach()).remove)
            for store, layer in zip(captured, runner.layers, strict=True):
                for name in ("q_proj", "k_proj", "v_proj"):

                    def keep(_m: Any, _args: Any, output: Tensor, store: Captured = store, name: str = name) -> None:
                        store[name] = output.detach()[0].view(S, -1, D).transpose(0, 1)

                    hooks.callback(getattr(layer.self_attn, name).register_forward_hook(keep).remove)

                def keep_output(_m: Any, args: tuple[Tensor, ...], store: Captured = store) -> None:
                    args[0].retain_grad()
                    store["o"] = args[0]

                hooks.callback(layer.self_attn.o_proj.register_forward_pre_hook(keep_output).remove)
            logits = self.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        (logits[target] - (0 if contrast is None else logits[contrast])).backward()
        cos, sin = runner.rotary_emb(logits[None], torch.arange(S)[None])
        visible = torch.arange(S) > S - 1 - window
        layers = []
        for store in captured:
            q = rotate(store["q_proj"], cos[0], sin[0])[:, -1]
            k = rotate(store["k_proj"], cos[0], sin[0]).repeat_interleave(H // G, 0)
            logits = torch.einsum("hd,hsd->hs", q, k) / D**0.5
            layers.append(
                Layer(
                    q=q,
                    k=k,
                    q_unrotated=store["q_proj"][:, -1],
                    k_unrotated=store["k_proj"].repeat_interleave(H // G, 0),
                    v=store["v_proj"].repeat_interleave(H // G, 0),
                    w=gradient_by(store["o"])[0, -1].view(H, D),
                    weights=logits.masked_fill(~visible, -torch.inf).softmax(-1),
                    visible=visible,
                )
            )
        return layers


class FamilyOracle:
    """The reference for every family: inputs and outputs of Transformers' eager attention, with autograd.

    It does not know queries and keys before the rotary embedding.
    """

    def __init__(self, path: Path) -> None:
        AttentionInterface.register("watched", self._watched)
        AttentionMaskInterface.register("watched", eager_mask)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="watched")
        self.model.eval()
        with suppress(AttributeError, ValueError):
            self.model.set_experts_implementation("eager")  # the default does not support float64
        self._calls: dict[int, dict[str, Tensor]] = {}
        self._gradient = Gradient.TRUE

    def _watched(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        eager = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        if self._gradient is Gradient.RELEVANCE:
            query, key = query.detach(), key.detach()
        o, weights = eager(module, query, key, value, mask, **kwargs)
        o.retain_grad()
        self._calls[module.layer_idx] = {"q": query, "k": key, "v": value, "weights": weights, "o": o}
        return o, weights

    def layers(self, ids: list[int], target: int, gradient: Gradient = Gradient.TRUE) -> list[Layer]:
        self._gradient = gradient
        with ExitStack() as hooks:
            if gradient is Gradient.RELEVANCE:
                propagate_relevance(hooks, self.model)
            logits = self.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[target].backward()
        layers = []
        for _, call in sorted(self._calls.items()):
            q, k, v = (call[name].detach()[0] for name in "qkv")
            weights, repeats = call["weights"].detach()[0, :, -1], q.shape[0] // k.shape[0]
            k, v = k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0)
            w = gradient_by(call["o"])[0, -1]
            layers.append(Layer(q[:, -1], k, q[:, -1], k, v, w, weights, visible=(weights > 0).any(0)))
        return layers


def heat_map(layers: list[Layer], switches: GradEllm, prompt_mask: Tensor, user_mask: Tensor) -> Tensor:
    """H, of docs/methods/grad_ellm.md, over the layers that `switches` selects. [S]"""
    selected = switches.layers
    if isinstance(selected, int):
        layers = layers[-selected:]
    elif selected is not None:
        layers = [layers[index] for index in selected]
    total = torch.zeros(layers[0].visible.shape[0], dtype=torch.float64)
    for layer in layers:
        h = layer_scores(layer, switches, prompt_mask, user_mask)
        total += h.clamp_min(0) if switches.rectify is Rectify.PER_LAYER else h
    return total.clamp_min(0) if switches.rectify is Rectify.TOTAL else total


def layer_scores(layer: Layer, switches: GradEllm, prompt_mask: Tensor, user_mask: Tensor) -> Tensor:
    S = layer.k.shape[1]
    is_source = torch.arange(S) > 0 if switches.sink is Sink.EXCLUDE else torch.ones(S, dtype=torch.bool)
    if switches.loosening is Loosening.NONE:
        weights = layer.weights
        if switches.sink is Sink.EXCLUDE:
            weights = torch.zeros_like(layer.weights)
            for head, row in enumerate(layer.weights):
                if (rest := row[1:].sum()) >= 1e-12:
                    weights[head, 1:] = row[1:] / rest
        effects = torch.einsum("hd,hsd->hs", layer.w, layer.v)
        mean = (weights * effects).sum(-1, keepdim=True)
        if switches.rectify is Rectify.PER_HEAD:
            center = mean if switches.magnitude is Magnitude.KNOCKOUT else 0
            return (weights * (effects - center)).clamp_min(0).sum(0)
        if switches.magnitude is Magnitude.SIGNED_SUM:
            return (weights * effects).sum(0)
        if switches.magnitude is Magnitude.HEAD_ABS:
            return (weights * effects).abs().sum(0)
        if switches.magnitude is Magnitude.CHANNEL_ABS:
            return (weights[..., None] * layer.w[:, None] * layer.v).abs().sum((0, 2))
        return (weights * (effects - mean)).abs().sum(0)
    q, k = (layer.q_unrotated, layer.k_unrotated) if switches.rotary is Rotary.UNROTATED else (layer.q, layer.k)
    q, k = q.reshape(-1), k.transpose(0, 1).reshape(S, -1)  # heads concatenated
    s = k @ q
    if switches.similarity is Similarity.COSINE:
        s = s / (q.norm() * k.norm(dim=-1))
    domain = {
        NormaliseOver.VISIBLE: layer.visible,
        NormaliseOver.PROMPT: layer.visible & prompt_mask,
        NormaliseOver.USER: layer.visible & user_mask,
    }[switches.normalise_over] & is_source
    u = torch.einsum("hd,hsd->s", layer.w, layer.v)
    h = torch.zeros(S, dtype=torch.float64)
    if domain.any() and s[domain].max() > s[domain].min():
        low, high = s[domain].min(), s[domain].max()
        h[domain] = (s[domain] - low) / (high - low) * u[domain]
    return h


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of `expected`; if that is zero, 0 for equal tensors, else infinity."""
    norm = expected.norm().item()
    difference = (actual.double() - expected).norm().item()
    if norm == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / norm


def propagate_relevance(hooks: ExitStack, model: Any) -> None:
    """Give activations a constant slope f(x) / x, and gates and values half of their product's gradient."""
    gates = FAMILIES[model.config.model_type].gates or ()

    def constant_slope(_m: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        return torch.where(x == 0, 0, output / x).detach() * x

    def half(_m: Any, args: Any, output: Tensor) -> Tensor:
        return output * 0.5 + output.detach() * 0.5

    for name, module in model.named_modules():
        if name.endswith(("act_fn", ".act", "activation_fn", "activation")):
            hooks.callback(module.register_forward_hook(constant_slope).remove)
        elif name.split(".")[-1] in gates:
            hooks.callback(module.register_forward_hook(half).remove)


def gradient_by(tensor: Tensor) -> Tensor:
    """The gradient of a tensor after a backward pass."""
    assert tensor.grad is not None
    return tensor.grad
