"""The Muon optimizer (Keller Jordan 2024, kellerjordan.github.io/posts/muon) in float32, batched over equal shapes.

    B = 0.95 B + 0.05 G           momentum of the gradient
    U = 0.95 B + 0.05 G           Nesterov's look-ahead
    O = newton_schulz(U)          orthogonalised: every singular value near one
    W = (1 - lr decay) W - lr sqrt(max(1, rows / columns)) O

torch.optim.Muon iterates in bfloat16, which takes four times as long as the rest of a step on a CPU without native
bfloat16.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For weight matrices only; embeddings, norms and biases need another optimizer."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix from its gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for matrix in group["params"]:
                by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                updates = newton_schulz(torch.stack([self._direction(matrix) for matrix in matrices]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * scale)

    def _direction(self, matrix: nn.Parameter) -> Tensor:
        gradient = matrix.grad
        if gradient is None:
            raise ValueError("Muon: a matrix has no gradient; run the backward pass before step()")
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(momentum, _MOMENTUM)


def newton_schulz(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors and every singular value near one (about 0.7 to 1.2). [B, m, n]"""
    a, b, c = _COEFFICIENTS
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    X = wide / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(_ITERATIONS):
        gram = X @ X.mT
        X = a * X + (b * gram + c * gram @ gram) @ X
    levelled: Tensor = X if matrices.shape[1] <= matrices.shape[2] else X.mT
    return levelled
