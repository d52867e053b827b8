"""CUDA graphs, captured by torch; `gradellm_engine.compilation.graph_cache` says of what."""

from __future__ import annotations

from collections.abc import Callable

import torch


class CudaGraphCapturer:
    """Captures CUDA graphs.

    They share one memory pool: one graph runs at a time, and its results are read before the next one runs.
    """

    num_warm_ups = 2  # libraries choose kernels and allocate workspaces at their first calls

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory = torch.cuda.graph_pool_handle()

    def begin(self) -> None:
        """See `GraphCapturer`: tensors that are alive keep their memory."""

    def warm_up(self, run: Callable[[], None]) -> None:
        """See `GraphCapturer`."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream(self._device).wait_stream(stream)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `GraphCapturer`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, pool=self._memory):
            run()
        return graph.replay
