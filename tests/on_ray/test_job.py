"""The pool of actors: how it connects, and whose errors it raises. With a Ray that starts nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'gradellm[ray]'")

import ray.exceptions

from gradellm.errors import UnavailableError
from gradellm.evaluation.examples import Example
from gradellm_engine import ModelLoadError
from gradellm_ray import job
from gradellm_ray.actor import EngineActor
from gradellm_ray.evaluator import EngineOptions, Outcome
from gradellm_ray.job import ActorPool


class FakeRay:
    """Records how the pool connects, and what it runs."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.num_shutdowns = 0
        self.resources: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.map_options: dict[str, Any] = {}
        self.num_blocks = 0
        self.exceptions = ray.exceptions
        context = SimpleNamespace(enable_progress_bars=True)
        self.data = SimpleNamespace(
            DataContext=SimpleNamespace(get_current=lambda: context),
            ActorPoolStrategy=lambda **options: options,
            from_items=self._from_items,
        )

    def init(self, **options: Any) -> None:
        self.inits.append(options)
        if self.error is not None:
            raise self.error

    def shutdown(self) -> None:
        self.num_shutdowns += 1

    def remote(self, **resources: Any) -> Callable[[Any], Any]:
        self.resources.append(resources)
        return lambda work: SimpleNamespace(remote=lambda *arguments: (work, arguments))

    def get(self, call: object) -> str:
        if self.error is not None:
            raise self.error
        return "described"

    def _from_items(self, rows: Sequence[dict[str, str]], override_num_blocks: int) -> Any:
        self.num_blocks = override_num_blocks

        def map_batches(actor: object, **options: Any) -> Any:
            assert actor is EngineActor
            self.map_options = options
            batches = [{"outcome": [f'{{"id": "{n}", "record": null, "error": "x"}}']} for n in range(len(rows))]
            return SimpleNamespace(iter_batches=lambda **options: iter(batches))

        return SimpleNamespace(map_batches=map_batches)


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(job, "ray", fake)
    return fake


def used_port() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def task_error(cause: Exception) -> Exception:
    """An exception as Ray brings it from a task."""
    return ray.exceptions.RayTaskError("describe", "a traceback", cause)  # type: ignore[no-untyped-call]


def test_a_cluster_of_its_own_has_a_core_for_every_thread(fake_ray: FakeRay) -> None:
    """More actors than the machine has cores are slow, but start; Ray would wait for cores without end."""
    cores = os.cpu_count() or 1
    with ActorPool(EngineOptions(threads=2), cores):
        assert fake_ray.num_shutdowns == 0
    with ActorPool(EngineOptions(threads=1), 1):
        pass
    assert [(options["address"], options["num_cpus"]) for options in fake_ray.inits] == [
        ("local", 2 * cores),
        ("local", cores),
    ]
    assert fake_ray.num_shutdowns == 2


def test_a_cluster_that_runs_keeps_its_cores(fake_ray: FakeRay) -> None:
    with used_port() as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with ActorPool(EngineOptions(), 2, address=address):
            pass
    assert [(options["address"], "num_cpus" in options) for options in fake_ray.inits] == [(address, False)]


def test_an_address_without_a_cluster_is_refused_before_ray_connects(fake_ray: FakeRay) -> None:
    with used_port() as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(UnavailableError, match=f"there is no Ray cluster at {address}: Connection refused"):
        ActorPool(EngineOptions(), 1, address=address).__enter__()
    assert fake_ray.inits == []


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:1"])
def test_addresses_that_only_ray_understands_are_left_to_it(fake_ray: FakeRay, address: str) -> None:
    with ActorPool(EngineOptions(), 1, address=address):
        pass
    fake_ray.error = ConnectionError("nothing runs here")
    with pytest.raises(UnavailableError, match=f"there is no Ray cluster at {address}: nothing runs here"):
        ActorPool(EngineOptions(), 1, address=address).__enter__()


def test_a_pool_ends_its_connection_after_an_error(fake_ray: FakeRay) -> None:
    with pytest.raises(KeyError), ActorPool(EngineOptions(), 1):
        raise KeyError
    assert fake_ray.num_shutdowns == 1


def test_a_model_is_described_where_an_actor_could_run(fake_ray: FakeRay) -> None:
    pool = ActorPool(EngineOptions(threads=3), 2, gpus_per_actor=0.5)
    assert pool.describe_model(["paper"]) == "described"  # type: ignore[comparison-overlap]
    assert fake_ray.resources == [{"num_cpus": 3, "num_gpus": 0.5, "max_calls": 1}]


def test_an_error_of_the_engine_is_raised_as_itself(fake_ray: FakeRay) -> None:
    pool, refused = ActorPool(EngineOptions(), 1), ModelLoadError("there is no folder nowhere")
    fake_ray.error = task_error(refused)
    with pytest.raises(ModelLoadError, match="there is no folder nowhere"):
        pool.describe_model([])
    fake_ray.error = task_error(ZeroDivisionError())
    with pytest.raises(ray.exceptions.RayTaskError):
        pool.describe_model([])


def test_each_example_is_a_block_of_its_own(fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a retry repeats no other example, up to a limit of blocks."""
    example = Example("a", "line 1", (("user", "x"),), None, None, None, {})
    plan: Any = object()
    pool = ActorPool(EngineOptions(threads=2), 3, gpus_per_actor=1.0)
    assert list(pool.outcomes(plan, [example] * 5)) == [(str(n), Outcome(None, "x")) for n in range(5)]
    assert fake_ray.num_blocks == 5
    options = fake_ray.map_options
    assert (options["batch_size"], options["compute"]["size"]) == (1, 3)
    assert (options["num_cpus"], options["num_gpus"]) == (2, 1.0)
    monkeypatch.setattr(job, "_MAX_BLOCKS", 4)
    assert len(list(pool.outcomes(plan, [example] * 5))) == 5
    assert fake_ray.num_blocks == 4
