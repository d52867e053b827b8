"""Value zeroing against hooks on Transformers' own model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradellm_engine.methods.perturbation.value_zeroing import ValueZeroing
from support.methods.reference_case import Case

MakeCase = Callable[..., Case]
TOLERANCE = 1e-5


@pytest.mark.parametrize("layers", [None, 1, (0, 2)])
@pytest.mark.parametrize("family", ["llama", "mistral", "opt"])
def test_value_zeroing_equals_zeroing_by_hand(
    case: MakeCase, family: str, layers: int | tuple[int, ...] | None
) -> None:
    subject = case(family, "float32")
    runner = subject.reference.model.decoder if family == "opt" else subject.reference.model
    chosen = (0, 1, 2) if layers is None else (2,) if layers == 1 else (0, 2)

    def outputs(ids: list[int], zeroed: tuple[int, int] | None = None) -> list[Tensor]:
        """Each layer's output at the last position, with one token's value zeroed in one layer."""
        noted: list[Tensor] = []
        hooks = [
            block.register_forward_hook(
                lambda _m, _a, output: noted.append((output if isinstance(output, Tensor) else output[0])[0, -1])
            )
            for block in runner.layers
        ]
        if zeroed is not None:

            def zero(_m: Any, _a: Any, values: Tensor) -> Tensor:
                values = values.clone()
                values[0, zeroed[1]] = 0
                return values

            hooks.append(runner.layers[zeroed[0]].self_attn.v_proj.register_forward_hook(zero))
        with torch.no_grad():
            subject.reference(torch.tensor([ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        return noted

    for row, (ids, _) in zip(subject.rows(ValueZeroing(layers=layers)), subject.prefixes(), strict=True):
        own = outputs(ids)
        expected = torch.zeros(len(ids), dtype=torch.float64)
        for index in chosen:
            for token in range(len(ids)):
                changed = outputs(ids, (index, token))[index]
                expected[token] += 1 - torch.cosine_similarity(changed, own[index], dim=0)
        # Absolute: a cosine near 1 has float32's resolution.
        assert (row.double() - expected / len(chosen)).abs().max() <= 1e-6
