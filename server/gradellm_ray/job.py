"""Examples through a pool of actors, by Ray Data.

An example is a block of its own as long as there are few enough, so that its outcome comes as soon as it is there, and
no other is done again with it. An actor that ends, with its node or alone, is started anew, and what it had in work is
tried again by whoever is free. An example that ends its actor again and again is given up, and the others go on.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told that it runs, unless somebody asks for it

import ray
import ray.data
import ray.exceptions

from gradellm.errors import UnavailableError
from gradellm.evaluation.examples import Example
from gradellm.evaluation.run_spec import RunSpec
from gradellm_engine import EngineError
from gradellm_ray.actor import EngineActor, Tries, packed, unpacked
from gradellm_ray.evaluator import EngineOptions, Evaluator, Facts, Outcome

_MOST_BLOCKS = 4096
_LOOK_SECONDS = 10.0
_AHEAD = 2  # blocks that an actor has, the one in work among them


class Actors:
    """A pool of engines, with the cluster that it is on as long as its context lasts."""

    def __init__(
        self, options: EngineOptions, actors: int, *, gpus_per_actor: float = 0.0, address: str | None = None
    ) -> None:
        """Say what is wanted.

        Args:
            options: of each engine.
            actors: how many there are.
            gpus_per_actor: that Ray sets aside for each, and shows it alone.
            address: of a Ray cluster; None for one that is started on this machine, for this pool.
        """
        self._options, self._actors, self._gpus, self._address = options, actors, gpus_per_actor, address

    def __enter__(self) -> Self:
        _look(self._address)
        own: dict[str, Any] = {}
        if self._address is None:
            # More actors than cores are slow, and not refused.
            own = {
                "num_cpus": max(os.cpu_count() or 1, self._actors * self._options.threads),
                "include_dashboard": False,
            }
        try:
            ray.init(address=self._address or "local", logging_level=logging.ERROR, **own)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = self._address or "this machine"
            raise UnavailableError(f"there is no Ray cluster at {where}: {error}") from error
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every step
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ray.shutdown()

    def facts(self, presets: Sequence[str]) -> Facts:
        """What the model is, asked where an actor could be. Raises what loading it raises there."""
        # Its process ends with it, and leaves the GPU to an actor.
        ask = ray.remote(num_cpus=self._options.threads, num_gpus=self._gpus, max_calls=1)(_facts)
        try:
            found: Facts = ray.get(ask.remote(self._options, presets))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, EngineError) else error) from None
        return found

    def outcomes(self, plan: RunSpec, examples: Sequence[Example]) -> Iterator[tuple[str, Outcome]]:
        """Evaluate examples; each one's id and outcome, as they come. Raises RayError where Ray gives up."""
        tries = ray.remote(num_cpus=0)(Tries).remote()
        rows = [{"example": packed(example)} for example in examples]
        data = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map_batches(
            EngineActor,
            fn_constructor_kwargs={"options": self._options, "plan": plan, "tries": tries},
            compute=ray.data.ActorPoolStrategy(size=self._actors, max_tasks_in_flight_per_actor=_AHEAD),
            batch_size=1,
            num_cpus=self._options.threads,
            num_gpus=self._gpus,
        )  # by Ray Data's default, actors are restarted and their tasks tried again without a limit
        for batch in data.iter_batches(batch_size=None, prefetch_batches=0):
            yield from map(unpacked, batch["outcome"])


def _look(address: str | None) -> None:
    """See that somebody listens there; Ray itself would go on trying for minutes, and then end the process."""
    host, colon, port = (address or "").rpartition(":")
    if not (host and colon and port.isdecimal()) or "://" in host:  # auto, or a protocol of Ray's own
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _LOOK_SECONDS).close()
    except OSError as error:
        raise UnavailableError(f"there is no Ray cluster at {address}: {error.strerror or error}") from error


def _facts(options: EngineOptions, presets: Sequence[str]) -> Facts:
    return Evaluator(options).facts(presets)
