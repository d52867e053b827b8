"""The tensors of one explained decode step: attention of all layers at the last position, and the target's gradients.

One pass without gradients leaves the layers' keys and values, as a prefill does. Then the last token goes through the
model, forward and backward, over them. The formulas of `formulas` take nothing else. A replay does the same with more
positions; with all of them it is a full backward pass.

Shapes: L layers, H query heads, G key-value heads, r = H / G, D head width, S tokens of the prefix, T positions that
are differentiated, h hidden width, B sequences of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gradellm_engine.attention.ops import AttentionForm, AttentionState, attend, grouped, grouped_matmul
from gradellm_engine.methods.gradients.relevance import relevance_rules
from gradellm_engine.methods.post_hoc import CompletionContext, CompletionModel
from gradellm_engine.model.loader import LoadedModel
from gradellm_engine.passes.base import Target
from gradellm_engine.passes.full_sequence import FullSequenceAttention, SequenceAttention, ungrouped


@dataclass(frozen=True)
class StepTensors:
    """What one decode step and its backward pass compute, in float64.

    Attributes:
        A: attention weights of the last position; 0 outside of a window. [L, H, S]
        U: w . v_i of each head for each of OBJECTIVES, w its gradient by the attention output. [L, H, S] each
        W: w of the logit. [L, H, D]
        Q: queries of the last position. [L, H, D]
        V: values. [L, G, S, D]
        scaling: factor of query-key products. [L]
        residual_products: the logit's gradient by each layer's input at the last position, times that input at token
            i; the last row is of the last layer's output. [L + 1, S]
        mixing: attention weights of all positions, the mean over heads. [L, S, S]
        value_mixing: attention weights times the values' L2 norms, the sum over heads. [L, S, S]
        drops: the logit minus the logit without token i in the last position's attention. [S]
    """

    A: Tensor
    U: Mapping[str, Tensor]
    W: Tensor
    Q: Tensor
    V: Tensor
    scaling: Tensor
    residual_products: Tensor
    mixing: Tensor
    value_mixing: Tensor
    drops: Tensor


@dataclass(frozen=True)
class ReplayTensors:
    """What a backward pass through T positions computes, in float64.

    Attributes:
        positions: the positions. [T]
        A: their attention weights. [L, H, T, S]
        U: w . v_i of each head. [L, H, T, S]
        products: the gradients by the first layer's inputs, times these. [T]
        norms: the gradients' L2 norms. [T]
    """

    positions: Tensor
    A: Tensor
    U: Tensor
    products: Tensor
    norms: Tensor


@dataclass
class StepAttention(SequenceAttention):
    """Attention of T tokens of a prefix, over the keys and values that a prefill left of the others.

    Attributes:
        prefix: keys [G, S, D] and values [G, S, D] of each layer.
        positions: of the tokens, in order; a decode step has the last one alone. [T]
        removed: the token that each sequence of the batch does not see, -1 for none. [B]
        weights_are_constant: whether gradients treat attention weights as constants.
        states: each layer's attention.
        outputs: each layer's attention output, as part of the graph. [B, G, r, T, D]
    """

    prefix: Sequence[tuple[Tensor, Tensor]]
    positions: Tensor
    removed: Tensor | None = None
    weights_are_constant: bool = False
    states: dict[int, AttentionState] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)

    def output(self, index: int, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """See `SequenceAttention`."""
        K, V = (
            before.expand(len(query), -1, -1, -1).index_copy(2, self.positions, own)
            for before, own in zip(self.prefix[index], (key, value), strict=True)
        )
        state = attend(grouped(query, key.shape[1]), K, V, self._visible(K.shape[2], form), form)
        o = grouped_matmul(state.A.detach(), state.V) if self.weights_are_constant else state.output()
        self.states[index], self.outputs[index] = state, o
        return ungrouped(o)

    def _visible(self, S: int, form: AttentionForm) -> Tensor:
        """Which tokens each query sees. [T, S] or [B, T, S], bool"""
        key, query = torch.arange(S), self.positions[:, None]
        visible = key <= query
        if form.window is not None:
            visible = visible & (key > query - form.window)
        return visible if self.removed is None else visible & (key != self.removed[:, None, None])


@dataclass(frozen=True)
class Objective:
    """What is differentiated, and how.

    Attributes:
        value: from logits [V] and the target to a scalar.
        rules: changes the gradients of modules for the duration of a block; None for true gradients.
        weights_are_constant: whether gradients treat attention weights as constants.
    """

    value: Callable[[Tensor, int], Tensor]
    rules: Callable[[CompletionModel], AbstractContextManager[None]] | None = None
    weights_are_constant: bool = False


def logit(logits: Tensor, target: int) -> Tensor:
    """The target's logit."""
    return logits[target]


def contrast(logits: Tensor, target: int) -> Tensor:
    """The target's logit minus that of the likeliest other token."""
    others = logits.detach().clone()
    others[target] = -torch.inf
    return logits[target] - logits[others.argmax()]


LOGIT = Objective(logit)
RELEVANCE = Objective(logit, relevance_rules, weights_are_constant=True)
OBJECTIVES: Mapping[str, Objective] = {"logit": LOGIT, "contrast": Objective(contrast), "relevance": RELEVANCE}
"""Those of `StepTensors.U`, by name."""


class StepCapture:
    """A prefix, whose last step or a replay of it is captured.

    Attributes:
        model: the model as a function of the prefix.
        target: the token that is explained.
        prefix: what a prefill of the prefix leaves.
    """

    def __init__(self, model: LoadedModel, ids: Sequence[int], target: int) -> None:
        """Prefill.

        Args:
            model: the loaded model, on the CPU.
            ids: the prefix. [S]
            target: a token id.

        Raises:
            ValueError: for a prefix of less than two tokens.
        """
        if len(ids) < 2:
            raise ValueError(f"ids has {len(ids)} tokens; a step needs a prefix of at least 2")
        context = CompletionContext(ids, len(ids), [Target(target)])
        self.model = CompletionModel(model.runner, model.family, context, 0, lambda *args: 1)
        self.target = target
        self.prefix = Prefix.of(self.model)

    def step(self) -> StepTensors:
        """The tensors of the step that predicts the target."""
        last = [len(self.prefix.embeddings) - 1]
        passes = {name: self._differentiate(objective, last) for name, objective in OBJECTIVES.items()}
        true = passes["logit"]
        gradients = _stack(gradient[0] for gradient in true.by_residual)  # [L + 1, 1, h]
        return StepTensors(
            A=_by_head(state.A for state in true.states)[:, :, 0],
            U={name: _by_head(found.U)[:, :, 0] for name, found in passes.items()},
            W=_by_head(true.w)[:, :, 0],
            Q=_by_head(state.q for state in true.states)[:, :, 0],
            V=_stack(state.V[0] for state in true.states),
            scaling=torch.tensor([state.form.scaling for state in true.states], dtype=torch.float64),
            residual_products=(self.prefix.residuals * gradients).sum(-1),
            mixing=self.prefix.mixing,
            value_mixing=self.prefix.value_mixing,
            drops=self._drops(),
        )

    def replay(self, positions: Sequence[int], objective: Objective) -> ReplayTensors:
        """The tensors of a backward pass through several positions.

        Args:
            positions: in order, the last one of the prefix among them. [T]
            objective: what is differentiated.
        """
        found = self._differentiate(objective, positions)
        gradient, x = found.by_residual[0][0].double(), found.residuals[0][0].detach().double()
        return ReplayTensors(
            torch.tensor(positions),
            _by_head(state.A for state in found.states),
            _by_head(found.U),
            (gradient * x).sum(-1),
            gradient.norm(dim=-1),
        )

    def _differentiate(self, objective: Objective, positions: Sequence[int]) -> _Backward:
        """A forward pass of some positions over the prefix, and its backward pass."""
        rows = torch.tensor(positions)
        step = StepAttention(self.prefix.keys_and_values, rows, weights_are_constant=objective.weights_are_constant)
        x = self.prefix.embeddings[None, rows].clone().requires_grad_()
        rules = nullcontext() if objective.rules is None else objective.rules(self.model)
        residuals: list[Tensor] = []
        with torch.enable_grad(), rules, _residuals(self.model, residuals):
            logits = self.model.runner.full_sequence_logits(x, rows, torch.tensor([len(rows) - 1]), step)[0, 0]
            layers = sorted(step.states)
            inputs = [*(step.outputs[layer] for layer in layers), *residuals]
            gradients = torch.autograd.grad(objective.value(logits, self.target), inputs)
        states, w = [step.states[layer] for layer in layers], list(gradients[: len(layers)])
        U = [grouped_matmul(gradient, state.V.mT) for gradient, state in zip(w, states, strict=True)]
        return _Backward(states, w, U, residuals, list(gradients[len(layers) :]))

    def _drops(self) -> Tensor:
        """`StepTensors.drops`, by one decode step with a batch of S: the true logits, and one for each other token."""
        x, S = self.prefix.embeddings, len(self.prefix.embeddings)
        removed = torch.arange(-1, S - 1)  # -1 removes none; the last position itself stays
        step = StepAttention(self.prefix.keys_and_values, torch.tensor([S - 1]), removed)
        with torch.no_grad():
            logits = self.model.runner.full_sequence_logits(
                x[None, -1:].expand(S, -1, -1), step.positions, torch.tensor([0]), step
            )[:, 0, self.target].double()
        return torch.cat((logits[:1] - logits[1:], logits.new_zeros(1)))


@dataclass(frozen=True)
class Prefix:
    """What a prefill leaves: keys and values, and what formulas take of its attention and residual stream.

    Attributes:
        embeddings: [S, h]
        keys_and_values: [G, S, D] each, by layer.
        mixing: see `StepTensors`.
        value_mixing: see `StepTensors`.
        residuals: the layers' inputs, and the last layer's output. [L + 1, S, h]
    """

    embeddings: Tensor
    keys_and_values: list[tuple[Tensor, Tensor]]
    mixing: Tensor
    value_mixing: Tensor
    residuals: Tensor

    @classmethod
    def of(cls, model: CompletionModel) -> Prefix:
        """Prefill the model's prefix."""
        keys_and_values, mixing, value_mixing = [], [], []

        def watch(index: int, state: AttentionState) -> None:
            A, V = state.A[0], state.V[0]  # [G, r, S, S], [G, S, D]
            keys_and_values.append((state.K[0], V))
            mixing.append(A.mean((0, 1)))
            value_mixing.append((A * V.norm(dim=-1)[:, None, None]).sum((0, 1)))

        x = model.embeddings
        positions, residuals = torch.arange(len(x)), list[Tensor]()
        with torch.no_grad(), _residuals(model, residuals):
            attention = FullSequenceAttention(watch=watch)
            model.runner.full_sequence_logits(x[None], positions, positions[-1:], attention)
        return cls(x, keys_and_values, _stack(mixing), _stack(value_mixing), _stack(layer[0] for layer in residuals))


@dataclass(frozen=True)
class _Backward:
    """One backward pass.

    Attributes:
        states: each layer's attention, of shapes [1, G, r, T, .].
        w: dl/do by layer. [1, G, r, T, D] each
        U: w V^T by layer. [1, G, r, T, S] each
        residuals: the layers' inputs, and the last layer's output. [1, T, h] each
        by_residual: the gradients by them.
    """

    states: list[AttentionState]
    w: list[Tensor]
    U: list[Tensor]
    residuals: list[Tensor]
    by_residual: list[Tensor]


@contextmanager
def _residuals(model: CompletionModel, store: list[Tensor]) -> Iterator[None]:
    """Append the layers' inputs and the last layer's output to `store`. [B, T, h] each"""
    blocks = model.runner.blocks

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        store.append(args[0])

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        store.append(output if isinstance(output, Tensor) else output[0])

    handles = [*(block.register_forward_pre_hook(before) for block in blocks), blocks[-1].register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _by_head(layers: Iterable[Tensor]) -> Tensor:
    """[1, G, r, T, .] of each layer -> [L, H, T, .]"""
    return _stack(layer[0].flatten(0, 1) for layer in layers)


def _stack(layers: Iterable[Tensor]) -> Tensor:
    return torch.stack([layer.detach().double() for layer in layers])
