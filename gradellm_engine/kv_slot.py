"""The keys and values of one sequence, in buffers that are allocated once.

A slot holds what attention has to remember of the tokens before: plain tensors that autograd never sees. Growing a
cache with `torch.cat` copies it at every token; writing into a buffer does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerBuffers:
    """One layer's keys and values for `capacity` positions.

    Attributes:
        keys: as attention multiplies them, after any rotary embedding. [G, capacity, D]
        values: raw. [G, capacity, Dv]
        unrotated_keys: before the rotary embedding, for the `rotary` switch alone. [G, capacity, D]
    """

    keys: Tensor
    values: Tensor
    unrotated_keys: Tensor | None

    def write(self, start: int, keys: Tensor, values: Tensor, unrotated_keys: Tensor | None) -> None:
        """Store the new positions `start`..`start + T`. [G, T, D], [G, T, Dv]"""
        end = start + keys.shape[1]
        self.keys[:, start:end] = keys
        self.values[:, start:end] = values
        if self.unrotated_keys is not None and unrotated_keys is not None:
            self.unrotated_keys[:, start:end] = unrotated_keys


class KVSlot:
    """The buffers of all layers for one sequence of at most `capacity` tokens.

    A layer's buffers are allocated when it is first seen, with the shape, type and device of what it writes: layers may
    lie on different devices and differ in width.

    Attributes:
        capacity: positions in each buffer.
        length: positions that hold a token. Positions from here on are free to be written.
    """

    def __init__(self, capacity: int, *, keep_unrotated_keys: bool = False) -> None:
        self.capacity = capacity
        self.length = 0
        self._keep_unrotated_keys = keep_unrotated_keys
        self._layers: dict[int, LayerBuffers] = {}

    def layer(self, index: int, keys: Tensor, values: Tensor) -> LayerBuffers:
        """The buffers of layer `index`, shaped after keys [G, T, D] and values [G, T, Dv] that it is about to hold."""
        if index not in self._layers:
            self._layers[index] = LayerBuffers(
                keys=self._buffer(keys),
                values=self._buffer(values),
                unrotated_keys=self._buffer(keys) if self._keep_unrotated_keys else None,
            )
        return self._layers[index]

    @property
    def num_layers(self) -> int:
        """Layers that have written to the slot."""
        return len(self._layers)

    def _buffer(self, like: Tensor) -> Tensor:
        num_heads, _, width = like.shape
        return torch.empty((num_heads, self.capacity, width), dtype=like.dtype, device=like.device)
