"""The processes that share one model's weights out among them, and what they say to each other.

Tensor parallel: every rank holds some heads of every attention layer and a share of the other weights, as Transformers'
plan for the family has it, and runs every pass with the others. torchrun, or whatever else sets RANK, WORLD_SIZE,
LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, starts them. What a method keeps of attention is a sum over
heads: the ranks' sums are added up, and each has the whole one.

Beside the sums of a pass, rank 0 gives the others orders (`gradellm_engine.core.lockstep`), over connections of their
own.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradellm_engine.errors import GroupLostError, ModelLoadError, one_line
from gradellm_engine.utils.torch_compat import apply_to_physical, is_batched_tensor, set_default_group_timeout

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOAD_TIMEOUT = timedelta(minutes=60)  # that ranks may wait for each other while weights are read
COMMAND_TIMEOUT = timedelta(
    seconds=60
)  # of rank 0, after which it is taken for lost: a server speaks several times a second
PASS_TIMEOUT = timedelta(minutes=5)  # that a rank may wait for another one in a pass
_FRAME = 4096  # bytes of an order that needs no second message; those of most ticks do not


class ProcessGroup:
    """A process among those that share a model with it.

    Attributes:
        rank: its own, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        """Use the process group that stands. For tests; `join` makes one."""
        self.rank, self.size = rank, size
        self._orders = dist.new_group(backend="gloo", timeout=COMMAND_TIMEOUT)
        self._sums = dist.group.WORLD

    @classmethod
    def join(cls, environment: Mapping[str, str] = os.environ) -> ProcessGroup | None:
        """Meet the others; None where this process is the only one.

        Raises:
            ModelLoadError: where nobody has said who they are, or they cannot be met.
        """
        missing = [name for name in VARIABLES if not environment.get(name)]
        if missing:
            raise ModelLoadError(
                f"tensor parallel ranks are started by a launcher, which sets {', '.join(VARIABLES)}; "
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set. "
                "On one machine: torchrun --nproc-per-node 2 -m gradellm_server --tensor-parallel ..."
            )
        try:
            rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        except ValueError:
            raise ModelLoadError(
                f"RANK {environment['RANK']!r} and WORLD_SIZE {environment['WORLD_SIZE']!r} must be numbers"
            ) from None
        if size == 1:
            return None
        on_gpus = torch.cuda.is_available()
        if on_gpus:
            local = int(environment.get("LOCAL_RANK", "") or 0)
            if local >= torch.cuda.device_count():
                raise ModelLoadError(
                    f"rank {rank} is number {local + 1} on its machine, which has {torch.cuda.device_count()} GPUs: "
                    "start one rank a GPU"
                )
            torch.cuda.set_device(local)
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=LOAD_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            where = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
            said = one_line(error)
            raise ModelLoadError(f"rank {rank} of {size} cannot meet the others at {where}: {said}") from error
        return cls(rank, size)

    @property
    def is_rank0(self) -> bool:
        """Whether it is the one that is asked, and tells the others."""
        return self.rank == 0

    def cpus(self, available: int) -> int:
        """Its part of a machine's cores."""
        return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", self.size)))

    # While a model is loaded --------------------------------------------------------------------------------------

    def all_reduce_min(self, numbers: Sequence[int]) -> list[int]:
        """The smallest of all ranks', one by one: memory, of which all must take the same."""
        least = torch.tensor(list(numbers), dtype=torch.int64)
        with self._group_errors():
            dist.all_reduce(least, dist.ReduceOp.MIN, group=self._sums)
        return [int(number) for number in least]

    def assert_equal(self, what: Mapping[str, str]) -> None:
        """See that all ranks have the same of everything.

        Raises:
            ModelLoadError: on every rank, naming what differs.
        """
        everybody: list[Any] = [None] * self.size
        with self._group_errors():
            dist.all_gather_object(everybody, dict(what), group=self._sums)
        for name, own in what.items():
            others = [their[name] for their in everybody]
            if set(others) != {own}:
                listed = ", ".join(f"{value or 'none'} on rank {rank}" for rank, value in enumerate(others))
                raise ModelLoadError(f"the ranks have different {name}: {listed}")

    def broadcast_object(self, value: Any) -> Any:  # noqa: ANN401 (whatever is given)
        """Rank 0's."""
        box = [value]
        with self._group_errors():
            dist.broadcast_object_list(box, src=0, group=self._sums)
        return box[0]

    @staticmethod
    def use_pass_timeout() -> None:
        """All have loaded: from now on, nobody waits for another one as long as for weights to be read."""
        set_default_group_timeout(PASS_TIMEOUT)

    # In a pass ----------------------------------------------------------------------------------------------------

    def all_reduce_sum(self, share: Tensor) -> Tensor:
        """The ranks' sum, on every rank the same bits."""
        if is_batched_tensor(share):  # of torch.func.vmap, for which collectives have no batching rule
            return apply_to_physical(self.all_reduce_sum, share)
        total = share.contiguous()
        dist.all_reduce(total, group=self._sums)
        return total

    # Orders -------------------------------------------------------------------------------------------------------

    def broadcast(self, order: object) -> None:
        """Rank 0's word to the others.

        Raises:
            GroupLostError: where one of them does not hear it.
        """
        self._broadcast_bytes(pickle.dumps(order))

    def recv(self) -> Any:  # noqa: ANN401 (what was told)
        """Rank 0's next word; waits for it.

        Raises:
            GroupLostError: where rank 0 is gone, or says nothing for `COMMAND_TIMEOUT`.
        """
        return pickle.loads(self._broadcast_bytes(b""))  # noqa: S301 (from rank 0 of the own group)

    def _broadcast_bytes(self, message: bytes) -> bytes:
        """From rank 0 to all. A frame is the length and the message's beginning; what is left follows."""
        frame = torch.zeros(_FRAME, dtype=torch.uint8)
        content = frame[8:]
        if self.is_rank0:
            frame[:8] = torch.tensor([len(message)], dtype=torch.int64).view(torch.uint8)
            content[: len(message)] = _bytes(message[: len(content)])
        with self._group_errors("another rank" if self.is_rank0 else "rank 0"):
            dist.broadcast(frame, 0, group=self._orders)
            length = int(frame[:8].view(torch.int64)[0])
            rest = torch.zeros(max(0, length - len(content)), dtype=torch.uint8)
            if len(rest):
                if self.is_rank0:
                    rest[:] = _bytes(message[len(content) :])
                dist.broadcast(rest, 0, group=self._orders)
        return bytes(content[:length].numpy()) + bytes(rest.numpy())

    @contextmanager
    def _group_errors(self, whom: str = "another rank") -> Iterator[None]:
        """Outside of passes: say who is missing, instead of what a library says."""
        try:
            yield
        except RuntimeError as error:
            raise GroupLostError(f"{whom} of this model's {self.size} is lost: {one_line(error)}") from error

    @staticmethod
    def destroy() -> None:
        """Take leave of the others, once all have heard that it is over."""
        dist.destroy_process_group()


def _bytes(message: bytes) -> Tensor:
    return torch.frombuffer(bytearray(message), dtype=torch.uint8)
