"""Gradients of all steps from one forward pass, for every family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradellm_engine.methods import post_hoc
from gradellm_engine.methods.gradients.saliency import Saliency
from gradellm_engine.model.families import FAMILIES
from support.methods.reference_case import Case
from support.oracle import relative_error

MakeCase = Callable[..., Case]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_gradients_of_every_family_equal_transformers(case: MakeCase, family: str) -> None:
    subject = case(family, "float32")
    if hasattr(subject.reference, "set_experts_implementation"):
        subject.reference.set_experts_implementation("eager")  # the default refuses float64
    for row, (ids, token_id) in zip(subject.rows(Saliency()), subject.prefixes(), strict=True):
        x = subject.embed(ids)[None].requires_grad_()
        (expected,) = torch.autograd.grad(subject.logits(x)[0, token_id], x)
        assert relative_error(row, expected[0].norm(dim=-1)) <= 1e-5


def test_one_forward_pass_serves_all_steps(case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any batching of backward passes, also without batching rules."""
    subject = case("llama")
    completion = list(range(70, 82))
    together = subject.rows(Saliency(), completion)
    passes: list[Tensor] = []
    full_sequence_logits = type(subject.engine.model.runner).full_sequence_logits

    def counted(self: Any, embeddings: Tensor, *args: Any) -> Tensor:
        passes.append(embeddings)
        return full_sequence_logits(self, embeddings, *args)

    monkeypatch.setattr(type(subject.engine.model.runner), "full_sequence_logits", counted)
    for tokens in (1, 50, 100):
        monkeypatch.setattr(post_hoc, "PASS_TOKENS", tokens)
        passes.clear()
        for row, expected in zip(subject.rows(Saliency(), completion), together, strict=True):
            assert relative_error(row, expected) <= 1e-6
        assert len(passes) == 1

    def refuse(*args: Any) -> Any:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(torch.func, "vmap", refuse)
    for row, expected in zip(subject.rows(Saliency(), completion), together, strict=True):
        assert relative_error(row, expected) <= 1e-6
