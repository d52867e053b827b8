"""The formulas against loops over heads and tokens, and against autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradellm_bench.study.prototypes.capture import OBJECTIVES, StepTensors
from gradellm_bench.study.prototypes.formulas import (
    FORMULAS,
    geometric_mean,
    key_value_gradients,
    knockout_terms,
    provenance,
    ranks,
    removal_terms,
    shares,
    without_sink,
)

L, G, r, S, D = 3, 2, 2, 6, 4
SCALING = 0.5


@pytest.fixture(scope="module")
def step() -> StepTensors:
    """Random keys, values and gradients, of which the rest follows."""
    draws = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws, dtype=torch.float64)

    Q, K, V, W = normal(L, G * r, D), normal(L, G, S, D), normal(L, G, S, D), normal(L, G * r, D)
    A = (SCALING * torch.einsum("lhd,lhsd->lhs", Q, K.repeat_interleave(r, 1))).softmax(-1)
    U = {name: torch.einsum("lhd,lhsd->lhs", w, V.repeat_interleave(r, 1)) for name, w in objectives(W, normal).items()}
    causal = normal(L, S, S).masked_fill(torch.ones(S, S).triu(1).bool(), -torch.inf).softmax(-1)
    scaling = torch.full((L,), SCALING, dtype=torch.float64)
    return StepTensors(A, U, W, Q, V, scaling, normal(L + 1, S), causal, 2 * causal, normal(S).abs())


def objectives(W: Tensor, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
    return {"logit": W} | {name: normal(*W.shape) for name in OBJECTIVES if name != "logit"}


def test_weights_without_the_sink_sum_to_one(step: StepTensors) -> None:
    a = without_sink(step.A)
    for row, original in zip(a.reshape(-1, S), step.A.reshape(-1, S), strict=True):
        assert row[0] == 0
        torch.testing.assert_close(row[1:], original[1:] / sum(original[1:]))
    assert without_sink(torch.tensor([1.0, 0.0, 0.0])).sum() == 0


def test_removal_is_the_change_of_the_output_without_the_token(step: StepTensors) -> None:
    terms = removal_terms(step.A, step.U["logit"], 0.0)
    for a, u, row in zip(step.A.reshape(-1, S), step.U["logit"].reshape(-1, S), terms.reshape(-1, S), strict=True):
        for i in range(S):
            others = [j for j in range(S) if j != i]
            without = sum(a[j] * u[j] for j in others) / sum(a[j] for j in others)
            torch.testing.assert_close(row[i], a @ u - without)
    assert removal_terms(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]), 0.1).isfinite().all()


def test_knockout_terms_are_the_derivative_by_the_scores(step: StepTensors) -> None:
    """k_i is the derivative of w . o by the softmax's logit i."""
    z = step.A[0, 0].log().requires_grad_()
    (gradient,) = torch.autograd.grad(z.softmax(-1) @ step.U["logit"][0, 0], z)
    torch.testing.assert_close(knockout_terms(step.A, step.U["logit"])[0, 0], gradient)


def test_gradients_by_keys_and_values(step: StepTensors) -> None:
    """Against autograd of the sum over layers and heads of w . o, with queries and keys that give the same weights."""
    Q, V, K = step.Q, step.V.clone().requires_grad_(), torch.zeros_like(step.V)
    for layer in range(L):  # keys whose products with the queries are the logarithms of the weights
        for g in range(G):
            q = Q[layer, g * r : (g + 1) * r]
            K[layer, g] = (torch.linalg.pinv(SCALING * q) @ step.A[layer, g * r : (g + 1) * r].log()).T
    K.requires_grad_()
    A = (SCALING * torch.einsum("lhd,lhsd->lhs", Q, K.repeat_interleave(r, 1))).softmax(-1)
    torch.testing.assert_close(A, step.A)
    o = torch.einsum("lhs,lhsd->lhd", A, V.repeat_interleave(r, 1))
    expected = torch.autograd.grad((o * step.W).sum(), (K, V))
    for found, gradient in zip(key_value_gradients(step), expected, strict=True):
        torch.testing.assert_close(found, gradient)


def test_ranks_leave_the_sink_out() -> None:
    x = torch.tensor([[9.0, 3.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    assert ranks(x).tolist() == [[0, 1, 0, 0.5], [0, 0, 0.5, 1]]


def test_shares_and_geometric_mean() -> None:
    assert shares(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist() == [[0.25, 0.75], [0, 0]]
    assert geometric_mean(torch.tensor([4.0, -1.0]), torch.tensor([9.0, 1.0])).tolist() == [6, 0]


def test_provenance_is_attention_rollout(step: StepTensors) -> None:
    """Against a loop; rows are shares of the tokens up to the position's own."""
    found = provenance(step.mixing, 0.25)
    expected = torch.eye(S, dtype=torch.float64)
    for layer in range(L):
        torch.testing.assert_close(found[layer], expected)
        torch.testing.assert_close(found[layer].sum(-1), torch.ones(S, dtype=torch.float64))
        following = torch.zeros_like(expected)
        for i in range(S):
            weights = step.mixing[layer, i, 1 : i + 1] / step.mixing[layer, i, 1 : i + 1].sum()
            following[i] = expected[i] if i == 0 else 0.75 * expected[i]
            for j in range(1, i + 1):
                following[i] += 0.25 * weights[j - 1] * expected[j]
        expected = following


@pytest.mark.parametrize("name", FORMULAS)
def test_every_formula_scores_every_token_but_the_sink(step: StepTensors, name: str) -> None:
    scores = FORMULAS[name](step)
    assert scores.shape == (S,)
    assert scores.isfinite().all()
    assert scores[1:].abs().sum() > 0
