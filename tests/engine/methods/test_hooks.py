"""Hooks that are in place for a block alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradellm_engine.methods.hooks import hooked


def test_hooks_replace_outputs_within_the_block_only() -> None:
    double, watched = nn.Linear(2, 2), nn.Linear(2, 2)
    x, seen = torch.ones(1, 2), []
    before = double(x), watched(x)
    with hooked([(double, lambda module, args, output: 2 * output), (watched, lambda *of: seen.append(of))]):
        assert torch.equal(double(x), 2 * before[0])
        assert torch.equal(watched(x), before[1])  # a hook that returns None leaves the output
    assert torch.equal(double(x), before[0])
    watched(x)
    ((module, args, output),) = seen
    assert module is watched
    assert torch.equal(args[0], x)
    assert torch.equal(output, before[1])


def test_hooks_of_one_module_run_in_their_order() -> None:
    layer, x = nn.Identity(), torch.ones(1)
    with hooked([(layer, lambda module, args, output: output + 1), (layer, lambda module, args, output: output * 10)]):
        assert layer(x).item() == 20


def test_hooks_are_removed_after_an_error() -> None:
    layer = nn.Identity()
    with pytest.raises(RuntimeError, match="the pass failed"), hooked([(layer, lambda *of: of[2] + 1)]):
        raise RuntimeError("the pass failed")
    assert layer(torch.zeros(1)).item() == 0
