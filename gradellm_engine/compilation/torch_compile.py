"""Layers whose small operations are put together into few kernels, by torch.compile.

Between its large products, a layer is dozens of operations on short rows: norms, rotary embeddings, gates and sums, and
twice as many backward. On a GPU they take about as long as they are many. torch.compile makes a handful of kernels
of them, forward and backward, for any family; attention stays ours. It pays where a step is recorded: called one by
one, compiled layers cost as much time to call as they save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradellm_engine.utils.torch_compat import allow_recompiles

Backend = str | Callable[..., Any]  # torch.compile's

# Forms of one layer: of one row and of many, with and without a graph, with gradients below it and without, and of
# every kind of layer that a family mixes.
_FORMS = 64


class CompiledLayers:
    """Layers that run compiled while they are `used`, and as their family wrote them elsewhere."""

    def __init__(self, layers: Sequence[nn.Module], backend: Backend) -> None:
        allow_recompiles(_FORMS)
        self._layers = [(layer, torch.compile(layer.forward, backend=backend, dynamic=True)) for layer in layers]

    @contextmanager
    def used(self) -> Iterator[None]:
        """While it lasts, they run compiled."""
        for layer, forward in self._layers:
            layer.forward = forward
        try:
            yield
        finally:
            for layer, _ in self._layers:
                del layer.forward
