"""Projections whose result is not used are found by a NaN, and skipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine.layers.projection_skipping import QKV, Capture, LastTokenOnly, ProjectionStubs

HEADS, WIDTH = 2, 4


class SeparateProjections(nn.Module):
    """Queries, keys and values by a projection each; queries are normalised."""

    def __init__(self) -> None:
        super().__init__()
        size = HEADS * WIDTH
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, size)
        self.q_norm = nn.LayerNorm(WIDTH)
        self.o_proj = nn.Linear(size, size)

    def qkv(self, x: Tensor) -> QKV:
        query, key, value = (_heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        query, key = torch.stack((self.q_norm(query), key))  # as a rotary embedding of both needs their shapes
        return query, key, value


class SharedKeys(nn.Module):
    """One projection for queries and keys, which cannot be skipped either; values by their own."""

    def __init__(self) -> None:
        super().__init__()
        self.qk_proj, self.v_proj = (nn.Linear(HEADS * WIDTH, HEADS * WIDTH) for _ in range(2))

    def qkv(self, x: Tensor) -> QKV:
        shared = _heads(self.qk_proj(x))
        return 2 * shared, shared, _heads(self.v_proj(x))


class JoinedProjection(nn.Module):
    """One projection for queries, keys and values, which cannot be skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(HEADS * WIDTH, 3 * HEADS * WIDTH)

    def qkv(self, x: Tensor) -> QKV:
        query, key, value = self.qkv_proj(x).chunk(3, -1)
        return _heads(query), _heads(key), _heads(value)


def _heads(x: Tensor) -> Tensor:
    return x.view(*x.shape[:-1], HEADS, WIDTH).transpose(1, 2)


def capture_of(attention: Any) -> Capture:
    """Runs an attention module as far as its attention."""

    def capture(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> QKV:
        result: QKV = attention.qkv(args[0])
        return result

    return capture


def hidden(B: int, T: int) -> Tensor:
    return torch.randn(B, T, HEADS * WIDTH, generator=torch.Generator().manual_seed(B * T))


@pytest.mark.parametrize("kind", [SeparateProjections, SharedKeys, JoinedProjection])
@torch.no_grad()
def test_keys_and_values_are_those_of_a_whole_layer(kind: type[nn.Module]) -> None:
    """At any length and batch size, although shapes are recorded with one sequence."""
    attention: Any = kind()
    subject, capture = LastTokenOnly(attention), capture_of(attention)
    for B, T in ((3, 5), (2, 5), (3, 4), (1, 1)):
        x = hidden(B, T)
        found = subject.keys_and_values(capture, (x,), {})
        assert found is not None
        assert all(map(torch.equal, found, attention.qkv(x)[1:]))


@torch.no_grad()
def test_only_query_projections_are_skipped() -> None:
    attention = SeparateProjections()
    subject = LastTokenOnly(attention)
    subject.keys_and_values(capture_of(attention), (hidden(3, 5),), {})  # probes
    outputs: list[str] = []
    for name, module in attention.named_children():
        module.register_forward_hook(
            lambda module, args, output, name=name: outputs.append(name) if output.isfinite().all() else None
        )
    subject.keys_and_values(capture_of(attention), (hidden(4, 5),), {})
    assert outputs == ["k_proj", "v_proj"]
    assert attention.qkv(hidden(4, 5))[0].isfinite().all()  # nothing stays replaced


def test_a_layer_without_attention_has_no_keys() -> None:
    assert LastTokenOnly(SeparateProjections()).keys_and_values(lambda *args: None, (hidden(2, 3),), {}) is None


@torch.no_grad()
def test_arguments_of_the_probe_are_those_of_the_first_sequence() -> None:
    """Also inside tuples; what has no row for each sequence is handed over whole."""
    attention, shapes = JoinedProjection(), list[tuple[int, ...]]()

    def capture(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> QKV:
        shapes.append((len(args[0]), len(kwargs["tables"][0]), len(kwargs["positions"])))
        result: QKV = attention.qkv(args[0])
        return result

    tables = (hidden(3, 5), hidden(1, 5))
    LastTokenOnly(attention).keys_and_values(
        capture, (hidden(3, 5),), {"tables": tables, "positions": torch.arange(3), "cache": None}
    )
    assert set(shapes[:-1]) == {(1, 1, 3)}
    assert shapes[-1] == (3, 3, 3)


def test_stubs_return_nan_in_the_recorded_shape() -> None:
    attention = SeparateProjections().double()
    stubs, x = ProjectionStubs(attention), hidden(1, 5).double()
    with stubs.recording_shapes(1):
        attention.qkv(x)
    assert stubs.called == [attention.q_proj, attention.k_proj, attention.v_proj, attention.q_norm]
    assert stubs.all_stubbable
    with stubs.stubbed(6, [attention.k_proj]):
        output = attention.k_proj(x)
        assert attention.q_proj(x).isfinite().all()
    assert output.shape == (6, 5, HEADS * WIDTH)
    assert output.dtype == torch.float64
    assert output.isnan().all()
    assert output.untyped_storage().nbytes() == output.itemsize
    assert attention.k_proj(x).isfinite().all()


def test_a_module_without_a_row_for_each_sequence_has_no_stub() -> None:
    class Flattening(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(0, 1)

    stubs, x = ProjectionStubs(nn.Sequential(flat := Flattening(), nn.Identity())), torch.ones(2, 3, 4)
    with stubs.recording_shapes(2):
        flat(x)
    assert not stubs.all_stubbable
    with stubs.stubbed(2, [flat]):
        assert torch.equal(flat(x), x.flatten(0, 1))


def test_a_forward_of_the_module_s_own_is_put_back() -> None:
    """As accelerate's placement gives a module, also where the stubbed run fails."""
    attention = SeparateProjections()
    stubs, x = ProjectionStubs(attention), hidden(1, 2)
    own = vars(attention.q_proj)["forward"] = torch.zeros_like
    with stubs.recording_shapes(1):
        attention.qkv(x)
    with pytest.raises(ValueError, match="no attention"), stubs.stubbed(1, [attention.q_proj]):
        raise ValueError("no attention")
    assert vars(attention.q_proj)["forward"] is own
