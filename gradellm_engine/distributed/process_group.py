"""The ranks of a tensor-parallel model, and the messages between them.

Every rank holds some heads of every attention layer and a share of the other weights, by Transformers' tensor-parallel
plan for the family, and runs every pass together with the other ranks. They are started by torchrun, or by another
launcher that sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT. The attention maps of a
method are sums over heads: the ranks' sums are all-reduced, so that every rank has the whole.

Besides the collectives of a pass, rank 0 broadcasts commands to the other ranks (`gradellm_engine.core.lockstep`), over
connections of their own.
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

ENVIRONMENT_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOAD_TIMEOUT = timedelta(minutes=60)  # for collectives while weights are read
COMMAND_TIMEOUT = timedelta(seconds=60)  # without a command rank 0 counts as lost; a server sends several a second
PASS_TIMEOUT = timedelta(minutes=5)  # for collectives of a pass
_FRAME = 4096  # bytes: a longer command takes a second message, which most steps' do not


class ProcessGroup:
    """The ranks that share a model, as seen from one of them.

    Attributes:
        rank: of this process, from 0.
        size: number of ranks.
    """

    def __init__(self, rank: int, size: int) -> None:
        """Use torch's default process group, which must exist. For tests; `join` creates it."""
        self.rank, self.size = rank, size
        self._commands = dist.new_group(backend="gloo", timeout=COMMAND_TIMEOUT)
        self._collectives = dist.group.WORLD

    @classmethod
    def join(cls, environment: Mapping[str, str] = os.environ) -> ProcessGroup | None:
        """Join the group that the launcher describes; None where this process is the only rank.

        Raises:
            ModelLoadError: where the launcher's variables are missing or the other ranks cannot be reached.
        """
        missing = [name for name in ENVIRONMENT_VARIABLES if not environment.get(name)]
        if missing:
            raise ModelLoadError(
                f"tensor parallel ranks are started by a launcher, which sets {', '.join(ENVIRONMENT_VARIABLES)}; "
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
            cause = one_line(error)
            raise ModelLoadError(
                f"rank {rank} of {size} cannot connect to the other ranks at {where}: {cause}"
            ) from error
        return cls(rank, size)

    @property
    def is_rank0(self) -> bool:
        """Whether this rank receives the requests and broadcasts commands."""
        return self.rank == 0

    def cpus(self, available: int) -> int:
        """The number of cores for this rank, of those available on its machine."""
        return max(1, available // int(os.environ.get("LOCAL_WORLD_SIZE", self.size)))

    # While a model is loaded ------------------------------------------------------------------------------------------

    def all_reduce_min(self, numbers: Sequence[int]) -> list[int]:
        """The minimum over ranks of each number, such as free memory, of which all ranks must take the same."""
        minima = torch.tensor(list(numbers), dtype=torch.int64)
        with self._group_errors():
            dist.all_reduce(minima, dist.ReduceOp.MIN, group=self._collectives)
        return [int(number) for number in minima]

    def assert_equal(self, named: Mapping[str, str]) -> None:
        """Check that all ranks have the same value for every name.

        Raises:
            ModelLoadError: on every rank, with the name that differs and the ranks' values.
        """
        of_ranks: list[Any] = [None] * self.size
        with self._group_errors():
            dist.all_gather_object(of_ranks, dict(named), group=self._collectives)
        for name, own in named.items():
            values = [of_rank[name] for of_rank in of_ranks]
            if set(values) != {own}:
                listed = ", ".join(f"{value or 'none'} on rank {rank}" for rank, value in enumerate(values))
                raise ModelLoadError(f"the ranks have different {name}: {listed}")

    def broadcast_object(self, value: Any) -> Any:  # noqa: ANN401 (whatever is given)
        """Rank 0's value, on every rank."""
        box = [value]
        with self._group_errors():
            dist.broadcast_object_list(box, src=0, group=self._collectives)
        return box[0]

    @staticmethod
    def use_pass_timeout() -> None:
        """After loading: collectives no longer wait as long as reading weights may take."""
        set_default_group_timeout(PASS_TIMEOUT)

    # In a pass --------------------------------------------------------------------------------------------------------

    def all_reduce_sum(self, share: Tensor) -> Tensor:
        """The sum over ranks, the same bits on every rank."""
        if is_batched_tensor(share):  # of torch.func.vmap, for which collectives have no batching rule
            return apply_to_physical(self.all_reduce_sum, share)
        total = share.contiguous()
        dist.all_reduce(total, group=self._collectives)
        return total

    # Commands ---------------------------------------------------------------------------------------------------------

    def broadcast(self, command: object) -> None:
        """Send a command from rank 0 to the other ranks.

        Raises:
            GroupLostError: where a rank does not receive it.
        """
        self._broadcast_bytes(pickle.dumps(command))

    def recv(self) -> Any:  # noqa: ANN401 (any command)
        """Wait for rank 0's next command.

        Raises:
            GroupLostError: where rank 0 is gone, or sends nothing for `COMMAND_TIMEOUT`.
        """
        return pickle.loads(self._broadcast_bytes(b""))  # noqa: S301 (from rank 0 of the own group)

    def _broadcast_bytes(self, message: bytes) -> bytes:
        """Rank 0's message, on every rank. A frame is the length and the first bytes; a second one has the rest."""
        frame = torch.zeros(_FRAME, dtype=torch.uint8)
        content = frame[8:]
        if self.is_rank0:
            frame[:8] = torch.tensor([len(message)], dtype=torch.int64).view(torch.uint8)
            content[: len(message)] = _bytes(message[: len(content)])
        with self._group_errors("another rank" if self.is_rank0 else "rank 0"):
            dist.broadcast(frame, 0, group=self._commands)
            length = int(frame[:8].view(torch.int64)[0])
            rest = torch.zeros(max(0, length - len(content)), dtype=torch.uint8)
            if len(rest):
                if self.is_rank0:
                    rest[:] = _bytes(message[len(content) :])
                dist.broadcast(rest, 0, group=self._commands)
        return bytes(content[:length].numpy()) + bytes(rest.numpy())

    @contextmanager
    def _group_errors(self, peer: str = "another rank") -> Iterator[None]:
        """Turn torch's errors of a collective into `GroupLostError`, with the rank that is lost."""
        try:
            yield
        except RuntimeError as error:
            raise GroupLostError(f"{peer} of this model's {self.size} is lost: {one_line(error)}") from error

    @staticmethod
    def destroy() -> None:
        """Destroy the group, once all ranks have received the last command."""
        dist.destroy_process_group()


def _bytes(message: bytes) -> Tensor:
    return torch.frombuffer(bytearray(message), dtype=torch.uint8)
