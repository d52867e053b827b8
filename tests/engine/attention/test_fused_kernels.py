"""Which kernels a device has."""

from __future__ import annotations

import pytest
import torch

from gradellm_engine.attention.fused_kernels import fused_attention


def test_a_cpu_has_kernels_where_numba_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(fused_attention(torch.device("cpu"))).__name__ == "NumbaAttention"
    monkeypatch.setattr("gradellm_engine.attention.fused_kernels.has_kernels", lambda: False)
    assert fused_attention(torch.device("cpu")) is None


def test_other_devices_have_none() -> None:
    assert fused_attention(torch.device("meta")) is None
