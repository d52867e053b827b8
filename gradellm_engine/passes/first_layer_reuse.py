"""The first layer of many texts that differ in which of their tokens are changed.

What comes into the first layer at a position is one of two rows: the token as it is, or what it was changed to. Norms,
queries, keys and values up to the attention are then one of two, too; they are computed once for all texts, and each
text's attention takes its own of them. That is a layer's part that asks for half of its products' time.

It is done for any model, for nothing of it is known but its attention. The layer runs as far as that with two rows a
position. When it runs with all rows, what its attention module called before gives NaN, at no cost: nobody looks at it,
unless something behind the attention does, a gate of the queries, say. Then NaN comes out, and it is not done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.layers.projection_skipping import ProjectionStubs
from gradellm_engine.passes.shared_prefix import SharedPrefixAttention

MIN_TEXTS = 4  # of a pass; of fewer, two rows a position are about as many


@dataclass(frozen=True)
class TokenSubstitutions:
    """Which of two rows each text has at each position.

    Attributes:
        is_replaced: [B, T], bool
        replacement_row: a text that has the second row, at each position; any where none has. [T]
        is_padding: what stands behind a text's end and is not looked at. [B, T], bool
    """

    is_replaced: Tensor
    replacement_row: Tensor
    is_padding: Tensor

    @staticmethod
    def of(codes: Tensor, lengths: Sequence[int]) -> TokenSubstitutions | None:
        """From what distinguishes rows at a position; None where there are more than two, or too few texts.

        Args:
            codes: equal ones are of equal rows. The first text is the longest. [B, T], int
            lengths: of each text; what stands behind is not looked at.
        """
        B, T = codes.shape
        if B < MIN_TEXTS:
            return None
        behind = torch.arange(T) >= torch.tensor(lengths)[:, None]
        is_replaced = (codes != codes[:1]) & ~behind
        replacement_row = is_replaced.int().argmax(0)
        expected = torch.where(is_replaced, codes[replacement_row, torch.arange(T)], codes[0])
        return (
            TokenSubstitutions(is_replaced, replacement_row, behind)
            if bool(((codes == expected) | behind).all())
            else None
        )

    def pairs(self, rows: Tensor) -> Tensor:
        """Both rows of each position. [B, T, hidden] -> [2, T, hidden]"""
        at = self.replacement_row.to(rows.device)
        return torch.stack((rows[0], rows[at, torch.arange(len(at), device=rows.device)]))

    def of_each(self, pairs: Tensor) -> Tensor:
        """Each text's own. [2, T, hidden] -> [B, T, hidden]"""
        return torch.where(self.is_replaced.to(pairs.device)[:, :, None], pairs[1], pairs[0])

    def of_heads(self, pairs: Tensor) -> Tensor:
        """Each text's own, of queries, keys or values, laid out as projections do. [2, H, T, D] -> [B, H, T, D]"""
        H, T, D = pairs.shape[1:]
        rows = pairs.transpose(1, 2).reshape(2 * T, H * D)  # a row is moved as one
        return rows.index_select(0, self._places.to(rows.device)).view(-1, T, H, D).transpose(1, 2)

    @cached_property
    def _places(self) -> Tensor:
        """Of each text's rows, among those of pairs that lie behind one another. [B T]"""
        T = self.is_replaced.shape[1]
        return (self.is_replaced.long() * T + torch.arange(T)).flatten()


@dataclass
class FirstLayer:
    """A decoder's first layer.

    Attributes:
        block: the layer.
        attention: its attention module.
        supports_dedup: whether this can be done with it; None before it was tried.
    """

    block: nn.Module
    attention: nn.Module
    supports_dedup: bool | None = None
    _projections: ProjectionStubs = field(init=False)

    def __post_init__(self) -> None:
        self._projections = ProjectionStubs(self.attention)

    @contextmanager
    def dedup_first_layer(self, run: SharedPrefixAttention, changes: TokenSubstitutions) -> Iterator[None]:
        """While the model runs for texts that are changed so."""
        stubs = ExitStack()

        def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            B, T = changes.is_replaced.shape
            given = _rows([*args, *kwargs.values()], (B, T))
            if self.supports_dedup is None and not all(_are_pairs(rows, changes) for rows in given):
                self.supports_dedup = False
                return
            few = _TwoRowInputs(changes)
            with self._projections.recording_shapes(2):
                made = run.asked(lambda: block.forward(*map(few.of, args), **{k: few.of(v) for k, v in kwargs.items()}))
            if made is None or not self._projections.all_stubbable:
                self.supports_dedup = False
                return
            run.first = tuple(changes.of_heads(its) for its in made)
            stubs.enter_context(self._projections.stubbed(B, self._projections.called))

        def after(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ANN401
            stubs.close()
            if self.supports_dedup is None:
                self.supports_dedup = bool((output[0] if isinstance(output, tuple) else output).isfinite().all())
                if not self.supports_dedup:
                    run.first = None
                    return block.forward(*args, **kwargs)
            return None

        hooks = [
            self.block.register_forward_pre_hook(before, with_kwargs=True),
            self.block.register_forward_hook(after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            stubs.close()
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True)
class _TwoRowInputs:
    """What a layer is given, of two rows a position."""

    changes: TokenSubstitutions

    def of(self, its: Any) -> Any:  # noqa: ANN401 (whatever a layer is given)
        if isinstance(its, tuple):
            return tuple(map(self.of, its))
        is_rows = isinstance(its, Tensor) and its.shape[:2] == self.changes.is_replaced.shape
        return self.changes.pairs(its) if is_rows else its


def _rows(its: Sequence[Any], shape: tuple[int, int]) -> list[Tensor]:
    """Of what a layer is given, all that has a row for each token of each text."""
    found: list[Tensor] = []
    for one in its:
        if isinstance(one, tuple):
            found += _rows(one, shape)
        elif isinstance(one, Tensor) and one.shape[:2] == shape:
            found.append(one)
    return found


def _are_pairs(rows: Tensor, changes: TokenSubstitutions) -> bool:
    """Whether each text's rows are of the two that each position has, to its end. [B, T, ..]"""
    if rows.dim() != 3:
        return False
    same = (rows == changes.of_each(changes.pairs(rows))).all(-1)
    return bool((same | changes.is_padding.to(rows.device)).all())
