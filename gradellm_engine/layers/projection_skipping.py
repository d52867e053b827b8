"""Projections of an attention module that are skipped because their result is not used.

The engine knows no family's attention module but by the attention call inside it. Any submodule called before that can
be skipped by a stub that returns NaN, a view of one number: NaN in a result shows that it depends on the stub. Which
projections make the queries alone is found so, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

QKV = tuple[Tensor, Tensor, Tensor]  # queries [B, H, T, D], keys [B, G, T, D] and values [B, G, T, Dv]
Capture = Callable[[tuple[Any, ...], Mapping[str, Any]], QKV | None]  # from a layer's arguments


class ProjectionStubs:
    """Stubs for the leaf modules that an attention module calls before its attention, shaped as in a recorded run."""

    def __init__(self, attention: nn.Module) -> None:
        self._leaves = [module for module in attention.modules() if next(module.children(), None) is None]
        self._shapes: dict[nn.Module, tuple[torch.Size, torch.dtype, torch.device] | None] = {}

    @contextmanager
    def recording_shapes(self, batch_size: int) -> Iterator[None]:
        """While the attention module runs with a batch of this size, record what its leaves return."""
        self._shapes.clear()

        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
            is_batched = isinstance(output, Tensor) and output.dim() > 1 and output.shape[0] == batch_size
            self._shapes[module] = (output.shape, output.dtype, output.device) if is_batched else None

        hooks = [leaf.register_forward_hook(record) for leaf in self._leaves]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def all_stubbable(self) -> bool:
        """Whether all recorded leaves returned a tensor with a row for each sequence."""
        return None not in self._shapes.values()

    @property
    def called(self) -> list[nn.Module]:
        """The leaves that were called in the recorded run."""
        return list(self._shapes)

    @contextmanager
    def stubbed(self, batch_size: int, leaves: Sequence[nn.Module]) -> Iterator[None]:
        """While the attention module runs with a batch of this size, `leaves` return NaN in their recorded shape."""
        replaced = {module: vars(module).get("forward") for module in leaves}
        try:
            for module in leaves:
                shape = self._shapes[module]
                if shape is not None:
                    vars(module)["forward"] = _nan_stub(batch_size, *shape)
            yield
        finally:
            for module, forward in replaced.items():
                if forward is None:
                    vars(module).pop("forward", None)
                else:
                    vars(module)["forward"] = forward


def _nan_stub(batch_size: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Callable[..., Tensor]:
    """A `forward` that returns one NaN, expanded."""
    output = torch.full((1,), torch.nan, dtype=dtype, device=device).expand(batch_size, *shape[1:])
    return lambda *args, **kwargs: output


@dataclass
class LastTokenOnly:
    """A decoder's last layer where queries are needed of one row: keys and values of all rows, queries skipped.

    Attributes:
        attention: the layer's attention module.
    """

    attention: nn.Module
    _stubs: ProjectionStubs = field(init=False)
    _query_leaves: list[nn.Module] | None = None  # leaves whose output goes into queries alone; None until probed
    _length: int = 0  # of the sequences whose shapes are recorded

    def __post_init__(self) -> None:
        self._stubs = ProjectionStubs(self.attention)

    def keys_and_values(
        self, capture: Capture, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor] | None:
        """The layer's keys [B, G, T, D] and values [B, G, T, Dv]; None where it calls no attention.

        Args:
            capture: runs the layer as far as its attention.
            args: the layer's arguments.
            kwargs: the layer's keyword arguments.
        """
        B, T = args[0].shape[:2]
        if self._query_leaves is None or self._length != T:
            first = _first_sequence(args, B)
            first_kwargs = {name: _first_sequence(value, B) for name, value in kwargs.items()}
            with self._stubs.recording_shapes(1):
                capture(first, first_kwargs)
            self._length = T
            if self._query_leaves is None:
                called = self._stubs.called
                self._query_leaves = [
                    leaf for leaf in called if self._is_query_leaf(leaf, capture, first, first_kwargs)
                ]
        with self._stubs.stubbed(B, self._query_leaves):
            qkv = capture(args, kwargs)
        return None if qkv is None else qkv[1:]

    def _is_query_leaf(
        self, leaf: nn.Module, capture: Capture, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bool:
        """Whether a leaf's output goes into queries and nothing else."""
        with self._stubs.stubbed(1, [leaf]):
            qkv = capture(args, kwargs)
        if qkv is None:
            return False
        query, key, value = qkv
        return bool(query.isnan().any() and key.isfinite().all() and value.isfinite().all())


def _first_sequence(value: Any, batch_size: int) -> Any:  # noqa: ANN401 (any argument of a layer)
    """The first sequence's part of an argument."""
    if isinstance(value, tuple):
        return tuple(_first_sequence(item, batch_size) for item in value)
    is_batched = isinstance(value, Tensor) and value.dim() > 1 and len(value) == batch_size
    return value[:1] if is_batched else value
