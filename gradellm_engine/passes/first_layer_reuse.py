"""Reuse of the first layer's projections among sequences that differ only in their replaced tokens.

The first layer's input at a position is one of two rows: the original token or its replacement. Norms, queries, keys
and values up to the attention are then one of two, too. They are computed once for all sequences, and each sequence's
attention takes its own rows: half of the layer's GEMM time is saved.

It works for any family, since nothing is known of the layer but its attention call. The layer first runs as far as its
attention with two rows a position (`SharedPrefixAttention.capture_qkv`). When it then runs with all rows, the
projections before its attention are stubs that return NaN at no cost. Where an operation after the attention uses one,
such as a gate computed from the queries, the first output has NaN in it, and the model does without.
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

MIN_TEXTS = 4  # sequences of a pass; with fewer, two rows a position save little


@dataclass(frozen=True)
class TokenSubstitutions:
    """Which of two rows each of B sequences has at each position.

    Attributes:
        is_replaced: whether it is the replacement. [B, T], bool
        replacement_row: a sequence that has the replacement, for each position; any where none has. [T]
        is_padding: positions past a sequence's end, whose results are not used. [B, T], bool
    """

    is_replaced: Tensor
    replacement_row: Tensor
    is_padding: Tensor

    @staticmethod
    def of(codes: Tensor, lengths: Sequence[int]) -> TokenSubstitutions | None:
        """From codes of rows; None where a position has more than two rows, or where there are too few sequences.

        Args:
            codes: equal where rows are equal. The first sequence is the longest. [B, T], int
            lengths: of each sequence. [B]
        """
        B, T = codes.shape
        if B < MIN_TEXTS:
            return None
        is_padding = torch.arange(T) >= torch.tensor(lengths)[:, None]
        is_replaced = (codes != codes[:1]) & ~is_padding
        replacement_row = is_replaced.int().argmax(0)
        expected = torch.where(is_replaced, codes[replacement_row, torch.arange(T)], codes[0])
        has_two_rows = bool(((codes == expected) | is_padding).all())
        return TokenSubstitutions(is_replaced, replacement_row, is_padding) if has_two_rows else None

    def pairs(self, rows: Tensor) -> Tensor:
        """The two rows of each position. [B, T, hidden] -> [2, T, hidden]"""
        row_index = self.replacement_row.to(rows.device)
        return torch.stack((rows[0], rows[row_index, torch.arange(len(row_index), device=rows.device)]))

    def of_each(self, pairs: Tensor) -> Tensor:
        """Each sequence's own rows. [2, T, hidden] -> [B, T, hidden]"""
        return torch.where(self.is_replaced.to(pairs.device)[:, :, None], pairs[1], pairs[0])

    def of_heads(self, pairs: Tensor) -> Tensor:
        """Each sequence's own queries, keys or values, laid out as projections do. [2, H, T, D] -> [B, H, T, D]"""
        H, T, D = pairs.shape[1:]
        rows = pairs.transpose(1, 2).reshape(2 * T, H * D)  # each row is copied in one move
        return rows.index_select(0, self._pair_indexes.to(rows.device)).view(-1, T, H, D).transpose(1, 2)

    @cached_property
    def _pair_indexes(self) -> Tensor:
        """The index of each sequence's rows in flattened pairs [2 T]. [B T]"""
        T = self.is_replaced.shape[1]
        return (self.is_replaced.long() * T + torch.arange(T)).flatten()


@dataclass
class FirstLayer:
    """A decoder's first layer.

    Attributes:
        block: the layer.
        attention: its attention module.
        supports_dedup: whether its projections can be computed once; None until the first pass has shown it.
    """

    block: nn.Module
    attention: nn.Module
    supports_dedup: bool | None = None
    _stubs: ProjectionStubs = field(init=False)

    def __post_init__(self) -> None:
        self._stubs = ProjectionStubs(self.attention)

    @contextmanager
    def dedup_first_layer(self, run: SharedPrefixAttention, changes: TokenSubstitutions) -> Iterator[None]:
        """While the model runs sequences with these substitutions, compute each distinct row of the layer once."""
        active_stubs = ExitStack()

        def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            B, T = changes.is_replaced.shape
            inputs = _rows_in([*args, *kwargs.values()], (B, T))
            if self.supports_dedup is None and not all(_are_pairs(rows, changes) for rows in inputs):
                self.supports_dedup = False
                return
            two_rows = _TwoRowInputs(changes)
            with self._stubs.recording_shapes(2):
                qkv = run.capture_qkv(
                    block, tuple(map(two_rows.of, args)), {name: two_rows.of(value) for name, value in kwargs.items()}
                )
            if qkv is None or not self._stubs.all_stubbable:
                self.supports_dedup = False
                return
            query, key, value = map(changes.of_heads, qkv)
            run.first_layer_qkv = query, key, value
            active_stubs.enter_context(self._stubs.stubbed(B, self._stubs.called))

        def after(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:  # noqa: ANN401
            active_stubs.close()
            if self.supports_dedup is None:
                self.supports_dedup = bool((output[0] if isinstance(output, tuple) else output).isfinite().all())
                if not self.supports_dedup:
                    run.first_layer_qkv = None
                    return block.forward(*args, **kwargs)
            return None

        hooks = [
            self.block.register_forward_pre_hook(before, with_kwargs=True),
            self.block.register_forward_hook(after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            active_stubs.close()
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True)
class _TwoRowInputs:
    """A layer's arguments, reduced to the two rows of each position."""

    changes: TokenSubstitutions

    def of(self, value: Any) -> Any:  # noqa: ANN401 (any argument of a layer)
        if isinstance(value, tuple):
            return tuple(map(self.of, value))
        has_rows = isinstance(value, Tensor) and value.shape[:2] == self.changes.is_replaced.shape
        return self.changes.pairs(value) if has_rows else value


def _rows_in(values: Sequence[Any], shape: tuple[int, int]) -> list[Tensor]:
    """The tensors among a layer's arguments that have a row for each token of each sequence."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, tuple):
            found += _rows_in(value, shape)
        elif isinstance(value, Tensor) and value.shape[:2] == shape:
            found.append(value)
    return found


def _are_pairs(rows: Tensor, changes: TokenSubstitutions) -> bool:
    """Whether each sequence's rows, up to its end, are among the two of each position. [B, T, ..]"""
    if rows.dim() != 3:
        return False
    same = (rows == changes.of_each(changes.pairs(rows))).all(-1)
    return bool((same | changes.is_padding.to(rows.device)).all())
