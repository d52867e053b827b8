"""Captures and replays decode steps on a CPU as a GPU does with CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every ATen operation with the memory that it ran on: a CUDA graph for a CPU.

    A replay runs no Python of the model, so that control flow and values of Python objects stay as captured.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a GPU cannot capture a read of a value"
        assert func is not torch.ops.aten.nonzero.default, "a GPU cannot capture data-dependent shapes"
        result = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, result in self._calls:
                again = func(*args, **kwargs)
                pairs = zip(_tensors(result), _tensors(again), strict=True)
                for old, new in pairs:
                    if new.data_ptr() != old.data_ptr():  # views and in-place results are in place already
                        old.detach().copy_(new)


def _tensors(result: Any) -> list[Tensor]:
    results = result if isinstance(result, tuple | list) else [result]
    return [x for x in results if isinstance(x, Tensor)]


class TapeCapturer:
    """See `CudaGraphCapturer`."""

    num_warm_ups = 2

    def __init__(self) -> None:
        self.num_captured = 0

    def begin(self) -> None:
        pass

    def warm_up(self, run: Callable[[], None]) -> None:
        run()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.num_captured += 1
        tape = Tape()
        with tape:
            run()
        return tape.replay
