"""What is not computed of an attention module, for nobody looks at it.

Nothing is known of a family's module but its attention. What it calls before that can be left out by giving NaN in its
place, a view of one number: where NaN comes out of what is looked at, it was wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Asked = tuple[Tensor, Tensor, Tensor]  # queries, keys and values
Ask = Callable[[tuple[Any, ...], Mapping[str, Any]], Asked | None]  # what a layer asks for attention with


class ProjectionStubs:
    """What an attention module calls before it asks for attention: its leaves, by what they gave for some texts."""

    def __init__(self, attention: nn.Module) -> None:
        self._leaves = [module for module in attention.modules() if next(module.children(), None) is None]
        self._shapes: dict[nn.Module, tuple[torch.Size, torch.dtype, torch.device] | None] = {}

    @contextmanager
    def recording_shapes(self, num_texts: int) -> Iterator[None]:
        """While they run for so many texts."""
        self._shapes.clear()

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
            known = isinstance(output, Tensor) and output.dim() > 1 and output.shape[0] == num_texts
            self._shapes[module] = (output.shape, output.dtype, output.device) if known else None

        hooks = [leaf.register_forward_hook(note) for leaf in self._leaves]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def all_stubbable(self) -> bool:
        """Whether all gave a tensor with a row of each text."""
        return None not in self._shapes.values()

    @property
    def called(self) -> list[nn.Module]:
        """Those that were."""
        return list(self._shapes)

    @contextmanager
    def stubbed(self, num_texts: int, leaves: Sequence[nn.Module]) -> Iterator[None]:
        """While the module runs for so many texts: what some leaves give is NaN, of the shape that would come."""
        replaced = {module: vars(module).get("forward") for module in leaves}
        try:
            for module in leaves:
                shape = self._shapes[module]
                if shape is not None:
                    vars(module)["forward"] = _nan_stub(num_texts, *shape)
            yield
        finally:
            for module, forward in replaced.items():
                if forward is None:
                    vars(module).pop("forward", None)
                else:
                    vars(module)["forward"] = forward


def _nan_stub(num_texts: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Callable[..., Tensor]:
    output = torch.full((1,), torch.nan, dtype=dtype, device=device).expand(num_texts, *shape[1:])
    return lambda *args, **kwargs: output


@dataclass
class LastTokenOnly:
    """A decoder's last layer, of which keys and values of all rows are wanted, and queries of one.

    Attributes:
        attention: its attention module.
    """

    attention: nn.Module
    _projections: ProjectionStubs = field(init=False)
    _leaves: list[nn.Module] | None = None  # that queries alone are made of; None before it was tried
    _length: int = 0  # of the texts that shapes are known of

    def __post_init__(self) -> None:
        self._projections = ProjectionStubs(self.attention)

    def keys_and_values(
        self, ask: Ask, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor] | None:
        """Of a layer that is given these. [B, G, T, D], [B, G, T, Dv]"""
        B, T = args[0].shape[:2]
        if self._leaves is None or self._length != T:
            first, first_kwargs = _first_text(args, B), {name: _first_text(its, B) for name, its in kwargs.items()}
            with self._projections.recording_shapes(1):
                ask(first, first_kwargs)
            self._length = T
            if self._leaves is None:
                called = self._projections.called
                self._leaves = [leaf for leaf in called if self._makes_queries(leaf, ask, first, first_kwargs)]
        with self._projections.stubbed(B, self._leaves):
            asked = ask(args, kwargs)
        return None if asked is None else asked[1:]

    def _makes_queries(self, leaf: nn.Module, ask: Ask, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether nothing else is made of what it gives."""
        with self._projections.stubbed(1, [leaf]):
            asked = ask(args, kwargs)
        if asked is None:
            return False
        query, key, value = asked
        return bool(query.isnan().any() and key.isfinite().all() and value.isfinite().all())


def _first_text(its: Any, num_texts: int) -> Any:  # noqa: ANN401 (whatever a layer is given)
    """The first of so many texts' part."""
    if isinstance(its, tuple):
        return tuple(_first_text(one, num_texts) for one in its)
    return its[:1] if isinstance(its, Tensor) and its.dim() > 1 and len(its) == num_texts else its
