"""Relevance propagation in the manner of AttnLRP (Achtibat et al. 2024) and RelP (Jafari et al. 2025).

Each token's embedding times a gradient that follows other rules than the chain rule alone:

- normalisation is straight through: its scale is a constant;
- an activation f(x) is x times the constant f(x) / x (the identity rule);
- a product of gate and value gives half of its relevance to either;
- attention weights are constants, as in RelP.

Between the target's logit and the embeddings, everything is then linear. Relevance is conserved wherever a layer adds
nothing of its own: in a model without biases and soft caps, the scores of a prefix sum to the logit.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from gradellm_engine.methods.gradients.base import Aggregation, by_embeddings, gradient_rows
from gradellm_engine.methods.hooks import Hook, hooked
from gradellm_engine.methods.post_hoc import CompletionModel, Objective, ScoreStream
from gradellm_engine.params import Switches
from gradellm_engine.passes.full_sequence import FullSequenceAttention


@dataclass(frozen=True)
class Relevance(Switches):
    """It has none."""

    name: ClassVar[str] = "relevance"


def explain(model: CompletionModel, switches: Relevance) -> ScoreStream:
    """x_i times the propagated gradient, summed over channels. Signed."""

    def forward() -> tuple[Tensor, Tensor]:
        with rules(model):
            return by_embeddings(model, Objective.LOGIT, FullSequenceAttention(weights_are_constant=True))

    return gradient_rows(model, forward, lambda gradient: gradient * model.embeddings, Aggregation.SUM)


def rules(model: CompletionModel) -> AbstractContextManager[None]:
    """While it lasts, gradients through the model's modules follow the rules; its numbers stay what they are."""
    hooks: list[tuple[nn.Module, Hook]] = []
    for name, module in model.runner.named_modules():
        if type(module).__name__.endswith("Norm") or is_activation(module):
            hooks.append((module, _proportional))
        elif name.rpartition(".")[2] in (model.family.gates or ()):
            hooks.append((module, _halved))
    return hooked(hooks)


def is_activation(module: nn.Module) -> bool:
    """Whether it is an activation function."""
    has_parts = any(True for _ in module.children()) or any(True for _ in module.parameters())
    return not has_parts and type(module).__module__ in ("transformers.activations", "torch.nn.modules.activation")


def _proportional(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Output = input times a constant, channel by channel; of a LayerNorm, input less its mean, plus its bias."""
    x, bias = args[0], getattr(module, "bias", None)
    if type(module).__name__.endswith("LayerNorm"):
        x = x - x.mean(-1, keepdim=True)
    made = output if bias is None else output - bias
    linear = x * (made / x.masked_fill(x == 0, 1)).detach()
    return linear + (output - linear).detach()


def _halved(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Output, with half of its gradient."""
    half = output / 2
    return half + half.detach()
