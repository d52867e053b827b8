"""A forward pass whose graph is still alive: logits now, attribution rows once the target tokens are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradellm_engine.passes.base import AttentionPass, Target
from gradellm_engine.passes.lm_head import signs, token_ids

Backward = Callable[[Tensor, Tensor], None]  # token ids and signs, as `LogitHead.backward` takes them


class ExplainedPass:
    """The result of a forward pass: `logits`, and where it is explained the backward pass that scores its tokens.

    Attributes:
        logits: of the token after each token of the pass, concatenated over chunks. [T, V]
    """

    def __init__(self, logits: Tensor, run: AttentionPass, backward: Backward | None) -> None:
        """`backward` is None where the backward pass has already run, or none is wanted."""
        self.logits = logits
        self._run = run
        self._pending_backward = backward

    def start(self, targets: Sequence[Target | None]) -> None:
        """Launch the backward pass on a GPU, which computes it asynchronously; on a CPU do nothing yet."""
        if self.logits.is_cuda:
            self._backward(targets)

    def heat_maps(self, targets: Sequence[Target | None]) -> list[Tensor]:
        """Attribution rows of the explained chunks' tokens, chunk by chunk: a score per prefix token. [T, S] each

        Row t of a chunk is zero past its own position. Can be called once, because the backward pass frees the graph.

        Args:
            targets: one for each row of `logits`; None for rows of chunks that are not explained.
        """
        self._backward(targets)
        return _to_host(self._run.heat_maps())

    def _backward(self, targets: Sequence[Target | None]) -> None:
        if self._pending_backward is not None:
            device = self.logits.device
            self._pending_backward(token_ids(targets).to(device), signs(targets).to(device, self.logits.dtype))
            self._pending_backward = None


def _to_host(heat_maps: list[Tensor]) -> list[Tensor]:
    """Heat maps in main memory, all of a GPU's in one transfer."""
    if not heat_maps or not heat_maps[0].is_cuda:
        return heat_maps
    flat = torch.cat([heat_map.flatten() for heat_map in heat_maps])
    pinned = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True).copy_(flat, non_blocking=True)
    torch.cuda.synchronize(flat.device)
    rows: tuple[Tensor, ...] = torch.split(pinned, [heat_map.numel() for heat_map in heat_maps])
    return [row.view(heat_map.shape) for row, heat_map in zip(rows, heat_maps, strict=True)]
