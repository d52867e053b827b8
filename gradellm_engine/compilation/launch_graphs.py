"""Launch graphs: what a CUDA graph is on a GPU, for the kernels of a CPU.

While a step runs once, every launch of a kernel (`gradellm_engine.cpu_kernels.team`) is recorded, and every operator of
torch. The memory of all of them is kept, so that repeating the same calls on the same addresses computes the step for
other inputs. Launches that follow each other are one call of a compiled function, which holds no interpreter lock:
a decode step is ten operators of torch, for embeddings and rotary factors, and then all layers in one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gradellm_engine.compilation.tracer import NotTraceable
from gradellm_engine.cpu_kernels.dispatch import kernels_for
from gradellm_engine.cpu_kernels.operators import implementations
from gradellm_engine.cpu_kernels.team import Launch, LaunchSequence, recording
from gradellm_engine.utils.torch_compat import TorchDispatchMode, changes_argument

_EMPTY = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
}
_NOT_REPEATABLE = {
    torch.Tag.data_dependent_output: "gives what depends on data",
    torch.Tag.dynamic_output_shape: "gives a shape that depends on data",
    torch.Tag.nondeterministic_seeded: "draws random numbers",
}

_ALIGNMENT = 64  # bytes: a cache line

Call = Callable[[], None]


class LaunchCapturer:
    """Captures launch graphs; see `gradellm_engine.compilation.graph_cache.GraphCapturer`.

    Steps share the memory of their kernels' results: one step runs at a time, and its results are read before the next.

    Attributes:
        arena: that memory.
    """

    num_warm_ups = 0

    def __init__(self) -> None:
        self.arena = Arena()

    def begin(self) -> None:
        """See `GraphCapturer`."""
        self.arena.rewind()

    def warm_up(self, run: Call) -> None:
        """See `GraphCapturer`."""
        run()

    def capture(self, run: Call) -> Call:
        """See `GraphCapturer`.

        Raises:
            NotTraceable: if the calls of `run` depend on data.
        """
        recorder = _Recorder(self.arena)
        with recording(recorder.add_launch), recorder:
            run()
        return LaunchGraph(recorder).replay


class Arena:
    """Memory that is handed out in order, and again from the beginning after `rewind`.

    Attributes:
        num_bytes: its size; it grows as needed.
    """

    def __init__(self, chunk_bytes: int = 2**24) -> None:
        self._chunk_bytes = chunk_bytes
        self._chunks: list[Tensor] = []
        self._chunk = self._used = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all chunks."""
        return sum(chunk.nbytes for chunk in self._chunks)

    def rewind(self) -> None:
        """Hand out from the beginning."""
        self._chunk = self._used = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised, contiguous tensor."""
        num_bytes = math.prod(shape) * dtype.itemsize
        while True:
            if self._chunk == len(self._chunks):
                self._chunks.append(torch.empty(max(self._chunk_bytes, num_bytes), dtype=torch.uint8))
            chunk = self._chunks[self._chunk]
            if self._used + num_bytes <= chunk.nbytes:
                break
            self._chunk, self._used = self._chunk + 1, 0
        found = chunk[self._used : self._used + num_bytes].view(dtype).view(shape)
        self._used += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return found


class LaunchGraph:
    """Recorded calls.

    Attributes:
        num_calls: calls of a replay: operators of torch, and sequences of launches.
    """

    def __init__(self, recorder: _Recorder) -> None:
        from gradellm_engine.cpu_kernels.sequence import SEQUENCE  # needs Numba

        self._calls: list[Call] = []
        launches: list[tuple[int, Launch]] = []
        for call in [*recorder.calls, None]:
            if isinstance(call, tuple):
                launches.append(call)
                continue
            if launches:
                self._calls.append(LaunchSequence(launches, SEQUENCE).run)
                launches = []
            if call is not None:
                self._calls.append(call)
        self._kept = recorder.kept

    @property
    def num_calls(self) -> int:
        """Calls of a replay."""
        return len(self._calls)

    def replay(self) -> None:
        """Repeat the calls."""
        with torch.no_grad():
            for call in self._calls:
                call()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operators and launches, in the order they run.

    Attributes:
        calls: kernels with their integers, and functions that repeat an operator.
        kept: tensors whose memory the calls write to.
    """

    def __init__(self, arena: Arena) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arena = arena
        self.calls: list[tuple[int, Launch] | Call] = []
        self.kept: list[Tensor] = []

    def add_launch(self, kernel: int, integers: Launch) -> None:
        """Record a launch."""
        self.calls.append((kernel, integers))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 (torch's)
        """Run an operator, and record it."""
        kwargs = kwargs or {}
        if func in implementations:
            with self:  # for what the implementation allocates
                return implementations[func](*args, **kwargs)
        if func is torch.ops.aten.add.Tensor and not kwargs and (kernels := _kernels_for_sum(*args)) is not None:
            with self:
                return kernels.add(*args)
        for tag, reason in _NOT_REPEATABLE.items():
            if tag in func.tags and not _indexes_by_number(func, args):
                raise NotTraceable(f"{func} {reason}")
        result = func(*args, **kwargs)
        if func in _EMPTY and result.is_contiguous() and result.device.type == "cpu":
            result = self._arena.empty(result.shape, result.dtype)
        results = [x for x in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(x, Tensor)]
        self.kept += results
        if func in _EMPTY or (func.is_view and _is_view_of(result, args[0])):
            return result
        if changes_argument(func):
            self.calls.append(lambda: func(*args, **kwargs))
        else:
            self.calls.append(_repeated(func, args, kwargs, results))
        return result


def _is_view_of(result: Any, x: Any) -> bool:  # noqa: ANN401
    """Whether a view operator's result is a view: `contiguous` and `reshape` are views or copies, as it happens."""
    first = result[0] if isinstance(result, (tuple, list)) else result
    return not first.numel() or first.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def _indexes_by_number(func: Any, args: Any) -> bool:  # noqa: ANN401
    """Whether an operator is x[i] with integers i, whose shape is known, unlike that of x[mask]."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(index is None or index.dtype in (torch.int64, torch.int32) for index in args[1])


def _kernels_for_sum(x: Any, y: Any) -> ModuleType | None:  # noqa: ANN401
    """The kernels that add two tensors, as residual connections do; None for other summands."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape):
        return None
    return kernels_for(x, y) if x.is_contiguous() and y.is_contiguous() else None


def _repeated(func: Any, args: Any, kwargs: Any, results: list[Tensor]) -> Call:  # noqa: ANN401
    """A call of an operator whose results go where they were the first time."""

    def call() -> None:
        again = func(*args, **kwargs)
        for old, new in zip(results, again if isinstance(again, (tuple, list)) else [again], strict=False):
            if old.data_ptr() != new.data_ptr():
                old.copy_(new)

    return call
