"""Gradients of activations and gates by the rules of relevance, for some tokens of a pass.

An activation f(x) is x times the constant f(x) / x (identity rule), and of the product of gate and value each has half
of the gradient (uniform rule), as in AttnLRP (Achtibat et al. 2024). Outputs are the same to the last bit.

Modules look up which tokens have the rules when they run: an engine explains requests with and without them. Attention,
whose weights are constants by the same rules, is computed by the pass (`gradellm_engine.passes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Rows = bool | Tensor
"""Which tokens of a pass have the rules: all, none, or those of a mask. [T], bool"""


@dataclass
class RelevanceRules:
    """The rules of one model.

    Attributes:
        rows: which tokens of the pass that runs have them.
    """

    rows: Rows = False

    @property
    def apply(self) -> bool:
        """Whether a graph is recorded that has them for any token."""
        return self.rows is not False and torch.is_grad_enabled()

    @contextmanager
    def during(self, rows: Rows) -> Iterator[None]:
        """For the duration of a forward pass, the rules are those of `rows`."""
        self.rows = rows
        try:
            yield
        finally:
            self.rows = False

    def activation_hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """A forward hook of activations."""
        return proportional(args[0], output, self.rows) if self.apply else None

    def gate_hook(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """A forward hook of the layers whose outputs are multiplied with each other."""
        return halved(output, self.rows) if self.apply else None


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an activation function."""
    has_parts = any(True for _ in module.children()) or any(True for _ in module.parameters())
    return not has_parts and type(module).__module__ in ("transformers.activations", "torch.nn.modules.activation")


def proportional(x: Tensor, y: Tensor, rows: Rows = True) -> Tensor:
    """`y` whose gradient by x is the constant y / x, 0 where x is; y's own in other rows. [.., T, width]

    The product x (y / x) is so close to y that their difference has no rounding error: the result is y.
    """
    linear = x * (y / x.masked_fill(x == 0, 1)).detach()
    constant = linear + (y - linear).detach()
    return chosen(rows, constant, y)


def halved(x: Tensor, rows: Rows = True) -> Tensor:
    """`x` with half of its gradient, in other rows with all of it. [.., T, width]"""
    half = x / 2
    return chosen(rows, x.detach() + (half - half.detach()), x)


def chosen(rows: Rows, ruled: Tensor, other: Tensor) -> Tensor:
    """The rows of `ruled` that have the rules, and those of `other` that do not. [.., T, width] each"""
    if isinstance(rows, bool):
        return ruled if rows else other
    return torch.where(rows.to(ruled.device)[:, None], ruled, other)
