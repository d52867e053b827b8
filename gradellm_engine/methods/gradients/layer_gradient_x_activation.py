"""Layer gradient x activation: a layer's output at each token times the target's gradient by it.

The middle layer by default. The output of the last one reaches the target at the last position alone: all other scores
are zero there. Layer -1 is the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.methods.gradients.base import GradientSwitches, by_embeddings, gradient_rows
from gradellm_engine.methods.hooks import hooked
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream


@dataclass(frozen=True)
class LayerGradientXActivation(GradientSwitches):
    """Beside objective and aggregation:

    Attributes:
        layer: whose output is taken, 0 first; -1 is the embedding, None the middle one.
    """

    name: ClassVar[str] = "layer_gradient_x_activation"
    layer: int | None = None

    def resolved(self, num_layers: int) -> Self:
        """With the layer said."""
        if self.layer is not None and not -1 <= self.layer < num_layers:
            raise InvalidRequestError(
                "attribution.layer",
                f"{self.layer} is not a layer; the model has layers 0 to {num_layers - 1}, and -1 is the embedding",
            )
        return replace(self, layer=num_layers // 2 if self.layer is None else self.layer)


def explain(model: CompletionModel, switches: LayerGradientXActivation) -> ScoreStream:
    """a_i * dl/da_i at the chosen layer's output, its norm over channels or their sum."""
    activations: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 (a tensor, or a tuple)
        activations.append(output if isinstance(output, Tensor) else output[0])

    def forward() -> tuple[Tensor, Tensor]:
        if switches.layer in (None, -1):
            values, x = by_embeddings(model, switches.objective)
            activations.append(x)
        else:
            with hooked([(model.runner.blocks[switches.layer], keep)]):
                values, _ = by_embeddings(model, switches.objective)
        return values, activations[0]

    return gradient_rows(model, forward, lambda g: g * activations[0][0].detach(), switches.aggregation)
