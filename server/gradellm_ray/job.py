"""Evaluates examples in a pool of actors, by Ray Data.

Each example is a block of its own, up to a limit of blocks, so that its outcome arrives at once and a retry repeats no
other example. Ray restarts an actor that ends, alone or with its node, and retries its examples on any free actor. An
example that ends its actor repeatedly becomes a failure, and the rest continue.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports unless the user enables them

import ray
import ray.data
import ray.exceptions

from gradellm.errors import UnavailableError
from gradellm.evaluation.examples import Example
from gradellm.evaluation.run_spec import RunSpec
from gradellm_engine import EngineError
from gradellm_ray.actor import EngineActor, Tries, packed, unpacked
from gradellm_ray.evaluator import EngineOptions, Evaluator, ModelDescription, Outcome

_MAX_BLOCKS = 4096
_CONNECT_SECONDS = 10.0
_BLOCKS_PER_ACTOR = 2  # in flight, the running one included


class ActorPool:
    """A pool of engine actors; a context manager that connects to the cluster, or starts one."""

    def __init__(
        self, options: EngineOptions, actors: int, *, gpus_per_actor: float = 0.0, address: str | None = None
    ) -> None:
        """Configure the pool.

        Args:
            options: options of each engine.
            actors: number of actors.
            gpus_per_actor: GPUs that Ray reserves for each and makes visible to it.
            address: of a Ray cluster; None to start one on this machine.
        """
        self._options, self._actors, self._gpus, self._address = options, actors, gpus_per_actor, address

    def __enter__(self) -> Self:
        _check_reachable(self._address)
        local_options: dict[str, Any] = {}
        if self._address is None:
            # More actors than cores are slow, but allowed.
            local_options = {
                "num_cpus": max(os.cpu_count() or 1, self._actors * self._options.threads),
                "include_dashboard": False,
            }
        try:
            ray.init(address=self._address or "local", logging_level=logging.ERROR, **local_options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = self._address or "this machine"
            raise UnavailableError(f"there is no Ray cluster at {where}: {error}") from error
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs every step
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ray.shutdown()

    def describe_model(self, presets: Sequence[str]) -> ModelDescription:
        """Describe the model in a task where an actor could run. Raises what loading it raises there."""
        # max_calls=1: the process ends with the task and frees the GPU for an actor.
        task = ray.remote(num_cpus=self._options.threads, num_gpus=self._gpus, max_calls=1)(_describe_model)
        try:
            description: ModelDescription = ray.get(task.remote(self._options, presets))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, EngineError) else error) from None
        return description

    def outcomes(self, plan: RunSpec, examples: Sequence[Example]) -> Iterator[tuple[str, Outcome]]:
        """Evaluate examples; yields ids and outcomes as they arrive. Raises RayError if Ray fails."""
        tries = ray.remote(num_cpus=0)(Tries).remote()
        rows = [{"example": packed(example)} for example in examples]
        data = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_BLOCKS)).map_batches(
            EngineActor,
            fn_constructor_kwargs={"options": self._options, "plan": plan, "tries": tries},
            compute=ray.data.ActorPoolStrategy(size=self._actors, max_tasks_in_flight_per_actor=_BLOCKS_PER_ACTOR),
            batch_size=1,
            num_cpus=self._options.threads,
            num_gpus=self._gpus,
        )  # Ray Data restarts actors and retries their tasks without a limit by default
        for batch in data.iter_batches(batch_size=None, prefetch_batches=0):
            yield from map(unpacked, batch["outcome"])


def _check_reachable(address: str | None) -> None:
    """Check that the address accepts connections; Ray would retry for minutes and then end the process."""
    host, colon, port = (address or "").rpartition(":")
    if not (host and colon and port.isdecimal()) or "://" in host:  # auto, or a URL with Ray's own protocol
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UnavailableError(f"there is no Ray cluster at {address}: {error.strerror or error}") from error


def _describe_model(options: EngineOptions, presets: Sequence[str]) -> ModelDescription:
    return Evaluator(options).describe_model(presets)
