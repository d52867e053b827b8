"""The ranks' group: joining it, and what one rank sends and others receive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gradellm_engine import GroupLostError, ModelLoadError, ProcessGroup

ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set. On one machine: torchrun"),
        ({**ENVIRONMENT, "MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({**ENVIRONMENT, "WORLD_SIZE": "two"}, "WORLD_SIZE 'two' must be numbers"),
    ],
)
def test_missing_launcher_variables_are_named(environment: Mapping[str, str], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        ProcessGroup.join(environment)


def test_a_single_rank_is_none() -> None:
    assert ProcessGroup.join({**ENVIRONMENT, "WORLD_SIZE": "1"}) is None


def test_an_address_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "none"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelLoadError, match=r"rank 0 of 2 cannot connect to the other ranks at 127\.0\.0\.1:none: "):
        ProcessGroup.join(environment)
    assert not dist.is_initialized()


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelLoadError, match="rank 0 is number 3 on its machine, which has 2 GPUs"):
        ProcessGroup.join({**ENVIRONMENT, "LOCAL_RANK": "2"})


# In a group ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Torch's default group with this process alone."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    ProcessGroup.destroy()
    assert not dist.is_initialized()


@pytest.fixture
def ranks(torch_group: None) -> list[ProcessGroup]:
    """Both ends of a group of two; collectives must be replaced, or see rank 0 alone."""
    return [ProcessGroup(0, 2), ProcessGroup(1, 2)]


@pytest.fixture
def alone(torch_group: None) -> ProcessGroup:
    return ProcessGroup(0, 1)


def test_a_group_of_one_keeps_its_numbers(alone: ProcessGroup) -> None:
    assert alone.is_rank0
    assert alone.all_reduce_min((2**40, 3)) == [2**40, 3]
    assert alone.broadcast_object({"a": 1}) == {"a": 1}
    alone.assert_equal({"model": "x", "dtype": ""})


def test_sums_are_contiguous_and_run_under_vmap(alone: ProcessGroup) -> None:
    share = torch.arange(12.0).view(3, 4)
    total = alone.all_reduce_sum(share.t())
    assert total.is_contiguous()
    assert torch.equal(total, share.t())
    batched = torch.func.vmap(lambda row: 2 * alone.all_reduce_sum(row))(share.clone())
    assert torch.equal(batched, 2 * share)


@pytest.mark.parametrize(("local", "available", "expected"), [("4", 9, 2), ("4", 3, 1), (None, 9, 4)])
def test_ranks_of_a_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, ranks: list[ProcessGroup], local: str | None, available: int, expected: int
) -> None:
    """By default all ranks are on one machine."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert ranks[0].cpus(available) == expected


# Two ends -----------------------------------------------------------------------------------------------------------


class Wire:
    """What rank 0 broadcasts, until the other rank takes it."""

    def __init__(self) -> None:
        self.sent: list[Tensor] = []
        self.is_receiving = False

    def broadcast(self, tensor: Tensor, source: int, *, group: object) -> None:
        if self.is_receiving:
            tensor.copy_(self.sent.pop(0))
        else:
            self.sent.append(tensor.clone())


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    monkeypatch.setattr(dist, "broadcast", wire.broadcast)
    return wire


def deliver(wire: Wire, ranks: list[ProcessGroup], command: object) -> tuple[Any, int]:
    """What rank 1 receives of a command, and in how many messages."""
    wire.is_receiving = False
    ranks[0].broadcast(command)
    num_messages = len(wire.sent)
    wire.is_receiving = True
    received = ranks[1].recv()
    assert wire.sent == []
    return received, num_messages


def test_commands_arrive_whole(wire: Wire, ranks: list[ProcessGroup]) -> None:
    """Also those that just fit into one message, or just do not."""
    counts = []
    for size in (0, 1, 300, *range(4060, 4100), 100_000):
        command = ("step", bytes(i % 251 for i in range(size)))
        received, num_messages = deliver(wire, ranks, command)
        assert received == command
        counts.append(num_messages)
    assert counts == sorted(counts)
    assert set(counts) == {1, 2}
    assert counts[2] == 1


def test_a_short_command_after_a_long_one_has_none_of_its_bytes(wire: Wire, ranks: list[ProcessGroup]) -> None:
    deliver(wire, ranks, "long " * 2000)
    assert deliver(wire, ranks, None) == (None, 1)


@pytest.mark.parametrize(("rank", "peer"), [(0, "another rank"), (1, "rank 0")])
def test_a_lost_rank_is_named(monkeypatch: pytest.MonkeyPatch, ranks: list[ProcessGroup], rank: int, peer: str) -> None:
    def closed(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Connection closed by peer\nand a trace")

    monkeypatch.setattr(dist, "broadcast", closed)
    with pytest.raises(GroupLostError, match=f"^{peer} of this model's 2 is lost: Connection closed by peer"):
        ranks[0].broadcast("step") if rank == 0 else ranks[1].recv()


def test_values_that_differ_are_named_with_their_ranks(
    monkeypatch: pytest.MonkeyPatch, ranks: list[ProcessGroup]
) -> None:
    def gather(of_ranks: list[Any], own: Mapping[str, str], group: object) -> None:
        of_ranks[:] = [own, {"dtype": "float32", "weights": ""}]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    ranks[0].assert_equal({"dtype": "float32"})
    with pytest.raises(ModelLoadError, match="the ranks have different weights: 1a2b on rank 0, none on rank 1"):
        ranks[0].assert_equal({"dtype": "float32", "weights": "1a2b"})
