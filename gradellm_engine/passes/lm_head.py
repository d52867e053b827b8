"""The language-model head in an explained pass, cut out of the autograd graph.

The backward pass enters below the head with the weight rows of the target tokens alone. Reading the whole head again
for one or two rows a token would cost up to a fifth of a step.
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

    At most elementwise operations follow the head (soft caps, scales), so a logit's gradient by the head's output is
    zero but for that token, and the token's row of the weight is all that the backward pass reads. With targets given
    before the pass, their rows are all that the forward pass reads, too: it computes two logits a token, the target's
    and the contrast's.

    Attributes:
        logits: the model's logits, after what follows the head. [T, V], or [T, 2]
    """

    logits: Tensor

    def __init__(self, module: nn.Module, target_ids: Tensor | None = None) -> None:
        """`target_ids` are the `token_ids` of targets that are given before the pass; ignored without `has_rows`."""
        self._module = module
        self._columns: Tensor | None = None
        if target_ids is not None and self.has_rows(module):
            self._columns = target_ids.to(module.weight.device)  # type: ignore[arg-type]
        self._input: Tensor | None = None
        self._leaf: Tensor | None = None
        self._output: Tensor | None = None
        self._continue_backward: Callable[[Tensor], None] | None = None

    @property
    def has_columns(self) -> bool:
        """Whether it computes two logits a token."""
        return self._columns is not None

    @staticmethod
    def has_rows(module: nn.Module) -> bool:
        """Whether single rows of the head's weight can be read: not of a quantised one, for example."""
        return type(module) in (nn.Linear, FrozenLinear) and type(module.weight) is nn.Parameter

    def run_model(self, run: Callable[[], Tensor]) -> Tensor:
        """Run the model with a graph that ends below the head: its logits, without a graph. [T, V], or [T, 2]"""
        with torch.enable_grad(), self._cut():
            self.logits = run()
        return self.logits.detach()

    def read_hidden(
        self, hidden: Tensor, postprocess: Callable[[Tensor], Tensor], continue_backward: Callable[[Tensor], None]
    ) -> Tensor:
        """Like `run_model`, for a model that ran without a graph.

        Args:
            hidden: the head's input. [1, T, hidden]
            postprocess: the operations after the head. [1, T, .] -> [T, .]
            continue_backward: the model's backward pass, given the gradient by `hidden`.
        """
        with torch.no_grad():
            output = self._module(hidden) if self._columns is None else self._target_logits(hidden)
        self._input, self._output, self._continue_backward = hidden, output, continue_backward
        self._leaf = output.detach().requires_grad_()
        with torch.enable_grad():
            self.logits = postprocess(self._leaf)
        return self.logits.detach()

    @contextmanager
    def _cut(self) -> Iterator[None]:
        """While it lasts, the head's output is a leaf of a separate graph."""
        handle = self._module.register_forward_hook(self._hook)
        original = vars(self._module).get("forward")
        if self._columns is not None:
            self._module.forward = self._target_logits
        try:
            yield
        finally:
            handle.remove()
            if original is not None:  # of accelerate's placement
                self._module.forward = original
            elif self._columns is not None:
                del self._module.forward

    def _target_logits(self, hidden: Tensor) -> Tensor:
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
        """Differentiate the sum of all targets, minus their contrasts, through the model.

        Args:
            ids: target and contrast of each row of `logits`, on its device. [T, 2]
            signs: their signs: 1 and -1; 0 where there is none. [T, 2]
        """
        if self._leaf is None or self._output is None or self._input is None:
            raise RuntimeError("the model's language-model head did not run")
        columns = ids if self._columns is None else torch.arange(2, device=ids.device).expand_as(ids)
        has_rows = self.has_rows(self._module)
        if has_rows and _is_only_row(self.logits, self._leaf):  # nothing follows the head
            weights = signs
        else:
            (gradient,) = torch.autograd.grad((self.logits.gather(1, columns) * signs).sum(), self._leaf)  # [1, T, .]
            if not has_rows:
                torch.autograd.backward(self._output, gradient)
                return
            columns = columns.to(gradient.device)
            weights = gradient[0].gather(1, columns)  # [T, 2]
            # Where target and contrast are one token, column 0 has the gradient of both.
            weights[:, 1] *= columns[:, 0] != columns[:, 1]
        rows = self._rows(ids.to(weights.device))
        rows = rows.to(self._input.dtype)
        below = (weights[:, :, None].to(rows.dtype) * rows).sum(1)[None]
        below = below.to(self._input.device)  # a tied head may be on another device
        if self._continue_backward is not None:
            self._continue_backward(below)
        else:
            torch.autograd.backward(self._input, below)


def _is_only_row(logits: Tensor, leaf: Tensor) -> bool:
    """Whether logits [T, .] are the head's output [1, T, .] itself, without its first dimension."""
    is_view = logits._base is leaf and logits.data_ptr() == leaf.data_ptr()
    return is_view and logits.shape == leaf.shape[1:] and logits.stride() == leaf.stride()[1:]


def token_ids(targets: Sequence[Target | None]) -> Tensor:
    """Target and contrast token of each row; 0 where there is none. [T, 2]"""
    return torch.tensor(
        [(0, 0) if target is None else (target.token_id, target.contrast_id or 0) for target in targets]
    )


def signs(targets: Sequence[Target | None]) -> Tensor:
    """Signs of target and contrast of each row: 1 and -1, 0 where there is none. [T, 2]"""
    return torch.tensor(
        [
            (0.0 if target is None else 1.0, 0.0 if target is None or target.contrast_id is None else -1.0)
            for target in targets
        ]
    )
