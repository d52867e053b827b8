"""The class of one module is exchanged, and put back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradellm_engine.layers.module_patch import mix_in_class, replace_class


def test_a_mixed_in_class_calls_the_original_and_keeps_its_module() -> None:
    class Doubled(nn.Module):
        factor: float

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.factor * super().forward(x)
            return output

    module, other = nn.ReLU(), nn.ReLU()
    patch = mix_in_class("act", module, Doubled, "Doubled", factor=2.0)
    assert (patch.module, patch.original, patch.replacement) == ("act", "ReLU", "DoubledReLU")
    assert type(module).__module__ == nn.ReLU.__module__
    x = torch.tensor([-1.0, 3.0])
    assert torch.equal(module(x), torch.tensor([0.0, 6.0]))
    assert torch.equal(other(x), torch.tensor([0.0, 3.0]))
    second = mix_in_class("act", other, Doubled, "Doubled", factor=3.0)
    assert type(other) is type(module)  # one class for a pair
    second.undo()
    patch.undo()
    assert type(module) is nn.ReLU
    assert "factor" not in vars(module)


def test_a_replaced_class_keeps_parameters_and_hooks() -> None:
    class Zero(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return torch.zeros(1)

    module, seen = nn.Linear(2, 2), []
    module.register_forward_hook(lambda *args: seen.append(args))
    weight = module.weight
    patch = replace_class("", module, Zero)
    assert not module(torch.ones(2)).any()
    assert len(seen) == 1
    patch.undo()
    assert module.weight is weight


def test_patches_of_one_module_are_undone_in_reverse_order() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    module, x = nn.Threshold(0.5, 7.0), torch.tensor([-1.0, 2.0])
    patches = [mix_in_class("act", module, mixin, mixin.__name__) for mixin in (Twice, Shifted)]
    assert torch.equal(module(x), torch.tensor([8.0, 3.0]))
    assert patches[1].original == "TwiceThreshold"
    patches[1].undo()
    assert torch.equal(module(x), torch.tensor([7.0, 2.0]))
    patches[0].undo()
    assert type(module) is nn.Threshold
