"""A step of many sequences: one new token of each, the attention of all at once.

Keys and values of each sequence are gathered from its stretch of the pool into one tensor [B, G, L, .] whose last
column is the new token; shorter sequences have their first token again on the left, hidden. So every shape depends on
B and L alone, and every place where something is read or written is a tensor: a GPU can record the step once and replay
it (`gradellm_engine.recorded`). Against one part after the other (`gradellm_engine.passes.PartsPass`) it saves calls,
B times as many, at the price of the copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradellm_engine.attention import (
    Attended,
    AttentionForm,
    attend,
    attention_backward,
    attention_output,
    grouped,
    value_gradients,
)
from gradellm_engine.kv_pool import KVPool
from gradellm_engine.methods.within import Maps, arithmetic_of, summed
from gradellm_engine.passes import KEPT_PRODUCTS, Back, Explain, Part, keeps_products, unrotated
from gradellm_engine.settings import LayerSwitches


def is_step(parts: Sequence[Part]) -> bool:
    """Whether a `StepPass` can run these parts: one new token of each, explained in one way where they are."""
    ways = {part.explain.switches for part in parts if part.explain is not None}
    return len(ways) <= 1 and all(part.is_new and len(part.ids) == 1 for part in parts)


@dataclass(frozen=True)
class StepShape:
    """What decides which operations a step is made of.

    Attributes:
        num_rows: B.
        width: L.
        switches: how tokens are explained, None where none is.
        has_domains: whether similarities are normalised over chosen tokens in any of them.
    """

    num_rows: int
    width: int
    switches: LayerSwitches | None
    has_domains: bool

    @classmethod
    def of(cls, parts: Sequence[Part]) -> StepShape:
        """That of some parts as they are."""
        explains = [part.explain for part in parts if part.explain is not None]
        return cls(
            num_rows=len(parts),
            width=max(part.end for part in parts),
            switches=explains[0].switches if explains else None,
            has_domains=any(explain.domain is not None for explain in explains),
        )


class StepPass:
    """One token of each of B sequences of at most L tokens; see `gradellm_engine.passes.Pass`.

    Attributes:
        shape: B and L, and how they are explained.
        row: the tokens and their positions, as the model takes them. [2, B]
        anchor: a leaf that requires a gradient; None for no graph.
        lowest: the lowest layer that is explained.
        totals: the sum of layers' scores, the new token's in the last column. [B, L]
    """

    def __init__(self, pool: KVPool, rotary_of: Mapping[int, int], shape: StepShape, device: torch.device) -> None:
        self.shape = shape
        self._pool, self._rotary_of = pool, rotary_of
        self._numbers = torch.ones((4, shape.num_rows), dtype=torch.long, device=device)
        self.row, self._starts, self._lengths = self._numbers[:2], self._numbers[2], self._numbers[3]
        self._domains: Tensor | None = None
        if shape.has_domains:
            self._domains = torch.ones((shape.num_rows, shape.width), dtype=torch.bool, device=device)
        self.anchor: Tensor | None = None
        self.lowest = 0
        if shape.switches is not None:
            self.anchor = torch.zeros((), device=device, requires_grad=True)
            self.lowest = Explain(shape.switches).selected[0]
        self._explained: list[tuple[int, int]] = []  # rows, and how many tokens there are

    def fill(self, parts: Sequence[Part]) -> None:
        """Take B parts, or fewer: the last one then stands in the rows that are left, and computes the same again."""
        self._explained = [(row, part.end) for row, part in enumerate(parts) if part.explain is not None]
        padded = [*parts, *[parts[-1]] * (self.shape.num_rows - len(parts))]
        numbers = [(part.ids[0], part.start, part.slot.start, part.end) for part in padded]
        _upload(torch.tensor(numbers).T.contiguous(), self._numbers)
        if self._domains is not None:
            _upload(torch.stack([self._domain(part) for part in padded]), self._domains)

    def begin(self) -> None:
        """What all layers use, from what was filled in; the first operations of a step."""
        L = self.shape.width
        self._before = torch.arange(L - 1, -1, -1, device=self.row.device)  # columns from each to the new token's
        self._places = self._starts[:, None] + (self._lengths[:, None] - 1 - self._before).clamp_min(0)  # [B, L]
        self._rows: dict[tuple[int, int], Tensor] = {}
        self._seen: dict[int, Tensor] = {}
        self._kept: dict[int, list[Maps]] = {}  # what layers keep of their attention, by how many columns they see

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        """See `Pass`."""
        own = self._places[:, -1]
        self._pool.keys[index].index_copy_(1, own, keys)
        self._pool.values[index].index_copy_(1, own, values)

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        """See `Pass`."""
        own, table = self._places[:, -1], self._rotary_of[index]
        self._pool.cosines[table].index_copy_(0, own, cosines)
        self._pool.sines[table].index_copy_(0, own, sines)

    def site(self, module: nn.Module, index: int, form: AttentionForm) -> StepSite:
        """See `Pass`."""
        return StepSite(self, module, index, form)

    def keep(self, width: int, maps: Maps) -> None:
        """Keep a layer's maps of the last `width` columns. [B, 1, width] each"""
        self._kept.setdefault(width, []).append(maps)

    def end(self) -> None:
        """Make scores of what layers kept; the last operations of an explained step."""
        switches = self.shape.switches
        if switches is None:
            raise RuntimeError("this step explains nothing")
        totals: Tensor | None = None
        for width, rows in self._kept.items():
            scores = summed(rows, switches, self.domain(width))[:, 0]
            if totals is None:
                totals = scores.new_zeros((self.shape.num_rows, self.shape.width))
            totals[:, -width:] += scores
        if totals is None:
            raise RuntimeError("no layer was explained")
        self.totals = arithmetic_of(switches).heat_map(totals, switches)
        self._kept = {}

    def heat_maps(self) -> list[Tensor]:
        """See `Pass`."""
        if self._kept:
            self.end()
        totals = self.totals
        return [totals[row : row + 1, self.shape.width - end :] for row, end in self._explained]

    def gathered(self, places: Tensor, width: int) -> Tensor:
        """Keys or values of the last `width` columns. [G, P, D] -> [B, G, width, D]"""
        G, P, D = places.shape
        if (G, width) not in self._rows:
            heads = torch.arange(G, device=places.device)[:, None] * P
            self._rows[G, width] = (heads + self._places[:, None, -width:]).flatten()
        return places.view(G * P, D).index_select(0, self._rows[G, width]).view(-1, G, width, D)

    def keys_and_values(self, index: int, width: int) -> tuple[Tensor, Tensor]:
        """A layer's, of the last `width` columns. [B, G, width, D], [B, G, width, Dv]"""
        return self.gathered(self._pool.keys[index], width), self.gathered(self._pool.values[index], width)

    def rotary(self, index: int, width: int) -> tuple[Tensor, Tensor]:
        """The cosines and sines that a layer takes, of the last `width` columns. [B, width, .] each"""
        table, places = self._rotary_of[index], self._places[:, -width:]
        return self._pool.cosines[table][places], self._pool.sines[table][places]

    def visible(self, width: int) -> Tensor:
        """Which of the last `width` columns are the sequence's own. [B, 1, width], bool"""
        if width not in self._seen:
            self._seen[width] = (self._before[-width:] < self._lengths[:, None])[:, None]
        return self._seen[width]

    def domain(self, width: int) -> Tensor:
        """Where similarities are normalised, of the last `width` columns. [B, 1, width], bool"""
        seen = self.visible(width)
        return seen if self._domains is None else seen & self._domains[:, None, -width:]

    def _domain(self, part: Part) -> Tensor:
        """A part's chosen tokens, by column; all where it chose none. [L], bool"""
        chosen = part.explain.domain if part.explain is not None else None
        if chosen is None:
            return torch.ones(self.shape.width, dtype=torch.bool)
        left, right = self.shape.width - part.end, part.end - len(chosen)
        return torch.nn.functional.pad(chosen, (left, right))


@dataclass
class StepSite:
    """One layer's attention in a step; see `gradellm_engine.passes.Site`."""

    run: StepPass
    module: nn.Module
    index: int
    form: AttentionForm
    kept: Attended | None = None

    @property
    def width(self) -> int:
        """Columns that a query of this layer can see."""
        return min(self.run.shape.width, self.form.window or self.run.shape.width)

    def output(self, query: Tensor) -> Tensor:
        """See `Site`."""
        K, V = self.run.keys_and_values(self.index, self.width)
        q = _by_row(query[0].transpose(0, 1), K.shape[1])
        is_explained = self.run.shape.switches is not None and self.index >= self.run.lowest
        # What is gathered would be kept, too.
        keeps = is_explained and keeps_products(q, K, KEPT_PRODUCTS) and K.numel() <= KEPT_PRODUCTS
        o, products = attention_output(q, K, V, self.run.visible(self.width), self.form, by_hand=keeps)
        if keeps:
            self.kept = products
        return o.reshape(1, query.shape[2], query.shape[1], -1)

    def backward(self, query: Tensor, gradient: Tensor, *, goes_on: bool) -> Back | None:
        """See `Site`."""
        compute = torch.promote_types(query.dtype, torch.float32)
        forward = self.kept or self._again(query[0].transpose(0, 1).to(compute))
        self.kept = None
        w = _by_row(gradient[0].to(compute), forward.K.shape[1])
        U = value_gradients(forward, w)
        switches = self.run.shape.switches
        if switches is not None and self.index in Explain(switches).selected:
            before = self._unrotated(forward) if Explain(switches).needs_unrotated else None
            self.run.keep(self.width, arithmetic_of(switches).layer_maps(forward, w, U, switches, before))
        if not goes_on:
            return None
        gradients = attention_backward(forward, w, U, self.width - 1)
        # Heads first, then rows, as the model has them.
        by_row = (gradients.dq.flatten(1, 3), gradients.dk[:, :, 0], gradients.dv[:, :, 0])
        dq, dk, dv = (x.transpose(0, 1)[None].to(query.dtype) for x in by_row)
        return dq, dk, dv

    def _again(self, query: Tensor) -> Attended:
        """The forward pass once more, every product kept. query: [B, H, D]"""
        K, V = (x.to(query.dtype) for x in self.run.keys_and_values(self.index, self.width))
        return attend(_by_row(query, K.shape[1]), K, V, self.run.visible(self.width), self.form)

    def _unrotated(self, forward: Attended) -> tuple[Tensor, Tensor]:
        """Queries [B, G, r, 1, D] and keys [B, G, L, D] before the rotary embedding."""
        cosines, sines = self.run.rotary(self.index, self.width)
        q = unrotated(self.module, forward.q.flatten(1, 2), cosines[:, -1:], sines[:, -1:])
        return q.view(forward.q.shape), unrotated(self.module, forward.K, cosines, sines)


def _by_row(heads: Tensor, num_groups: int) -> Tensor:
    """Each row's heads by the key-value head that they share. [B, H, D] -> [B, G, r, 1, D]"""
    return grouped(heads[:, :, None], num_groups)


def _upload(values: Tensor, buffer: Tensor) -> None:
    """Fill a buffer; without waiting, where it lies on a GPU."""
    buffer.copy_(values.pin_memory() if buffer.is_cuda else values, non_blocking=True)
