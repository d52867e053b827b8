"""The language-model head in an explained pass, cut out of the graph.

The logits' gradient enters below the head by the rows of the explained tokens alone: reading the whole head again for
one or two rows a token would cost up to a fifth of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gradellm_engine.layers.linear import FrozenLinear
from gradellm_engine.passes.base import Target


class LogitHead:
    """The head of one pass.

    Behind the head lie at most elementwise steps (soft caps, scales), so that the gradient of one logit by the head's
    outputs is zero but for that token's: its rows of the weight are all that the backward pass needs to read. Where
    the targets are known before, they are all that the forward pass needs, too: its logits are then two a token, the
    target's and the contrast's.

    Attributes:
        logits: what the model made of the head's output. [T, V], or [T, 2]
    """

    logits: Tensor

    def __init__(self, module: nn.Module, known: Tensor | None = None) -> None:
        """`known` are `token_ids` of the targets, where they are known before; not all heads can use it."""
        self._module = module
        self._columns: Tensor | None = None
        if known is not None and self.has_rows(module):
            self._columns = known.to(module.weight.device)  # type: ignore[arg-type]
        self._input: Tensor | None = None
        self._leaf: Tensor | None = None
        self._output: Tensor | None = None
        self._go_on: Callable[[Tensor], None] | None = None

    @property
    def has_columns(self) -> bool:
        """Whether its logits are two a token."""
        return self._columns is not None

    @staticmethod
    def has_rows(module: nn.Module) -> bool:
        """Whether single rows of the head's weight can be read; not where it is quantised, for example."""
        return type(module) in (nn.Linear, FrozenLinear) and type(module.weight) is nn.Parameter

    def read(self, run: Callable[[], Tensor]) -> Tensor:
        """Run the model with a graph that ends below the head: its logits, without a graph. [T, V], or [T, 2]"""
        with torch.enable_grad(), self._cut():
            self.logits = run()
        return self.logits.detach()

    def take(self, hidden: Tensor, behind: Callable[[Tensor], Tensor], go_on: Callable[[Tensor], None]) -> Tensor:
        """As `read`, of a model that was run without a graph: the same.

        Args:
            hidden: the head's input. [1, T, hidden]
            behind: what stands behind the head. [1, T, .] -> [T, .]
            go_on: the model's backward pass, from the gradient by `hidden`.
        """
        with torch.no_grad():
            output = self._module(hidden) if self._columns is None else self._known_logits(hidden)
        self._input, self._output, self._go_on = hidden, output, go_on
        self._leaf = output.detach().requires_grad_()
        with torch.enable_grad():
            self.logits = behind(self._leaf)
        return self.logits.detach()

    @contextmanager
    def _cut(self) -> Iterator[None]:
        """While it lasts, the head's output is a leaf of a graph of its own."""
        handle = self._module.register_forward_hook(self._hook)
        whole = vars(self._module).get("forward")
        if self._columns is not None:
            self._module.forward = self._known_logits
        try:
            yield
        finally:
            handle.remove()
            if whole is not None:  # that of accelerate's placement
                self._module.forward = whole
            elif self._columns is not None:
                del self._module.forward

    def _known_logits(self, hidden: Tensor) -> Tensor:
        """[1, T, hidden] -> [1, T, 2]"""
        rows = self._rows(self._columns)
        logits = (rows * hidden[0, :, None].to(rows.device)).sum(-1)
        bias = self._module.bias
        return (logits if bias is None else logits + bias[self._columns])[None]  # type: ignore[index]

    def _rows(self, columns: Tensor | None) -> Tensor:
        """[T, 2] -> [T, 2, hidden]"""
        return self._module.weight[columns]  # type: ignore[index]

    def _hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self._input, self._output = args[0], output
        self._leaf = output.detach().requires_grad_()
        return self._leaf

    def backward(self, ids: Tensor, signs: Tensor) -> None:
        """Differentiate, through the model, the sum of what is explained.

        Args:
            ids: target and contrast of each row of `logits`, on its device. [T, 2]
            signs: what they count: 1 and -1; 0 where there is none. [T, 2]
        """
        if self._leaf is None or self._output is None or self._input is None:
            raise RuntimeError("the model's language-model head did not run")
        places = ids if self._columns is None else torch.arange(2, device=ids.device).expand_as(ids)
        has_rows = self.has_rows(self._module)
        if has_rows and _is_only_row(self.logits, self._leaf):  # nothing lies behind the head
            weights = signs
        else:
            (gradient,) = torch.autograd.grad((self.logits.gather(1, places) * signs).sum(), self._leaf)  # [1, T, .]
            if not has_rows:
                torch.autograd.backward(self._output, gradient)
                return
            places = places.to(gradient.device)
            weights = gradient[0].gather(1, places)  # [T, 2]
            weights[:, 1] *= places[:, 0] != places[:, 1]  # a place that is both holds the gradient of both
        rows = self._rows(ids.to(weights.device))
        below = (weights[:, :, None].to(rows.dtype) * rows).sum(1)[None]
        below = below.to(self._input.device)  # a tied head may lie elsewhere
        if self._go_on is not None:
            self._go_on(below)
        else:
            torch.autograd.backward(self._input, below)


def _is_only_row(logits: Tensor, leaf: Tensor) -> bool:
    """Whether logits [T, .] are what the head gave [1, T, .], without its first dimension."""
    is_view = logits._base is leaf and logits.data_ptr() == leaf.data_ptr()
    return is_view and logits.shape == leaf.shape[1:] and logits.stride() == leaf.stride()[1:]


def token_ids(targets: Sequence[Target | None]) -> Tensor:
    """Target and contrast of each; token 0 stands where there is none. [T, 2]"""
    return torch.tensor(
        [(0, 0) if target is None else (target.token_id, target.contrast_id or 0) for target in targets]
    )


def signs(targets: Sequence[Target | None]) -> Tensor:
    """What target and contrast of each count: 1 and -1, 0 where there is none. [T, 2]"""
    return torch.tensor(
        [
            (0.0 if target is None else 1.0, 0.0 if target is None or target.contrast_id is None else -1.0)
            for target in targets
        ]
    )
