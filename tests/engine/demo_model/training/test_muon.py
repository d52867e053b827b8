"""The float32 Muon against torch.optim.Muon, which rounds to bfloat16, and its effect on singular values."""

import torch

from gradellm_engine.demo_model.training.muon import Muon, newton_schulz


def test_singular_values_come_near_one_and_singular_vectors_stay() -> None:
    matrices = torch.randn(3, 40, 20, generator=torch.Generator().manual_seed(0))
    levelled = newton_schulz(matrices)
    values = torch.linalg.svdvals(levelled)
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    rotated = left.mT @ levelled @ right.mT
    off_diagonal = rotated - torch.diag_embed(rotated.diagonal(dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 1e-4


def test_steps_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((64, 32), (64, 32), (16, 48))]
    actual = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    expected = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    optimizers = (Muon(actual, lr=0.02, weight_decay=0.05), torch.optim.Muon(expected, lr=0.02, weight_decay=0.05))
    for _ in range(10):
        for a, b in zip(actual, expected, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, first in zip(actual, expected, start, strict=True):
        assert (a - b).norm() < 0.02 * (a - first).norm()  # bfloat16's rounding
