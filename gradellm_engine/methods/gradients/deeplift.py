"""DeepLIFT (Shrikumar et al. 2017), its rescale rule as Captum applies it.

Where a module computes one of the non-linearities for which Captum has a rule, the gradient through it is the slope
between what the input and the baseline make of it. Most decoders have none (SiLU and GELU have no rule, the softmax of
attention is a function, not a module): there it is the gradient times input minus baseline. Models with ReLU, as OPT,
differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradellm_engine.methods.gradients.base import GradientSwitches, by_embeddings, gradient_rows
from gradellm_engine.methods.hooks import hooked
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream, baseline_embeddings

RESCALED = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
SMALLEST_DIFFERENCE = 1e-10  # of inputs: below it, the gradient itself


@dataclass(frozen=True)
class DeepLift(GradientSwitches):
    """Beside objective and aggregation:

    Attributes:
        baseline_ids: tokens in place of the prompt's; zero embeddings where there are none.
    """

    name: ClassVar[str] = "deeplift"
    baseline_ids: tuple[int, ...] = ()


def explain(model: CompletionModel, switches: DeepLift) -> ScoreStream:
    """(x_i - x'_i) * multiplier, its norm over channels or their sum; the completion is the same in the baseline."""
    m = model.given.num_prompt_tokens
    before = model.embeddings.clone()
    before[:m] = baseline_embeddings(model, switches.baseline_ids)

    def forward() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), _noting(model) as noted:
            model.values(before[None], switches.objective)
        with _rescaling(model, noted):
            return by_embeddings(model, switches.objective)

    return gradient_rows(model, forward, lambda g: g * (model.embeddings - before), switches.aggregation)


Noted = dict[nn.Module, tuple[Tensor, Tensor]]


def _modules(model: CompletionModel) -> list[nn.Module]:
    return [module for _, module in model.runner.named_modules() if type(module) in RESCALED]


@contextmanager
def _noting(model: CompletionModel) -> Iterator[Noted]:
    """What goes into non-linearities, and what comes out."""
    noted: Noted = {}

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        noted[module] = (args[0].detach(), output.detach())

    with hooked((module, note) for module in _modules(model)):
        yield noted


def _rescaling(model: CompletionModel, noted: Noted) -> AbstractContextManager[None]:
    """Gradients go through non-linearities by the slope to what was noted."""

    def rescale(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, (before, output_before) = args[0], noted[module]
        difference = (x - before).detach()
        is_small = difference.abs() < SMALLEST_DIFFERENCE
        slope = (output.detach() - output_before) / difference.masked_fill(is_small, 1)
        # The value is the output's; the gradient is the slope's, or where that is undefined its own.
        linear = x * slope
        return torch.where(is_small, output, linear + (output - linear).detach())

    return hooked((module, rescale) for module in _modules(model))
