"""Replicated scheduling in one process: a follower carries out recorded commands of rank 0, or notices that it cannot.

`tests/engine/distributed/test_tensor_parallel.py` runs the same on two ranks that share a model.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from gradellm_engine import (
    AttributionSettings,
    Delivery,
    Engine,
    GroupLostError,
    InvalidRequestError,
    OutOfMemoryError,
    Request,
    Sampling,
)
from gradellm_engine.core.following.agreement import GivenLogprobs, NumberFormat
from gradellm_engine.core.following.given_tokens import FollowSettings
from gradellm_engine.core.lockstep import (
    Admit,
    Append,
    Cancel,
    Command,
    Finish,
    Flush,
    FollowerLoop,
    RankZeroScheduler,
    StepCommand,
    Submit,
    check_in_step,
    digest,
)
from gradellm_engine.core.request_spec import RequestCall
from gradellm_engine.core.scheduler import Scheduler
from gradellm_engine.core.scheduling.pass_timings import PassTimings
from gradellm_engine.model.runner import ModelRunner
from support.scheduler_harness import finish

NUM_TOKENS = 300
CHUNKED = AttributionSettings(delivery=Delivery.CHUNKED, chunk_size=3)


@dataclass
class Ranks:
    """The command channel: what rank 0 broadcasts is pickled, and waits for a follower."""

    sent: deque[bytes] = field(default_factory=deque)

    def broadcast(self, command: Command) -> None:
        self.sent.append(pickle.dumps(command))

    def recv(self) -> Command:
        command: Command = pickle.loads(self.sent.popleft())
        return command

    @property
    def commands(self) -> list[Command]:
        return [pickle.loads(sent) for sent in self.sent]


def rank_zero(engine: Engine, ranks: Any, max_running: int = 2) -> RankZeroScheduler:
    engine.model.runner.allocate_pool(NUM_TOKENS)
    return RankZeroScheduler(engine.model.runner, ranks, max_running=max_running)


def follow(engine: Engine, commands: Iterable[Command], max_running: int = 2) -> list[Request]:
    """Run a follower with an empty KV cache on these commands; the requests that it rebuilt."""
    engine.model.runner.allocate_pool(NUM_TOKENS)
    rebuilt: list[Request] = []

    def rebuild(call: RequestCall) -> Request:
        rebuilt.append(engine.request_builder.rebuild(call))
        return rebuilt[-1]

    ranks: Any = Ranks(deque(pickle.dumps(command) for command in commands))
    scheduler = Scheduler(engine.model.runner, max_running=max_running)
    FollowerLoop(scheduler, rebuild, ranks).run()
    assert not ranks.sent
    return rebuilt


def generation(engine: Engine, seed: int, attribution: AttributionSettings | None = None) -> Request:
    sampling = Sampling(
        max_new_tokens=6,
        temperature=1.2,
        seed=seed,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        logit_bias=((70, 2.0),),
        min_new_tokens=6,
    )
    return engine.generation_request("Once upon a time"[: 16 - seed], sampling, attribution)


@pytest.fixture(autouse=True)
def _whole_kv_cache(engine: Engine) -> Iterator[None]:
    yield
    engine.model.runner.allocate_pool(engine.kv_tokens)  # for the tests after it


@pytest.fixture
def recorded(engine: Engine) -> list[Command]:
    """Rank 0's commands for two requests."""
    ranks = Ranks()
    scheduler = rank_zero(engine, ranks)
    requests = [generation(engine, seed) for seed in range(2)]
    for request in requests:
        scheduler.submit(request)
    finish(scheduler, requests)
    scheduler.stop_followers()
    return ranks.commands


def test_a_follower_computes_the_same_tokens(engine: Engine) -> None:
    """With requests that wait, are cancelled between two passes, or held back for some steps."""
    ranks = Ranks()
    scheduler = rank_zero(engine, ranks)
    requests = [generation(engine, seed, CHUNKED if seed % 2 else None) for seed in range(5)]
    for request in requests[:4]:
        scheduler.submit(request)
    for index, _ in enumerate(scheduler.step()):
        if index == 0:
            scheduler.cancel(requests[1])
    scheduler.has_work()  # admits the next one before the next step
    scheduler.cancel(requests[3])  # never ran
    scheduler.submit(requests[4])
    for _ in range(3):
        for _ in scheduler.step(lambda request: request is not requests[2]):
            pass
    finish(scheduler, [requests[0], requests[2], requests[4]])
    scheduler.stop_followers()
    followed = follow(engine, ranks.commands)
    assert [request.ids for request in followed] == [request.ids for request in requests]
    assert all(request.is_closed for request in followed)
    assert engine.model.runner.pool.num_free_tokens == NUM_TOKENS
    assert len(requests[0].ids) == len(requests[0].prompt.ids) + 6


def test_commands_carry_the_calls_in_their_order(engine: Engine) -> None:
    ranks = Ranks()
    scheduler = rank_zero(engine, ranks, max_running=1)
    first, second = (generation(engine, seed) for seed in range(2))
    scheduler.submit(first)
    scheduler.has_work()
    scheduler.submit(second)
    scheduler.has_work()  # no slot is free: nothing to admit
    scheduler.cancel(second)
    scheduler.cancel(second)
    scheduler.timings = PassTimings(step=0.5)
    for _ in scheduler.step(lambda request: request is not first):
        pass
    (command,) = ranks.commands
    assert [type(call) for call in command.calls] == [Submit, Admit, Submit, Cancel]
    assert [call.request_id for call in command.calls if not isinstance(call, Admit)] == [1, 2, 2]
    assert command.step == StepCommand(PassTimings(step=0.5), frozenset({1}))
    assert command.digest == digest({1: first})


def test_a_request_without_room_is_admitted_once_a_command(engine: Engine) -> None:
    """`has_work` is polled; the commands between two passes must not grow with it."""
    ranks = Ranks()
    scheduler = rank_zero(engine, ranks)
    engine.model.runner.allocate_pool(30)  # one of them fits
    requests = [generation(engine, seed) for seed in range(2)]
    for request in requests:
        scheduler.submit(request)
    for _ in range(3):
        assert scheduler.has_work()
    assert scheduler.waiting == deque(requests[1:])
    next(iter(scheduler.step()))
    (command,) = ranks.commands
    assert [type(call) for call in command.calls] == [Submit, Submit, Admit]


def test_a_digest_tells_requests_by_their_ids(engine: Engine) -> None:
    first, second = (generation(engine, seed) for seed in range(2))
    assert digest({1: first, 2: second}) == digest({2: second, 1: first})
    assert digest({1: first, 2: second}) != digest({1: second, 2: first})


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda command: replace(command, digest=command.digest ^ 1), "requests differ between this rank and rank 0"),
        (lambda command: replace(command, step=StepCommand(PassTimings(), frozenset())), "has abandoned a step"),
        (lambda command: Command(is_last=True), "has abandoned a step"),
    ],
)
def test_a_follower_in_a_step_notices_another_command(
    engine: Engine, recorded: list[Command], broken: Callable[[Command], Command], message: str
) -> None:
    between = next(i for i, command in enumerate(recorded) if command.step is None and not command.is_last)
    with pytest.raises(GroupLostError, match=message):
        follow(engine, [*recorded[:between], broken(recorded[between])])


def test_a_follower_between_steps_notices_a_pass(engine: Engine, recorded: list[Command]) -> None:
    with pytest.raises(GroupLostError, match="a step that has not begun on this rank"):
        follow(engine, [replace(recorded[0], step=None)])


def test_a_follower_with_other_tokens_is_lost(engine: Engine, recorded: list[Command]) -> None:
    """As after a draw from other logits: the seed of its request differs."""
    calls = recorded[0].calls
    call = next(call for call in calls if isinstance(call, Submit))
    sampling = replace(call.call.arguments["sampling"], seed=99)
    other = replace(call, call=replace(call.call, arguments={**call.call.arguments, "sampling": sampling}))
    first = replace(recorded[0], calls=tuple(other if each is call else each for each in calls))
    with pytest.raises(GroupLostError, match="other tokens, or other ends"):
        follow(engine, [first, *recorded[1:]])


def test_a_failure_of_rank_0_alone_ends_the_group(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error becomes the request's; the other ranks would wait in the pass that rank 0 has left."""

    def fail(self: ModelRunner, *args: Any) -> None:
        raise RuntimeError("a broken pass")

    monkeypatch.setattr(ModelRunner, "step", fail)
    scheduler = rank_zero(engine, Ranks())
    scheduler.submit(generation(engine, 0))
    with pytest.raises(GroupLostError, match="a broken pass"):
        list(scheduler.step())
    with pytest.raises(GroupLostError, match="abandoned between two passes"):
        list(scheduler.step())


def test_an_error_of_the_caller_s_within_a_step_ends_the_group(engine: Engine) -> None:
    def fail(request: Request) -> bool:
        raise ValueError("no such request")

    scheduler = rank_zero(engine, Ranks())
    scheduler.submit(generation(engine, 0))
    with pytest.raises(GroupLostError, match="rank 0 failed where the other ranks may not have: no such request"):
        list(scheduler.step(fail))


def test_a_request_that_followers_cannot_build_is_refused(engine: Engine) -> None:
    scheduler = rank_zero(engine, Ranks())
    request = generation(engine, 0)
    request.call = None
    with pytest.raises(ValueError, match="cannot run on several ranks"):
        scheduler.submit(request)
    assert not scheduler.has_work()


@pytest.mark.parametrize("error", [OutOfMemoryError(), RuntimeError("a lost connection")])
def test_errors_that_other_ranks_may_not_have_end_the_group(error: Exception) -> None:
    with pytest.raises(GroupLostError, match="may not have failed on other ranks"):
        check_in_step([SimpleNamespace(error=None), SimpleNamespace(error=error)])  # type: ignore[list-item]


def test_an_error_on_all_ranks_keeps_the_group() -> None:
    check_in_step([SimpleNamespace(error=InvalidRequestError("seed", "is none"))])  # type: ignore[list-item]


def test_a_followed_request(engine: Engine) -> None:
    """Tokens, flushes and the end are broadcast; every rank reads the same chunks."""
    ranks = Ranks()
    scheduler = rank_zero(engine, ranks)
    settings = AttributionSettings(chunk_size=4)
    request = engine.follow_request("Once upon", settings, FollowSettings(upstream_dtype=NumberFormat.FLOAT32))
    scheduler.submit(request)
    ids = engine.tokenize(" a time there was").ids[1:]
    for first in range(0, len(ids), 5):
        scheduler.append(request, ids[first : first + 5], [GivenLogprobs(-1.0)] * len(ids[first : first + 5]))
        while scheduler.has_work():
            list(scheduler.step())
    scheduler.flush(request)
    list(scheduler.step())
    scheduler.finish(request)
    finish(scheduler, [request])
    list(scheduler.step())
    scheduler.stop_followers()
    calls = [call for command in ranks.commands for call in command.calls if not isinstance(call, Admit)]
    kinds = [type(call) for call in calls]
    assert kinds == [Submit, *[Append] * -(-len(ids) // 5), Flush, Finish]
    assert [token for call in calls if isinstance(call, Append) for token in call.ids] == ids
    (rebuilt,) = follow(engine, ranks.commands)
    assert rebuilt.ids == request.ids
    assert rebuilt.is_closed


def test_tokens_of_a_request_that_is_not_followed(engine: Engine) -> None:
    request = generation(engine, 1)
    assert request.call is not None
    commands = [Command((Submit(1, request.call), Append(1, (5,))), digest=0)]
    with pytest.raises(GroupLostError, match="has tokens for request 1, which is not followed"):
        follow(engine, commands)
