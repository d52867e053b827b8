"""Captured CUDA graphs; tests/engine/test_gpu.py has a model's."""

from __future__ import annotations

import pytest
import torch

from gradellm_engine.compilation.cuda_graphs import CudaGraphCapturer


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replay_computes_for_other_inputs() -> None:
    x, y = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    capturer = CudaGraphCapturer(x.device)

    def double() -> None:
        torch.mul(x, 2, out=y)

    capturer.warm_up(double)
    replay = capturer.capture(double)
    x.fill_(4)
    replay()
    assert y.tolist() == [8, 8, 8]
