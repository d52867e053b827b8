"""DeepLIFT (Shrikumar et al. 2017) with the rescale rule, as Captum applies it.

Through a module with one of the non-linearities that Captum has a rule for, the gradient is replaced by the slope
between the outputs for input and baseline. Most decoders have no such module (SiLU and GELU have no rule, and the
softmax of attention is a function, not a module): there DeepLIFT equals gradient x (input - baseline). It differs on
models with ReLU, such as OPT.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradellm_engine.methods.gradients.base import GradientSwitches, by_embeddings, gradient_scores
from gradellm_engine.methods.hooks import hooked
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream, baseline_embeddings

RESCALED = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
MIN_DIFFERENCE = 1e-10  # of inputs; below it the gradient is used instead of the slope


@dataclass(frozen=True)
class DeepLift(GradientSwitches):
    """Switches, besides objective and aggregation.

    Attributes:
        baseline_ids: the baseline's tokens, one for each of the prompt's; empty for zero embeddings.
    """

    name: ClassVar[str] = "deeplift"
    baseline_ids: tuple[int, ...] = ()


def explain(model: CompletionModel, switches: DeepLift) -> ScoreStream:
    """(x_i - x'_i) * multiplier, aggregated over channels; the baseline has the same completion."""
    m = model.completion.num_prompt_tokens
    baseline = model.embeddings.clone()
    baseline[:m] = baseline_embeddings(model, switches.baseline_ids)

    def forward() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), _record_activations(model) as recorded:
            model.values(baseline[None], switches.objective)
        with _rescale_rule(model, recorded):
            return by_embeddings(model, switches.objective)

    return gradient_scores(model, forward, lambda g: g * (model.embeddings - baseline), switches.aggregation)


Activations = dict[nn.Module, tuple[Tensor, Tensor]]  # input and output of each module


def _modules(model: CompletionModel) -> list[nn.Module]:
    return [module for _, module in model.runner.named_modules() if type(module) in RESCALED]


@contextmanager
def _record_activations(model: CompletionModel) -> Iterator[Activations]:
    """Record inputs and outputs of the non-linearities for the duration of the block."""
    recorded: Activations = {}

    def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        recorded[module] = (args[0].detach(), output.detach())

    with hooked((module, record) for module in _modules(model)):
        yield recorded


def _rescale_rule(model: CompletionModel, recorded: Activations) -> AbstractContextManager[None]:
    """Replace gradients through non-linearities by the slope to the recorded baseline activations."""

    def rescale(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, (baseline, baseline_output) = args[0], recorded[module]
        difference = (x - baseline).detach()
        is_small = difference.abs() < MIN_DIFFERENCE
        slope = (output.detach() - baseline_output) / difference.masked_fill(is_small, 1)
        # The value stays the output; the gradient is the slope, or the module's own where the slope is undefined.
        linear = x * slope
        return torch.where(is_small, output, linear + (output - linear).detach())

    return hooked((module, rescale) for module in _modules(model))
