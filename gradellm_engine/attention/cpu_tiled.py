"""Attention of many short sequences on a CPU, computed in tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gradellm_engine.attention.ops import AttentionForm

# Measured on a CPU with 1 MB of second-level cache a core.
TILE_WEIGHTS = 2**18  # attention weights that are computed at once, so that they stay there until they are multiplied

TILE_QUERIES = 40  # queries of a piece, about: fewer see fewer keys that are hidden from them, more are fewer calls

MAX_HEAD_WIDTH = 32  # heads for which all that is faster than a stock kernel

NARROW_VALUE_WIDTH = 16  # values narrower than that are multiplied faster as columns


@dataclass
class TiledAttention:
    """Plain attention of many short sequences, a stretch of queries and some sequences' heads at a time.

    A stock kernel takes them one by one, and half of its time is not arithmetic where heads are narrow.
    """

    _memory: Tensor | None = None  # of products and weights; memory that is new each time is slow

    def output(self, query: Tensor, K: Tensor, V: Tensor, visible: Tensor, form: AttentionForm) -> Tensor:
        """The output. [B, T, H, Dv]

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
            o = query.new_empty(B * G, Dv, rows).mT if Dv < NARROW_VALUE_WIDTH else query.new_empty(B * G, rows, Dv)
            size = max(1, TILE_WEIGHTS // (rows * seen))
            for its in (slice(start, start + size) for start in range(0, B * G, size)):
                Z, A = self._room(len(q[its]), rows, seen, like=q)
                torch.softmax(torch.baddbmm(bias, q[its], k[its].mT, alpha=form.scaling, out=Z), -1, out=A)
                if Dv < NARROW_VALUE_WIDTH:
                    torch.bmm(v[its].mT, A.mT, out=o[its].mT)
                else:
                    torch.bmm(A, v[its], out=o[its])
            output[:, begin:end] = o.reshape(B, G, r, end - begin, Dv).permute(0, 3, 1, 2, 4)
        return output.flatten(2, 3)

    @staticmethod
    def is_faster(query: Tensor, V: Tensor, form: AttentionForm) -> bool:
        """Whether they are faster than a stock kernel."""
        is_float = query.device.type == "cpu" and query.dtype == V.dtype == torch.float32
        return is_float and form.is_plain and max(query.shape[-1], V.shape[-1]) <= MAX_HEAD_WIDTH

    def _room(self, *shape: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """For products, and for weights."""
        numel = math.prod(shape)
        if self._memory is None or self._memory.shape[1] < numel:
            self._memory = like.new_empty(2, max(numel, TILE_WEIGHTS))
        products, weights = self._memory[:, :numel]
        return products.view(shape), weights.view(shape)
