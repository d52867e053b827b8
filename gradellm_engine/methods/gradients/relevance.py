"""Layer-wise relevance propagation in the manner of AttnLRP (Achtibat et al. 2024) and RelP (Jafari et al. 2025).

Scores are each token's embedding times a gradient with modified rules:

- the scale of a normalisation layer is a constant (identity rule);
- an activation f(x) is x times the constant f(x) / x (identity rule);
- a product of gate and value gives half of its relevance to each (uniform rule);
- attention weights are constants, as in RelP.

The model is then linear between the embeddings and the target's logit. Relevance is conserved where layers add no
constants: in a model without biases and soft caps, the scores of a prefix sum to the logit.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gradellm_engine.layers.relevance_rules import halved, is_activation, proportional
from gradellm_engine.methods.gradients.base import Aggregation, by_embeddings, gradient_scores
from gradellm_engine.methods.hooks import Hook, hooked
from gradellm_engine.methods.post_hoc import CompletionModel, Objective, ScoreStream
from gradellm_engine.params import Switches
from gradellm_engine.passes.full_sequence import FullSequenceAttention


@dataclass(frozen=True)
class Relevance(Switches):
    """No switches."""

    name: ClassVar[str] = "relevance"


def explain(model: CompletionModel, switches: Relevance) -> ScoreStream:
    """x_i times the propagated gradient, summed over channels. Signed."""

    def forward() -> tuple[Tensor, Tensor]:
        with relevance_rules(model):
            return by_embeddings(model, Objective.LOGIT, FullSequenceAttention(weights_are_constant=True))

    return gradient_scores(model, forward, lambda gradient: gradient * model.embeddings, Aggregation.SUM)


def relevance_rules(model: CompletionModel) -> AbstractContextManager[None]:
    """Apply the rules to gradients for the duration of the block; outputs do not change."""
    hooks: list[tuple[nn.Module, Hook]] = []
    for name, module in model.runner.named_modules():
        if type(module).__name__.endswith("Norm"):
            hooks.append((module, _scale_is_constant))
        elif is_activation(module):
            hooks.append((module, lambda module, args, output: proportional(args[0], output)))
        elif name.rpartition(".")[2] in (model.family.gates or ()):
            hooks.append((module, lambda module, args, output: halved(output)))
    return hooked(hooks)


def _scale_is_constant(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A norm's output as input times a constant for each channel; of a LayerNorm, the centred input, plus the bias."""
    x, bias = args[0], getattr(module, "bias", None)
    if type(module).__name__.endswith("LayerNorm"):
        x = x - x.mean(-1, keepdim=True)
    unbiased = output if bias is None else output - bias
    linear = x * (unbiased / x.masked_fill(x == 0, 1)).detach()
    return linear + (output - linear).detach()
