"""One Transformers decoder over our own key-value slots: any number of sequences in one pass.

The model stays unmodified. A registered AttentionInterface function stands in for its attention: called without a cache
and with explicit positions, it gets only the new tokens' q, k and v, stores k and v in their sequences' slots and lets
each query see what its slot holds. A pass takes several sequences as parts that stand behind one another in one row of
tokens: to all layers but attention they are tokens like any others, and weights are read once for all of them. What a
pass needs travels beside the model, never through its keyword arguments, which some families drop.

An explained pass is one forward and one backward pass through its tokens alone:

    1. The graph starts at the attention output of the lowest selected layer (`anchor`): parameters are frozen, and
       everything below is a constant of the gradients that are read.
    2. Every attention output above is a node of `_PartsAttention`, whose backward pass meets w = dl/do, computes U
       and adds the layer's scores to the heat maps.
    3. The logits' gradient enters below the language-model head by the rows of the explained tokens alone: reading the
       whole head again for one or two rows a token would cost up to a fifth of a step.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from gradellm_engine.attention import (
    Attended,
    AttentionForm,
    attend,
    attention_backward,
    attention_output,
    value_gradients,
    visibility,
)
from gradellm_engine.cpu_linear import OneDnnLinear, use_onednn
from gradellm_engine.errors import UnsupportedModelError
from gradellm_engine.grad_ellm import heat_map, layer_scores
from gradellm_engine.kv_pool import KVPool, KVSlot, LayerShape, RotaryShape
from gradellm_engine.settings import GradEllm, Rotary

ATTENTION_KERNEL = "gradellm"
KEPT_PRODUCTS = 2**20  # of a layer and part, from the forward to the backward pass; more are computed twice


@dataclass(frozen=True)
class Explain:
    """How a part's tokens are explained.

    Attributes:
        switches: the method's; `layers` are explicit indexes.
        domain: the prompt tokens over which similarities are normalised, None for all that a layer sees. [m], bool
    """

    switches: GradEllm
    domain: Tensor | None = None

    @property
    def selected(self) -> tuple[int, ...]:
        """The layers that are summed."""
        layers = self.switches.layers
        if not isinstance(layers, tuple):
            raise ValueError("layers must be explicit indexes by now")
        return layers

    @property
    def needs_unrotated(self) -> bool:
        """Whether queries and keys are compared as they were before the rotary embedding."""
        return self.switches.rotary is Rotary.UNROTATED


@dataclass(frozen=True)
class Part:
    """A sequence's share of a pass.

    Attributes:
        slot: what is known of it.
        ids: the tokens to read.
        explain: None for tokens that are not explained.
        start: position of the first.
        is_new: whether they come into the slot now; False for tokens that it holds and that are read once more.
    """

    slot: KVSlot
    ids: Sequence[int]
    explain: Explain | None
    start: int
    is_new: bool

    @classmethod
    def new(cls, slot: KVSlot, ids: Sequence[int], explain: Explain | None = None) -> Part:
        """Tokens that follow on those that the slot holds."""
        return cls(slot, ids, explain, slot.length, is_new=True)

    @classmethod
    def again(cls, slot: KVSlot, start: int, end: int, explain: Explain) -> Part:
        """The tokens at positions start..end, which the slot holds."""
        return cls(slot, slot.ids[start:end], explain, start, is_new=False)

    @property
    def end(self) -> int:
        """One past the position of the last token."""
        return self.start + len(self.ids)


@dataclass(frozen=True)
class Target:
    """What is differentiated at a token: a logit of the token after it, less another's where one is given."""

    token_id: int
    contrast_id: int | None = None


@dataclass
class _Pass:
    """One pass through the model, as the attention function sees it.

    Attributes:
        parts: the sequences.
        rotary_of: which of the model's rotary embeddings each layer takes.
        places: where each part's tokens stand in the row of all.
        anchor: a leaf that requires a gradient, so that the graph starts where it is passed in; None for no graph.
        lowest: the lowest layer that any part selects.
        totals: the sum of layers' scores so far, for each explained part. [T, S] each
    """

    parts: Sequence[Part]
    rotary_of: Mapping[int, int]
    places: list[slice] = field(default_factory=list)
    anchor: Tensor | None = None
    lowest: int = 0
    totals: dict[int, Tensor] = field(default_factory=dict)
    _visible: dict[tuple[int, int | None, torch.device], Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        end = 0
        for part in self.parts:
            self.places.append(slice(end, end + len(part.ids)))
            end += len(part.ids)

    def visible(self, i: int, first: int, window: int | None, device: torch.device) -> Tensor | None:
        """Which keys from `first` on each of part i's queries sees; computed once for all layers that are alike."""
        part, key = self.parts[i], (i, window, device)
        if key not in self._visible:
            self._visible[key] = visibility(part.start, len(part.ids), first, part.end - first, window, device)
        return self._visible[key]

    def add(self, index: int, scores: Tensor, first: int) -> None:
        """Add a layer's scores [T, N] for the positions first.. to a part's."""
        part = self.parts[index]
        if index not in self.totals:
            self.totals[index] = scores.new_zeros((len(part.ids), part.end))
        total = self.totals[index]
        total[:, first : first + scores.shape[1]] += scores.to(total.device)


@dataclass
class _Meeting:
    """A first look at the model: which modules call our attention, with what shapes and rotary embeddings."""

    modules: dict[int, nn.Module] = field(default_factory=dict)
    shapes: dict[int, LayerShape] = field(default_factory=dict)
    rotaries: dict[int, Tensor] = field(default_factory=dict)  # the cosines; layers that share them share the tensor


_current_pass: ContextVar[_Pass | _Meeting] = ContextVar("gradellm_pass")


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
    index = int(module.layer_idx)  # type: ignore[arg-type]
    if isinstance(current, _Meeting):
        current.modules[index] = module
        current.shapes[index] = LayerShape(key.shape[1], key.shape[3], value.shape[3], key.dtype, key.device)
        return value.new_zeros((1, query.shape[2], query.shape[1], value.shape[3])), None
    form = AttentionForm(
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
        window=kwargs.get("sliding_window"),
    )
    keys, values = key.detach()[0], value.detach()[0]
    for part, place in zip(current.parts, current.places, strict=True):
        if part.is_new:
            part.slot.store(index, part.start, keys[:, place], values[:, place])
    site = _Site(current, module, index, form)
    if current.anchor is None or index < current.lowest:
        return site.output(query), None
    return _PartsAttention.apply(current.anchor, query, key, value, site), None  # type: ignore[no-untyped-call]


AttentionInterface.register("gradellm", _attention)


@dataclass
class _Site:
    """One layer's attention in one pass.

    Attributes:
        run: the pass.
        module: the layer's attention module.
        index: the layer's index.
        form: the layer's kind of attention.
        attended: what the forward pass computed of parts, where the backward pass can go on from it.
    """

    run: _Pass
    module: nn.Module
    index: int
    form: AttentionForm
    attended: dict[int, Attended] = field(default_factory=dict)

    def seen(self, i: int) -> tuple[int, Tensor, Tensor, Tensor | None]:
        """What part i's queries see: the first position, keys and values from there, and which query sees which."""
        part = self.run.parts[i]
        first = self.form.first_visible(part.start)
        K = part.slot.keys(self.index, first, part.end)
        V = part.slot.values(self.index, first, part.end)
        return first, K, V, self.run.visible(i, first, self.form.window, K.device)

    def output(self, query: Tensor) -> Tensor:
        """What the model goes on with; the same numbers whether a token is explained or not. -> [1, T, H, Dv]"""
        outputs = []
        for i, place in enumerate(self.run.places):
            _, K, V, visible = self.seen(i)
            q = _grouped(query[0, :, place], K.shape[0])
            keeps = self._keeps(self.run.parts[i], q, K)
            o, attended = attention_output(q, K, V, visible, self.form, by_hand=keeps)
            if keeps and attended is not None:
                self.attended[i] = attended
            outputs.append(o.flatten(0, 1).transpose(0, 1))  # [T, H, Dv]
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None].contiguous()

    @staticmethod
    def _keeps(part: Part, q: Tensor, K: Tensor) -> bool:
        """Whether the backward pass goes on from the forward pass's products: where they are as exact, and little."""
        G, r, T, _ = q.shape
        is_exact = torch.promote_types(q.dtype, torch.float32) == q.dtype
        return part.explain is not None and is_exact and G * r * T * K.shape[1] <= KEPT_PRODUCTS

    def backward(self, query: Tensor, gradient: Tensor, back: tuple[Tensor, Tensor, Tensor] | None) -> None:
        """Add the layer's scores to the heat maps, and write the gradients into `back`, where the graph goes on.

        In float32 or better.

        Args:
            query: [1, H, T, D]
            gradient: dl/do. [1, T, H, Dv]
            back: dq [1, H, T, D], dk [1, G, T, D], dv [1, G, T, Dv], all zero: what is only read has no target.
        """
        compute = torch.promote_types(query.dtype, torch.float32)
        for i, (part, place) in enumerate(zip(self.run.parts, self.run.places, strict=True)):
            if part.explain is None:
                continue
            first, K, V, visible = self.seen(i)
            q = _grouped(query[0, :, place], K.shape[0]).to(compute)
            w = _grouped(gradient[0, place].transpose(0, 1), K.shape[0]).to(compute)
            forward = self.attended.pop(i, None) or attend(q, K.to(compute), V.to(compute), visible, self.form)
            U = value_gradients(forward, w)
            if self.index in part.explain.selected:
                domain = _domain(part, first, visible, K.device)
                unrotated = self._unrotated(part, first, q, forward.K) if part.explain.needs_unrotated else None
                scores = layer_scores(forward, w, U, part.explain.switches, domain, unrotated)
                self.run.add(i, scores, first)
            if back is not None:
                gradients = attention_backward(forward, w, U, part.start - first)
                back[0][0, :, place] = gradients.dq.flatten(0, 1)
                back[1][0, :, place] = gradients.dk
                back[2][0, :, place] = gradients.dv

    def _unrotated(self, part: Part, first: int, q: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [G, r, T, D] and keys [G, N, D] before the rotary embedding, by the family's own run backwards.

        A rotary embedding multiplies each pair of channels with s (cos, sin): the inverse is (cos, -sin) / (cos^2 +
        sin^2), whatever the pairing, the width or the scaling s.
        """
        table = self.run.rotary_of[self.index]
        rotate = vars(sys.modules[type(self.module).__module__])["apply_rotary_pos_emb"]

        def back(x: Tensor, start: int) -> Tensor:  # [heads, tokens, D]
            cos, sin = (c.to(x.device, x.dtype)[None] for c in part.slot.rotary(table, start, part.end))
            norm = cos.square() + sin.square()
            unrotated: Tensor = rotate(x[None], x[None], cos / norm, -sin / norm)[0][0]
            return unrotated

        return back(q.flatten(0, 1), part.start).view(q.shape), back(K, first)


class _PartsAttention(torch.autograd.Function):
    """Attention of all parts; the keys and values in the slots are constants that autograd never records."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, query: Tensor, key: Tensor, value: Tensor, site: _Site) -> Tensor:  # noqa: ANN401
        ctx.site, ctx.query, ctx.shapes = site, query.detach(), (key.shape, value.shape)
        return site.output(ctx.query)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        site: _Site = ctx.site
        query: Tensor = ctx.query
        if not ctx.needs_input_grad[1]:  # the lowest layer of the graph: nothing below needs a gradient
            site.backward(query, gradients[0], None)
            return None, None, None, None, None
        key, value = ctx.shapes
        back = (torch.zeros_like(query), query.new_zeros(key), query.new_zeros(value))
        site.backward(query, gradients[0], back)
        return None, *back, None


def _grouped(heads: Tensor, num_groups: int) -> Tensor:
    """Query heads by the key-value head that they share. [H, T, D] -> [G, r, T, D]"""
    return heads.reshape(num_groups, -1, *heads.shape[1:])


def _domain(part: Part, first: int, visible: Tensor | None, device: torch.device) -> Tensor | None:
    """Where a part's similarities are normalised in one layer; None for everywhere. [T, N] or [1, N], bool"""
    chosen = part.explain.domain if part.explain is not None else None
    if chosen is None:
        return visible
    inside = torch.nn.functional.pad(chosen, (0, part.end - len(chosen)))[None, first : part.end].to(device)
    return inside if visible is None else inside & visible


class ExplainedPass:
    """A pass whose graph still stands: `logits` first, then the heat maps for the tokens that were chosen.

    Attributes:
        logits: of the token after each token that was read, parts behind one another. [T, V]
    """

    def __init__(self, head: _LogitHead, run: _Pass) -> None:
        self.logits = head.logits.detach()
        self._head = head
        self._run = run

    def heat_maps(self, targets: Sequence[Target | None]) -> list[Tensor]:
        """Scores of each explained part's tokens, in the parts' order: one score a token of the prefix. [T, S] each

        Row t of a part has zeros behind its own position. Can be called once: the backward pass frees the graph.

        Args:
            targets: one for each row of `logits`; None for those of parts that are not explained.
        """
        self._head.backward(targets)
        return [
            heat_map(self._run.totals[i], part.explain.switches)
            for i, part in enumerate(self._run.parts)
            if part.explain is not None
        ]


class _LogitHead:
    """The language-model head in an explained pass, cut out of the graph.

    Behind the head lie at most elementwise steps (soft caps, scales), so that the gradient of one logit by the head's
    outputs is zero but for that token's: its rows of the weight are all that the backward pass needs to read. Where
    the targets are known before, they are all that the forward pass needs, too: its logits are then two a token, the
    target's and the contrast's.

    Attributes:
        logits: what the model made of the head's output. [T, V], or [T, 2]
    """

    logits: Tensor

    def __init__(self, module: nn.Module, known: Sequence[Target] | None = None) -> None:
        self._module = module
        self._columns = None if known is None else _token_ids(known).to(module.weight.device)  # type: ignore[arg-type]
        self._input: Tensor | None = None
        self._leaf: Tensor | None = None
        self._output: Tensor | None = None

    @staticmethod
    def has_rows(module: nn.Module) -> bool:
        """Whether single rows of the head's weight can be read; not where it is quantised, for example."""
        return type(module) in (nn.Linear, OneDnnLinear) and type(module.weight) is nn.Parameter

    @contextmanager
    def cut(self) -> Iterator[None]:
        """While it lasts, the head's output is a leaf of a graph of its own."""
        handle = self._module.register_forward_hook(self._hook)
        whole = vars(self._module).get("forward")
        if self._columns is not None:
            self._module.forward = self._known_logits
        try:
            yield
        finally:
            handle.remove()
            if whole is not None:  # that of accelerate's placement
                self._module.forward = whole
            elif self._columns is not None:
                del self._module.forward

    def _known_logits(self, hidden: Tensor) -> Tensor:
        """[1, T, hidden] -> [1, T, 2]"""
        rows = self._rows(self._columns)
        logits = (rows * hidden[0, :, None].to(rows.device)).sum(-1)
        bias = self._module.bias
        return (logits if bias is None else logits + bias[self._columns])[None]  # type: ignore[index]

    def _rows(self, columns: Tensor | None) -> Tensor:
        """[T, 2] -> [T, 2, hidden]"""
        return self._module.weight[columns]  # type: ignore[index]

    def _hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self._input, self._output = args[0], output
        self._leaf = output.detach().requires_grad_()
        return self._leaf

    def backward(self, targets: Sequence[Target | None]) -> None:
        """Differentiate the sum of the targets through the model."""
        if self._leaf is None or self._output is None or self._input is None:
            raise RuntimeError("the model's language-model head did not run")
        signs = torch.tensor([_signs(target) for target in targets], device=self.logits.device, dtype=self.logits.dtype)
        ids = _token_ids(targets).to(self.logits.device)
        places = ids if self._columns is None else torch.arange(2, device=ids.device).expand_as(ids)
        (gradient,) = torch.autograd.grad((self.logits.gather(1, places) * signs).sum(), self._leaf)  # [1, T, .]
        if not self.has_rows(self._module):
            torch.autograd.backward(self._output, gradient)
            return
        places = places.to(gradient.device)
        weights = gradient[0].gather(1, places)  # [T, 2]
        weights[:, 1] *= places[:, 0] != places[:, 1]  # a place that is both holds the gradient of both
        rows = self._rows(ids.to(gradient.device))
        below = (weights[:, :, None].to(rows.dtype) * rows).sum(1)[None]
        torch.autograd.backward(self._input, below.to(self._input.device))  # a tied head may lie elsewhere


def _token_ids(targets: Sequence[Target | None]) -> Tensor:
    """Target and contrast of each; token 0 stands where there is none. [T, 2]"""
    return torch.tensor(
        [(0, 0) if target is None else (target.token_id, target.contrast_id or 0) for target in targets]
    )


def _signs(target: Target | None) -> tuple[float, float]:
    """What target and contrast count."""
    return (0.0 if target is None else 1.0, 0.0 if target is None or target.contrast_id is None else -1.0)


class Decoder:
    """A frozen Transformers decoder that runs parts of sequences over the slots of its pool.

    Attributes:
        device: where tokens go in.
        layer_shapes: what each attention layer stores.
        pool: the memory of all sequences.
    """

    pool: KVPool

    def __init__(self, model: PreTrainedModel) -> None:
        """Take over `model`: it is frozen, put in evaluation mode and given our attention.

        Raises:
            UnsupportedModelError: where the model does not run with it, or some layer does not go through it.
        """
        model.requires_grad_(False).eval()
        model.set_attn_implementation("gradellm")
        use_onednn(model)
        head = model.get_output_embeddings()
        if head is None:
            raise UnsupportedModelError(f"{type(model).__name__} has no language-model head")
        self._model = model
        self._head: nn.Module = head
        self.device = model.get_input_embeddings().weight.device
        self._chooses_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        with torch.no_grad():
            self.layer_shapes, self._rotaries, self._rotary_of = self._meet()

    def _meet(self) -> tuple[list[LayerShape], list[RotaryShape], dict[int, int]]:
        """Run one token, to learn what each layer stores and which rotary embedding it takes."""
        meeting = _Meeting()
        self._run(torch.zeros((2, 1), dtype=torch.long), meeting, self._model)
        expected = self._model.config.get_text_config(decoder=True).num_hidden_layers
        if expected < 1 or sorted(meeting.modules) != list(range(expected)):
            raise UnsupportedModelError(
                f"{type(self._model).__name__}: {len(meeting.modules)} of {expected} layers go through "
                "Transformers' AttentionInterface; all must"
            )
        hooks = {
            index: module.register_forward_pre_hook(_noting_rotary(index), with_kwargs=True)
            for index, module in meeting.modules.items()
        }
        self._run(torch.zeros((2, 1), dtype=torch.long), meeting, self._model)
        shapes: list[RotaryShape] = []
        tables: dict[int, int] = {}
        rotary_of: dict[int, int] = {}
        for index, hook in hooks.items():
            cos = meeting.rotaries.get(index)
            if cos is not None and id(cos) not in tables:
                tables[id(cos)] = len(shapes)  # one layer notes it for all that share it
                shapes.append(RotaryShape(cos.shape[-1], cos.dtype, cos.device))
            else:
                hook.remove()
            if cos is not None:
                rotary_of[index] = tables[id(cos)]
        return [meeting.shapes[index] for index in range(expected)], shapes, rotary_of

    @property
    def num_layers(self) -> int:
        """Attention layers."""
        return len(self.layer_shapes)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of key-value memory that a token takes, on all devices together."""
        layers = sum(shape.bytes_per_token for shape in self.layer_shapes)
        return layers + sum(shape.bytes_per_token for shape in self._rotaries)

    def allocate_pool(self, num_tokens: int) -> None:
        """Make room for so many tokens of all sequences together."""
        self.pool = KVPool(self.layer_shapes, self._rotaries, num_tokens)

    def read(self, parts: Sequence[Part]) -> None:
        """Read the parts' tokens into their slots; nothing else is wanted of them. Returns once they are read."""
        with torch.no_grad():
            last = self._forward(_Pass(parts, self._rotary_of), self._model.base_model)
        if last.is_cuda:  # a GPU works behind; who takes the time would charge it to the pass that waits for a result
            torch.cuda.synchronize(last.device)

    def step(self, parts: Sequence[Part]) -> Tensor:
        """Read the parts' tokens; the logits of the token after each part's last. [B, V]"""
        run = _Pass(parts, self._rotary_of)
        rows = torch.tensor([place.stop - 1 for place in run.places], device=self.device)
        with torch.no_grad():
            if self._chooses_logits:
                return self._forward(run, self._model, logits_to_keep=rows)[0]
            return self._forward(run, self._model)[0, rows]

    def explained_pass(self, parts: Sequence[Part], known: Sequence[Target] | None = None) -> ExplainedPass:
        """Read the parts' tokens with a graph that explains what comes after each of them, where a part says how.

        `known` are the targets of all tokens where they are known already; only their logits are then computed.
        """
        selected = [part.explain.selected for part in parts if part.explain is not None]
        anchor = torch.zeros((), device=self.device, requires_grad=True)
        run = _Pass(parts, self._rotary_of, anchor=anchor, lowest=min(layers[0] for layers in selected))
        head = _LogitHead(self._head, known if _LogitHead.has_rows(self._head) else None)
        with torch.enable_grad(), head.cut():
            head.logits = self._forward(run, self._model)[0]
        return ExplainedPass(head, run)

    def replay(self, parts: Sequence[Part], targets: Sequence[Target]) -> list[Tensor]:
        """Explain tokens whose targets are known: as `explained_pass`, at a lower price."""
        return self.explained_pass(parts, targets).heat_maps(targets)

    def _forward(self, run: _Pass, model: nn.Module, **kwargs: Any) -> Tensor:  # noqa: ANN401 (passed on)
        """One pass through the model: its first output, for all tokens or for those it is told to. [1, T, .]"""
        ids = [token_id for part in run.parts for token_id in part.ids]
        positions = [position for part in run.parts for position in range(part.start, part.end)]
        first = self._run(torch.tensor([ids, positions]), run, model, **kwargs)
        for part in run.parts:
            if part.is_new:
                part.slot.ids += part.ids
        return first

    def _run(self, ids_and_positions: Tensor, run: _Pass | _Meeting, model: nn.Module, **kwargs: Any) -> Tensor:  # noqa: ANN401
        row = ids_and_positions.to(self.device)
        token = _current_pass.set(run)
        try:
            output = model(input_ids=row[:1], position_ids=row[1:], use_cache=False, return_dict=True, **kwargs)
        finally:
            _current_pass.reset(token)
        first: Tensor = output[0]
        return first


def _noting_rotary(index: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """A hook before an attention module that notes its rotary embedding, of new tokens in their slots."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current, embeddings = _current_pass.get(None), kwargs.get("position_embeddings")
        if embeddings is None or current is None:
            return
        if isinstance(current, _Meeting):
            current.rotaries[index] = embeddings[0]
            return
        for part, place in zip(current.parts, current.places, strict=True):
            if part.is_new:
                cosines, sines = part.slot.rotary(current.rotary_of[index], part.start, part.end)
                cosines.copy_(embeddings[0][0, place])
                sines.copy_(embeddings[1][0, place])

    return note
