"""Layer gradient x activation: a layer's output at each token times the gradient of the target by it.

The default is the middle layer; -1 is the embedding. The last layer's output reaches the target only at the last
position, so with the last layer all other scores are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.methods.gradients.base import GradientSwitches, by_embeddings, gradient_scores
from gradellm_engine.methods.hooks import hooked
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream


@dataclass(frozen=True)
class LayerGradientXActivation(GradientSwitches):
    """Switches, besides objective and aggregation.

    Attributes:
        layer: index of the layer, from 0; -1 is the embedding, None the middle layer.
    """

    name: ClassVar[str] = "layer_gradient_x_activation"
    layer: int | None = None

    def resolved(self, num_layers: int) -> Self:
        """The switches with an explicit layer."""
        if self.layer is not None and not -1 <= self.layer < num_layers:
            raise InvalidRequestError(
                "attribution.layer",
                f"{self.layer} is not a layer; give 0 to {num_layers - 1}, or -1 for the embedding",
            )
        return replace(self, layer=num_layers // 2 if self.layer is None else self.layer)


def explain(model: CompletionModel, switches: LayerGradientXActivation) -> ScoreStream:
    """a_i * dl/da_i for the layer's output a, aggregated over channels."""
    activations: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401 (a tensor, or a tuple)
        activations.append(output if isinstance(output, Tensor) else output[0])

    def forward() -> tuple[Tensor, Tensor]:
        if switches.layer in (None, -1):
            values, x = by_embeddings(model, switches.objective)
            activations.append(x)
        else:
            with hooked([(model.runner.blocks[switches.layer], record)]):
                values, _ = by_embeddings(model, switches.objective)
        return values, activations[0]

    return gradient_scores(model, forward, lambda g: g * activations[0][0].detach(), switches.aggregation)
