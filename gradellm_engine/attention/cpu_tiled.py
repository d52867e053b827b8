"""Plain attention of many short sequences on a CPU, computed in tiles that stay in cache.

A stock kernel takes such sequences one by one, and half of its time is not arithmetic where heads are narrow. Here a
tile is some consecutive queries of some sequences' heads; its attention weights stay in the second-level cache until
they are multiplied with the values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gradellm_engine.attention.ops import AttentionForm

# Measured on a CPU with 1 MB of second-level cache a core.
TILE_WEIGHTS = 2**18  # attention weights of a tile
TILE_QUERIES = 40  # queries of a tile, about: fewer compute fewer hidden keys, more are fewer calls
MAX_HEAD_WIDTH = 32  # of heads for which tiles are faster than a stock kernel
NARROW_VALUE_WIDTH = 16  # values narrower than that are multiplied faster column-major


@dataclass
class TiledAttention:
    """Tiled attention with a buffer that is reused: newly allocated memory is slow."""

    _buffer: Tensor | None = None  # products and weights. [2, numbers]

    def output(self, query: Tensor, K: Tensor, V: Tensor, visible: Tensor, form: AttentionForm) -> Tensor:
        """The attention output. [B, T, H, Dv]

        Args:
            query: queries of the last T positions. [B, H, T, D]
            K: keys. [B, G, N, D]
            V: values. [B, G, N, Dv]
            visible: which keys each query sees. [T, N], bool
            form: the layer's attention.
        """
        B, H, T, D = query.shape
        G, N, Dv = K.shape[1], K.shape[2], V.shape[3]
        r, count = H // G, -(-T // TILE_QUERIES)
        K, V = K.contiguous(), V.contiguous()
        hidden = torch.zeros(visible.shape, dtype=query.dtype).masked_fill_(~visible, -torch.inf)
        output = query.new_empty(B, T, G, r, Dv)
        for begin, end in pairwise(T * i // count for i in range(count + 1)):
            seen, rows = N - T + end, r * (end - begin)
            q = query[:, :, begin:end].reshape(B * G, rows, D)
            k, v = K[:, :, :seen].flatten(0, 1), V[:, :, :seen].flatten(0, 1)  # [B G, seen, .]
            bias = hidden[begin:end, :seen].repeat(r, 1)
            is_narrow = Dv < NARROW_VALUE_WIDTH
            o = query.new_empty(B * G, Dv, rows).mT if is_narrow else query.new_empty(B * G, rows, Dv)
            size = max(1, TILE_WEIGHTS // (rows * seen))
            for tile in (slice(start, start + size) for start in range(0, B * G, size)):
                Z, A = self._products_and_weights(len(q[tile]), rows, seen, like=q)
                torch.softmax(torch.baddbmm(bias, q[tile], k[tile].mT, alpha=form.scaling, out=Z), -1, out=A)
                if is_narrow:
                    torch.bmm(v[tile].mT, A.mT, out=o[tile].mT)
                else:
                    torch.bmm(A, v[tile], out=o[tile])
            output[:, begin:end] = o.reshape(B, G, r, end - begin, Dv).permute(0, 3, 1, 2, 4)
        return output.flatten(2, 3)

    @staticmethod
    def is_faster(query: Tensor, V: Tensor, form: AttentionForm) -> bool:
        """Whether tiles are faster than a stock kernel."""
        is_float = query.device.type == "cpu" and query.dtype == V.dtype == torch.float32
        return is_float and form.is_plain and max(query.shape[-1], V.shape[-1]) <= MAX_HEAD_WIDTH

    def _products_and_weights(self, *shape: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Two uninitialised tensors of a shape, views of the buffer."""
        numel = math.prod(shape)
        if self._buffer is None or self._buffer.shape[1] < numel:
            self._buffer = like.new_empty(2, max(numel, TILE_WEIGHTS))
        products, weights = self._buffer[:, :numel]
        return products.view(shape), weights.view(shape)
