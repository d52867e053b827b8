"""The kernels against `gradellm_engine.attention.ops` in float64: on a GPU where there is one, else interpreted."""

from __future__ import annotations

import pytest
import torch

from support.attention.kernels import DEVICE, EXACT, ROUNDED, check, close

pytest.importorskip("triton")
from gradellm_engine.attention.fused import MapKind
from gradellm_engine.attention.ops import InputGradient
from gradellm_engine.attention.triton_attention import TritonAttention
from gradellm_engine.attention.triton_kernels import join_forward_kernel

# Triton's interpreter does not support bfloat16.
TYPES = [torch.float32, torch.bfloat16 if torch.cuda.is_available() else torch.float16]
KERNELS = TritonAttention(DEVICE)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", list(MapKind))
def test_one_token_of_each(dtype: torch.dtype, kind: MapKind) -> None:
    check(KERNELS, DEVICE, [70, 1, 99], T=1, G=2, r=4, D=32, Dv=32, window=None, width=128, dtype=dtype, kind=kind)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", list(MapKind))
def test_odd_sizes_and_a_window(dtype: torch.dtype, kind: MapKind) -> None:
    check(KERNELS, DEVICE, [40, 5], T=5, G=2, r=3, D=20, Dv=24, window=9, width=60, dtype=dtype, kind=kind)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_more_tokens_than_a_program_takes(dtype: torch.dtype) -> None:
    check(
        KERNELS,
        DEVICE,
        [97, 20],
        T=16,
        G=1,
        r=8,
        D=64,
        Dv=64,
        window=None,
        width=97,
        dtype=dtype,
        kind=MapKind.PRODUCTS,
    )


@pytest.mark.parametrize("needs", [InputGradient.NOTHING, InputGradient.VALUES])
def test_no_gradient_or_that_by_values_alone(needs: InputGradient) -> None:
    check(
        KERNELS, DEVICE, [9], T=2, G=1, r=1, D=16, Dv=16, window=None, width=64, dtype=torch.float32,
        kind=MapKind.PRODUCTS, needs=needs,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", [MapKind.SIGNED_SUM, MapKind.KNOCKOUT, MapKind.HEAD_POSITIVE, MapKind.NOTHING])
@pytest.mark.parametrize("window", [None, 9])
def test_without_the_sink(dtype: torch.dtype, kind: MapKind, window: int | None) -> None:
    """A sequence of one token has no sources; in a window, some tokens see the sink, and others do not."""
    width = 70 if window is None else 13
    lengths = [70, 1, 33] if window is None else [13, 70]
    check(
        KERNELS, DEVICE, lengths, T=1 if window is None else 5, G=2, r=2, D=16, Dv=16, window=window, width=width,
        dtype=dtype, kind=kind, excludes_sink=True, sink=10.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("S", "S2", "excludes_sink"), [(1, 1, False), (3, 4, False), (8, 8, False), (2, 2, True), (8, 8, True)]
)
def test_splits_are_merged_as_one_softmax(S: int, S2: int, *, excludes_sink: bool) -> None:
    """Each with its own maximum; a split may have no keys. Without the sink, all but the last are the sources."""
    torch.manual_seed(S)
    count, Dv, N = 3, 5, 6
    z, V = 20 * torch.randn(S, count, N, dtype=torch.float64), torch.randn(S, count, N, Dv, dtype=torch.float64)
    if S > 1:
        z[1, 0] = -torch.inf
    highest = z.max(-1).values
    weights = (z - highest.nan_to_num(neginf=0)[..., None]).exp()
    partials = (weights[..., None] * V).sum(2)
    given = [x.float().to(DEVICE).contiguous() for x in (partials, highest, weights.sum(-1))]
    output = torch.full((count, Dv), torch.nan, dtype=torch.float16, device=DEVICE)
    exact, log_totals = (
        torch.full((count, Dv), torch.nan, device=DEVICE),
        torch.full((count,), torch.nan, device=DEVICE),
    )
    of_sources, log_sources = torch.full_like(exact, torch.nan), torch.full_like(log_totals, torch.nan)
    join_forward_kernel[(count,)](
        *given, output, exact, log_totals, of_sources, log_sources, count, EXCLUDES=excludes_sink, S=S, S2=S2, DV=Dv,
        DV2=8, num_warps=1,
    )  # fmt: skip
    if excludes_sink:
        rows, values = z[:-1].transpose(0, 1).flatten(1), V[:-1].transpose(0, 1).flatten(1, 2)
        assert close(of_sources, (rows.softmax(-1)[..., None] * values).sum(1), EXACT)
        assert torch.allclose(log_sources.cpu().double(), rows.logsumexp(-1), atol=EXACT)
    rows, values = z.transpose(0, 1).flatten(1), V.transpose(0, 1).flatten(1, 2)
    expected = (rows.softmax(-1)[..., None] * values).sum(1)
    assert close(exact, expected, EXACT)
    assert close(output, expected, ROUNDED[torch.float16])
    assert close(log_totals, rows.logsumexp(-1), EXACT)
