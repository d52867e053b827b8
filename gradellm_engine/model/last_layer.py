"""The last layer of a pass that reads prompts: of a prompt's tokens, later ones read keys and values, and nothing else.

What the last layer makes of a token goes to the language-model head alone. So tokens whose logits are not needed go
through it as far as its attention, which stores their keys and values: a part of 1 / layers of their arithmetic is left
out. The tokens whose logits are needed go through it by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from gradellm_engine.attention.ops import AttentionForm
from gradellm_engine.layers.linear import current_output_cache
from gradellm_engine.model.attention_interface import current_pass
from gradellm_engine.passes.base import AttentionPass, LayerAttention, StopForward
from gradellm_engine.passes.mixed import MixedPass


class KeysAndValuesPass:
    """A pass that ends once a layer's keys and values are stored; see `gradellm_engine.passes.base.AttentionPass`."""

    def __init__(self, run: AttentionPass) -> None:
        self.graph_anchor, self.lowest = run.graph_anchor, run.lowest
        self.output_is_used, self.num_logits = run.output_is_used, run.num_logits
        self.relevance_rows = run.relevance_rows
        self.ids_and_positions = run.ids_and_positions
        self._run = run

    def store(self, index: int, keys: Tensor, values: Tensor) -> None:
        """See `AttentionPass`."""
        self._run.store(index, keys, values)

    def store_rotary(self, index: int, cosines: Tensor, sines: Tensor) -> None:
        """See `AttentionPass`."""
        self._run.store_rotary(index, cosines, sines)

    def layer_attention(self, module: nn.Module, index: int, form: AttentionForm) -> LayerAttention:
        """Ends the pass.

        Raises:
            StopForward: always.
        """
        raise StopForward

    def heat_maps(self) -> list[Tensor]:
        """See `AttentionPass`: none."""
        return []


@contextmanager
def ending_at_last_layer(layer: nn.Module, run: AttentionPass) -> Iterator[None]:
    """While a pass runs that needs no logits: the model ends at the last layer's keys and values."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current_pass.set(KeysAndValuesPass(run))  # until the model's forward pass has ended

    hook = layer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        with suppress(StopForward):
            yield
    finally:
        hook.remove()


@contextmanager
def splitting_last_layer(layer: nn.Module, run: MixedPass) -> Iterator[None]:
    """While a mixed pass runs: its prompts' tokens end at the last layer's keys and values, and its step goes on."""
    prompts, step = run.parts

    def before(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        num_tokens, num_rows = args[0].shape[1], step.ids_and_positions.shape[1]
        arguments = (args, tuple(kwargs.values()))
        first, kwargs_of_first = _rows(arguments, slice(num_tokens - num_rows), num_tokens)
        outputs = current_output_cache.get()
        current_pass.set(KeysAndValuesPass(prompts))
        token = current_output_cache.set(None)
        try:
            with suppress(StopForward):
                module.forward(*first, **dict(zip(kwargs, kwargs_of_first, strict=True)))
        finally:
            current_output_cache.reset(token)
        current_pass.set(step)  # until the model's forward pass has ended
        if outputs is not None:
            outputs.keep_last(num_rows)
        last, kwargs_of_last = _rows(arguments, slice(num_tokens - num_rows, num_tokens), num_tokens)
        return last, dict(zip(kwargs, kwargs_of_last, strict=True))

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # What follows may count on a row for each token; those of the prompts' are not read.
        missing = run.ids_and_positions.shape[1] - output.shape[1]
        return torch.nn.functional.pad(output, (0, 0, missing, 0))

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True), layer.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows(value: Any, rows: slice, num_tokens: int) -> Any:  # noqa: ANN401 (any argument of a layer)
    """Some rows of the tensors that have one for each token, in tuples, too. [1, T, ..]"""
    if isinstance(value, tuple):
        return tuple(_rows(item, rows, num_tokens) for item in value)
    if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[1] != num_tokens:
        return value
    return value[:, rows]
