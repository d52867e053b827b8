"""One Transformers decoder over our own key-value slots: prefill, decode step, explained decode step.

The model stays unmodified. A registered AttentionInterface function stands in for its attention: called without a cache
and with explicit positions, it gets only the new tokens' q, k and v, stores k and v in the pass's slot and lets the
query see what the slot holds. What a pass needs travels beside the model, never through its keyword arguments, which
some families drop.

An explained step is one forward and one backward pass through a single token:

    1. The graph starts at the attention output of the lowest selected layer (`anchor`): parameters are frozen, and
       everything below is a constant of the gradients that are read.
    2. Every attention output above is a node of `_OneQueryAttention`, whose backward pass meets w = dl/do, computes U
       and leaves the layer's contribution to the heat map.
    3. The logits' gradient enters below the language-model head by the rows of the explained tokens alone: reading the
       whole head again for one or two rows would cost up to a fifth of a step.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from gradellm_engine.attention import (
    AttentionForm,
    OneQuery,
    many_queries_forward,
    one_query_backward,
    one_query_forward,
    one_query_output,
    value_gradients,
)
from gradellm_engine.errors import UnsupportedModelError
from gradellm_engine.grad_ellm import LayerContribution, layer_contribution
from gradellm_engine.kv_slot import KVSlot, LayerBuffers
from gradellm_engine.settings import GradEllm, Rotary

ATTENTION_KERNEL = "gradellm one-query"


@dataclass
class _Explanation:
    """What an explained step gathers.

    Attributes:
        switches: the method's switches.
        selected: the layers that contribute, ascending.
        anchor: a leaf that requires a gradient, so that the graph starts where it is passed in.
        contributions: filled by the backward pass, by layer.
    """

    switches: GradEllm
    selected: tuple[int, ...]
    anchor: Tensor
    contributions: dict[int, LayerContribution] = field(default_factory=dict)


@dataclass
class _Pass:
    """One forward pass through the model, as the attention function sees it.

    Attributes:
        slot: where keys and values are.
        start: position of the first new token.
        explanation: set for an explained step.
        rotary_embeddings: cosines and sines by attention module, kept where the unrotated query and key are wanted.
    """

    slot: KVSlot
    start: int
    explanation: _Explanation | None = None
    rotary_embeddings: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)
    attention_modules: dict[int, nn.Module] = field(default_factory=dict)


_current_pass: ContextVar[_Pass] = ContextVar("gradellm_pass")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,  # noqa: ANN401 (Transformers' contract)
) -> tuple[Tensor, None]:
    """Transformers' attention contract. query [1, H, T, D]; key, value [1, G, T, D or Dv]; returns [1, T, H, Dv]."""
    current = _current_pass.get(None)
    if current is None:
        raise RuntimeError("this model belongs to a gradellm Decoder; call it through one")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    form = AttentionForm(
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
        window=kwargs.get("sliding_window"),
    )
    current.attention_modules[layer] = module
    unrotated = _unrotated(module, query, key, current)
    buffers = current.slot.layer(layer, key[0], value[0])
    buffers.write(current.start, key[0].detach(), value[0].detach(), None if unrotated is None else unrotated[1][0])
    T = query.shape[2]
    if T > 1:
        end = current.start + T
        o = many_queries_forward(query[0], buffers.keys[:, :end], buffers.values[:, :end], current.start, form)
        return o.transpose(0, 1)[None].contiguous(), None
    site = _Site(current, layer, form, buffers, None if unrotated is None else unrotated[0])
    explanation = current.explanation
    if explanation is None or layer < explanation.selected[0]:
        return site.output(query), None
    return _OneQueryAttention.apply(explanation.anchor, query, key, value, site), None  # type: ignore[no-untyped-call]


AttentionInterface.register("gradellm", _attention)


@dataclass
class _Site:
    """One layer's attention in one single-token pass.

    Attributes:
        run: the pass.
        layer: the layer's index.
        form: the layer's kind of attention.
        buffers: its keys and values.
        unrotated_query: before the rotary embedding, where wanted. [1, H, 1, D]
    """

    run: _Pass
    layer: int
    form: AttentionForm
    buffers: LayerBuffers
    unrotated_query: Tensor | None

    @property
    def visible(self) -> slice:
        """The positions that the query sees."""
        return slice(self.form.first_visible(self.run.start), self.run.start + 1)

    def output(self, query: Tensor) -> Tensor:
        """What the model goes on with; the same numbers whether the step is explained or not. -> [1, 1, H, Dv]"""
        K, V = self.buffers.keys[:, self.visible], self.buffers.values[:, self.visible]
        return one_query_output(_grouped(query, K.shape[0]), K, V, self.form).reshape(1, 1, query.shape[1], -1)

    def weights(self, query: Tensor) -> OneQuery:
        """What the backward pass and the heat map need, in float32 or better. [1, H, 1, D]"""
        compute = torch.promote_types(query.dtype, torch.float32)
        K = self.buffers.keys[:, self.visible].to(compute)
        V = self.buffers.values[:, self.visible].to(compute)
        return one_query_forward(_grouped(query, K.shape[0]).to(compute), K, V, self.form)

    def contribute(self, forward: OneQuery, w: Tensor, U: Tensor) -> None:
        """Leave the layer's contribution to the heat map, where the layer is selected."""
        explanation = self.run.explanation
        if explanation is None or self.layer not in explanation.selected:
            return
        unrotated = None
        if self.unrotated_query is not None and self.buffers.unrotated_keys is not None:
            keys = self.buffers.unrotated_keys[:, self.visible].to(U.dtype)
            unrotated = (_grouped(self.unrotated_query, keys.shape[0]).to(U.dtype), keys)
        explanation.contributions[self.layer] = layer_contribution(
            forward, w, U, self.visible.start, explanation.switches, unrotated
        )


class _OneQueryAttention(torch.autograd.Function):
    """One query's attention; the keys and values before it are plain buffers, constants that autograd never records."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, query: Tensor, key: Tensor, value: Tensor, site: _Site) -> Tensor:  # noqa: ANN401
        ctx.site, ctx.query = site, query.detach()
        return site.output(query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        site: _Site = ctx.site
        (gradient,) = gradients  # [1, 1, H, Dv]
        forward = site.weights(ctx.query)
        w = gradient.reshape(*forward.q.shape[:2], -1).to(forward.q.dtype)  # [G, r, Dv]
        U = value_gradients(forward, w)
        site.contribute(forward, w, U)
        if not ctx.needs_input_grad[1]:
            return None, None, None, None, None  # the lowest layer of the graph: nothing below needs a gradient
        back = one_query_backward(forward, w, U, site.form)
        dtype = gradient.dtype
        return (
            None,
            back.dq.reshape(1, -1, 1, back.dq.shape[-1]).to(dtype),
            back.dk[None, :, None].to(dtype),
            back.dv[None, :, None].to(dtype),
            None,
        )


def _grouped(query: Tensor, num_key_value_heads: int) -> Tensor:
    """Query heads by the key-value head that they share. [1, H, 1, D] -> [G, r, D]"""
    return query.reshape(num_key_value_heads, -1, query.shape[-1])


def _unrotated(module: nn.Module, query: Tensor, key: Tensor, current: _Pass) -> tuple[Tensor, Tensor] | None:
    """Query and key before the rotary embedding, by the family's own rotation run backwards.

    A rotary embedding multiplies each pair of channels with s (cos, sin): the inverse is (cos, -sin) / (cos^2 + sin^2),
    whatever the pairing, the width or the scaling s.
    """
    embeddings = current.rotary_embeddings.get(module)
    if embeddings is None:
        return None
    cos, sin = embeddings
    norm = cos.square() + sin.square()
    rotate = vars(sys.modules[type(module).__module__])["apply_rotary_pos_emb"]
    with torch.no_grad():
        unrotated: tuple[Tensor, Tensor] = rotate(query.detach(), key.detach(), cos / norm, -sin / norm)
    return unrotated


class ExplainedStep:
    """A decode step whose graph still stands: `logits` first, then `contributions` for the token that was chosen.

    Attributes:
        logits: of the next token. [V]
    """

    def __init__(self, logits: Tensor, head: _LogitHead, explanation: _Explanation) -> None:
        self.logits = logits.detach()
        self._graph_logits = logits
        self._head = head
        self._explanation = explanation

    def contributions(self, target_id: int, contrast_id: int | None = None) -> list[LayerContribution]:
        """Each selected layer's contribution to the target's logit, less the contrast's where one is given.

        Can be called once: the backward pass frees the graph.
        """
        target = self._graph_logits[target_id]
        tokens = [target_id]
        if contrast_id is not None:
            target = target - self._graph_logits[contrast_id]
            tokens.append(contrast_id)
        self._head.backward(target, sorted(set(tokens)))
        return [self._explanation.contributions[layer] for layer in self._explanation.selected]


class _LogitHead:
    """The language-model head in an explained step, cut out of the graph.

    Behind the head lie at most elementwise steps (soft caps, scales), so that the gradient of one logit by the head's
    outputs is zero but for that token's: its rows of the weight are all that the backward pass needs to read.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._leaf: Tensor | None = None

    @contextmanager
    def cut(self) -> Iterator[None]:
        """While it lasts, the head's output is a leaf of a graph of its own."""
        handle = self._module.register_forward_hook(self._hook)
        try:
            yield
        finally:
            handle.remove()

    def _hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self._input, self._output = args[0], output
        self._leaf = output.detach().requires_grad_()
        return self._leaf

    def backward(self, target: Tensor, token_ids: list[int]) -> None:
        """Differentiate `target`, a function of these tokens' logits alone, through the model."""
        if self._leaf is None or self._output is None or self._input is None:
            raise RuntimeError("the model's language-model head did not run")
        (gradient,) = torch.autograd.grad(target, self._leaf)  # [1, 1, V]
        if type(self._module) is nn.Linear:
            rows = self._module.weight[token_ids]  # [1 or 2, hidden]
            torch.autograd.backward(self._input, gradient[..., token_ids].to(rows.dtype) @ rows)
        else:  # a quantised head, for example, has no rows to read
            torch.autograd.backward(self._output, gradient)


class Decoder:
    """A frozen Transformers decoder that runs one sequence at a time over a slot.

    Attributes:
        num_layers: attention layers, as met in a first pass.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Take over `model`: it is frozen, put in evaluation mode and given our attention.

        Raises:
            UnsupportedModelError: where the model does not run with it, or some layer does not go through it.
        """
        model.requires_grad_(False).eval()
        model.set_attn_implementation("gradellm")
        head = model.get_output_embeddings()
        if head is None:
            raise UnsupportedModelError(f"{type(model).__name__} has no language-model head")
        self._model = model
        self._head: nn.Module = head
        self._device = model.get_input_embeddings().weight.device
        last_logits_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._extra: dict[str, Any] = {"logits_to_keep": 1} if last_logits_only else {}
        self._attention_modules = self._meet_attention_modules()
        self.num_layers = len(self._attention_modules)

    def _meet_attention_modules(self) -> dict[int, nn.Module]:
        """Run one token, to learn which modules call our attention; all layers must."""
        first = _Pass(KVSlot(capacity=1), start=0)
        with torch.no_grad():
            self._forward(torch.zeros(1, dtype=torch.long), first)
        expected = self._model.config.get_text_config(decoder=True).num_hidden_layers
        if expected < 1 or sorted(first.attention_modules) != list(range(expected)):
            raise UnsupportedModelError(
                f"{type(self._model).__name__}: {len(first.attention_modules)} of {expected} layers go through "
                "Transformers' AttentionInterface; all must"
            )
        return first.attention_modules

    def prefill(self, ids: list[int], slot: KVSlot, switches: GradEllm | None = None) -> None:
        """Read `ids` into the slot, after what it holds; no logits, no gradient. `switches` as for the later steps."""
        current = _Pass(slot, slot.length)
        with torch.no_grad(), self._keeping_rotary(current, switches):
            self._forward(torch.tensor(ids), current)
        slot.length += len(ids)

    def step(self, token_id: int, slot: KVSlot) -> Tensor:
        """Read one token and return the next one's logits. [V]"""
        with torch.no_grad():
            logits = self._forward(torch.tensor([token_id]), _Pass(slot, slot.length))
        slot.length += 1
        return logits

    def explained_step(self, token_id: int, slot: KVSlot, switches: GradEllm) -> ExplainedStep:
        """Read one token and return the next one's logits, with the graph that explains them."""
        explanation = _Explanation(
            switches,
            switches.selected_layers(self.num_layers),
            torch.zeros((), device=self._device, requires_grad=True),
        )
        current = _Pass(slot, slot.length, explanation)
        head = _LogitHead(self._head)
        with torch.enable_grad(), head.cut(), self._keeping_rotary(current, switches):
            logits = self._forward(torch.tensor([token_id]), current)
        slot.length += 1
        return ExplainedStep(logits, head, explanation)

    def _forward(self, ids: Tensor, current: _Pass) -> Tensor:
        """One pass through the model. [T] -> the last position's logits, [V]"""
        positions = torch.arange(current.start, current.start + ids.shape[0], device=self._device)
        token = _current_pass.set(current)
        try:
            output = self._model(
                input_ids=ids.to(self._device)[None], position_ids=positions[None], use_cache=False, **self._extra
            )
        finally:
            _current_pass.reset(token)
        logits: Tensor = output.logits[0, -1]
        return logits

    @contextmanager
    def _keeping_rotary(self, current: _Pass, switches: GradEllm | None) -> Iterator[None]:
        """Have every attention module's rotary embeddings noted in the pass, where the switches need them."""
        with ExitStack() as hooks:
            if switches is not None and switches.rotary is Rotary.UNROTATED:
                for module in self._attention_modules.values():
                    handle = module.register_forward_pre_hook(_noting_rotary(current), with_kwargs=True)
                    hooks.callback(handle.remove)
            yield


def _noting_rotary(current: _Pass) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current.rotary_embeddings[module] = kwargs["position_embeddings"]

    return note
