"""Decoder layers compiled by torch.compile, for CUDA graphs.

Between its matrix products, a layer runs dozens of small operations: norms, rotary embeddings, gates and sums, and
twice as many backward. On a GPU their number decides how long they take. torch.compile fuses them into a handful of
kernels, forward and backward, for any family; attention stays the engine's. It pays only in captured steps: called
eagerly, compiled layers lose in call overhead what they gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradellm_engine.utils.torch_compat import allow_recompiles

Backend = str | Callable[..., Any]  # torch.compile's

# Variants that one layer is compiled in: for one row and many, with and without a graph, with gradients below it and
# without, and for every kind of layer that a family mixes.
_MAX_VARIANTS = 64


class CompiledLayers:
    """Layers that run compiled within `used()`, and uncompiled elsewhere."""

    def __init__(self, layers: Sequence[nn.Module], backend: Backend) -> None:
        allow_recompiles(_MAX_VARIANTS)
        self._layers = [(layer, torch.compile(layer.forward, backend=backend, dynamic=True)) for layer in layers]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Run the layers compiled within the context."""
        for layer, forward in self._layers:
            layer.forward = forward
        try:
            yield
        finally:
            for layer, _ in self._layers:
                del layer.forward
