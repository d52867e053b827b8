"""Every example is evaluated once, even if servers fail, overload or recover."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.rpc import code_pb2

from client.evaluation import fake_evaluator
from client.evaluation.fake_evaluator import FakeEvaluator
from gradellm.errors import InvalidRequestError, UnavailableError
from gradellm.evaluation import runner
from gradellm.evaluation.examples import Example
from gradellm.evaluation.presets import PRESETS
from gradellm.evaluation.results_file import ResultsFile
from gradellm.evaluation.run_spec import RunSpec
from gradellm.evaluation.runner import Runner, connect_servers
from support.client.processes import with_path

METHODS = {"grad_ellm": {"method": "grad_ellm"}, "random": {"method": "random"}}
PLAN = RunSpec(PRESETS["sst2"], METHODS, pis=(0.25, 0.5))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "FIRST_DELAY_SECONDS", 0.1)


@pytest.fixture
def start() -> Iterator[Callable[..., FakeEvaluator]]:
    """Starts servers in this process."""
    running: list[FakeEvaluator] = []

    def begin(*arguments: Any, **keywords: Any) -> FakeEvaluator:
        running.append(FakeEvaluator(*arguments, **keywords))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


def process(address: str = "127.0.0.1:0", seconds: float = 0.05) -> tuple[subprocess.Popen[str], str]:
    """A server in a separate process, and its address."""
    assert fake_evaluator.__file__ is not None
    started = subprocess.Popen(
        [sys.executable, fake_evaluator.__file__, address, str(seconds)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=with_path(),
    )  # fmt: skip
    assert started.stdout is not None
    return started, f"127.0.0.1:{int(started.stdout.readline())}"


def examples(count: int, **words: str) -> list[Example]:
    """Texts with the words that are given by their numbers: e3="poison"."""
    return [
        Example(
            f"e{i}", f"d, line {i}", (("user", f"text {i} {words.get(f'e{i}', '')}".strip()),), None, None, None, {}
        )
        for i in range(count)
    ]


class Outcome:
    """What a run came to."""

    def __init__(self, path: Path) -> None:
        with ResultsFile(path, {}) as results:
            self.done, self.failed = results.done, results.failed
        self.lines = path.read_text().splitlines()[1:]
        self.messages: list[str] = []


def go(
    path: Path, targets: Sequence[str], requested: Sequence[Example], *, during: Callable[[Runner], None] | None = None,
    plan: RunSpec = PLAN, **keywords: Any,
) -> Outcome:  # fmt: skip
    """Run to the end."""
    messages: list[str] = []

    async def work() -> None:
        servers = await connect_servers(targets)
        with ResultsFile(path, {}) as results:
            await Runner(
                servers,
                plan,
                requested,
                results,
                on_message=messages.append,
                on_progress=during or (lambda _: None),
                **keywords,
            ).run()

    try:
        asyncio.run(work())
    finally:
        outcome = Outcome(path) if path.exists() else None
        if outcome is not None:
            outcome.messages = messages
    assert outcome is not None
    return outcome


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_one_server(start: Callable[..., FakeEvaluator], path: Path) -> None:
    server = start(seconds=0.02)
    outcome = go(path, [server.target], examples(9))
    assert outcome.done.keys() == {f"e{i}" for i in range(9)}
    assert server.most_at_once == 2
    record = outcome.done["e3"]
    assert record["metrics"]["pi_soft_ns"].keys() == METHODS.keys()
    assert len(record["metrics"]["pi_soft_nc"]["random"]["curve"]) == 2
    assert record["predicted"] in ("Positive", "Negative")
    assert (record["text"], record["prompt_tokens"], record["perturbable_tokens"]) == ("Positive", 9, 6)
    assert record["by"]["versions"] == {"torch": "2"}


def test_two_servers_share_the_work_and_give_the_same_numbers(
    start: Callable[..., FakeEvaluator], tmp_path: Path
) -> None:
    first, second = start(seconds=0.03), start(seconds=0.03)
    both = go(tmp_path / "both.jsonl", [first.target, second.target], examples(20), concurrency=3)
    assert len(first.requests) + len(second.requests) == 20
    assert min(len(first.requests), len(second.requests)) >= 5
    assert max(first.most_at_once, second.most_at_once) <= 3
    assert go(tmp_path / "one.jsonl", [first.target], list(reversed(examples(20)))).done == both.done


def test_finished_examples_are_not_sent_again(start: Callable[..., FakeEvaluator], path: Path) -> None:
    server = start()
    go(path, [server.target], examples(4))
    server.requests.clear()
    outcome = go(path, [server.target], examples(6))
    assert sorted(server.prompts()) == ["text 4", "text 5"]
    assert len(outcome.lines) == 6
    server.requests.clear()
    go(path, [server.target], examples(6))
    assert server.requests == []


def test_a_killed_server_causes_no_loss_and_no_duplicates(path: Path) -> None:
    killed, first = process()
    other, second = process()

    def kill(run: Runner) -> None:
        if run.done_now >= 6:
            killed.kill()

    try:
        outcome = go(path, [first, second], examples(24), during=kill)
    finally:
        for each in (killed, other):
            each.kill()
            each.wait()
    assert outcome.done.keys() == {f"e{i}" for i in range(24)}
    assert len(outcome.lines) == 24
    assert outcome.failed == {}
    assert any(message.startswith(f"{first} is taken out for ") for message in outcome.messages)


def test_a_recovered_server_is_used_again(start: Callable[..., FakeEvaluator], path: Path) -> None:
    server = start(seconds=0.02)
    again: list[FakeEvaluator] = []

    def restart(run: Runner) -> None:
        if run.done_now >= 3 and not again:
            server.stop()
            again.append(start(server.target, seconds=0.02))

    outcome = go(path, [server.target], examples(10), during=restart)
    assert len(outcome.done) == len(outcome.lines) == 10
    assert again[0].requests
    assert any("answers again" in message for message in outcome.messages)


def test_a_restarted_server_with_another_model_is_dropped(start: Callable[..., FakeEvaluator], path: Path) -> None:
    server = start(seconds=0.02)
    again: list[FakeEvaluator] = []

    def restart(run: Runner) -> None:
        if run.done_now >= 3 and not again:
            server.stop()
            again.append(start(server.target, dtype="bfloat16"))

    with pytest.raises(
        UnavailableError, match=r"no server is left: .*different dtypes, float32 .* and bfloat16 .*; \d of 10"
    ):
        go(path, [server.target], examples(10), during=restart)
    assert again[0].requests == []


def test_when_no_server_is_left_patience_ends(start: Callable[..., FakeEvaluator], path: Path) -> None:
    server = start(seconds=0.02)
    began = time.monotonic()

    def stop(run: Runner) -> None:
        if run.done_now >= 4:
            server.stop()

    with pytest.raises(
        UnavailableError, match=r"no server has answered for 0\.5 s .* of 50 examples are done and kept in"
    ):
        go(path, [server.target], examples(50), during=stop, patience=0.5)
    assert 0.5 < time.monotonic() - began < 5
    assert 4 <= len(Outcome(path).done) < 50


def test_a_server_that_only_fails_tires_patience(start: Callable[..., FakeEvaluator], path: Path) -> None:
    server = start()
    server.failures = [(code_pb2.INTERNAL, "no memory")] * 1000
    with pytest.raises(UnavailableError, match=r"no server has answered .*no memory.*0 of 90 examples"):
        go(path, [server.target], examples(90), patience=0.6)
    assert len(Outcome(path).failed) < 20


def test_a_single_failure_is_retried(start: Callable[..., FakeEvaluator], path: Path) -> None:
    server = start()
    server.failures = [(code_pb2.INTERNAL, "a hiccup"), (code_pb2.UNAVAILABLE, "going down")]
    outcome = go(path, [server.target], examples(5), concurrency=1)
    assert (len(outcome.done), outcome.failed, len(server.requests)) == (5, {}, 7)


def test_an_overloaded_server_is_retried_later(start: Callable[..., FakeEvaluator], path: Path) -> None:
    server = start()
    server.failures = [(code_pb2.RESOURCE_EXHAUSTED, "8 requests wait already")]
    began = time.monotonic()
    outcome = go(path, [server.target], examples(3), concurrency=1)
    assert time.monotonic() - began >= 0.2  # the retry delay of the server
    assert (len(outcome.done), outcome.messages) == (3, [])


def test_an_invalid_example_fails_alone(start: Callable[..., FakeEvaluator], path: Path) -> None:
    server = start()
    dataset = examples(8, e1="long", e5="poison", e6="nothing")
    outcome = go(path, [server.target], dataset, concurrency=1)
    assert outcome.done.keys() == {"e0", "e2", "e3", "e4", "e6", "e7"}
    assert outcome.failed["e1"] == "d, line 1: input.messages: has 11 tokens, the limit is 5"
    assert "unexpected error" in outcome.failed["e5"]
    assert server.prompts().count("text 5 poison") == 3
    assert outcome.done["e6"]["metrics"] == {}
    assert outcome.done["e6"]["skipped_steps"] == 1


def test_a_slow_example_is_given_up(start: Callable[..., FakeEvaluator], path: Path) -> None:
    outcome = go(path, [start().target], examples(3, e1="slow"), timeout=0.8)
    assert outcome.done.keys() == {"e0", "e2"}
    assert "did not finish within timeout=0.8 s" in outcome.failed["e1"]


def test_a_request_that_no_server_accepts_ends_the_run(start: Callable[..., FakeEvaluator], path: Path) -> None:
    server = start()
    server.failures = [(code_pb2.INVALID_ARGUMENT, "removal pad needs a padding token")] * 1000
    with pytest.raises(InvalidRequestError, match=r"the first 5 examples were all refused: .*padding token"):
        go(path, [server.target], examples(40))
    assert len(server.requests) < 10


def test_an_unusable_rationale_skips_only_its_metrics(start: Callable[..., FakeEvaluator], path: Path) -> None:
    plan = RunSpec(PRESETS["sst2"], METHODS, metrics=("pi_soft_ns", "auprc"), pis=(0.5,))
    dataset = [
        Example(f"e{i}", "", (("user", text),), None, None, ((0, 4),), {}) for i, text in enumerate(("a", "rationale"))
    ]
    outcome = go(path, [start().target], dataset, plan=plan)
    assert outcome.done["e0"]["metrics"].keys() == {"pi_soft_ns", "auprc"}
    assert outcome.done["e1"]["metrics"].keys() == {"pi_soft_ns"}


def test_servers_must_serve_the_same_model(start: Callable[..., FakeEvaluator]) -> None:
    first, second = start(), start(quantization="int8")
    with pytest.raises(
        InvalidRequestError, match=f"{first.target} and {second.target} serve different quantizations, none .* and int8"
    ):
        asyncio.run(connect_servers([first.target, second.target]))


def test_a_server_may_be_down_at_first(start: Callable[..., FakeEvaluator], path: Path) -> None:
    up, down = start(), start()
    down.stop()
    outcome = go(path, [down.target, up.target], examples(5))
    assert len(outcome.done) == 5
    with pytest.raises(UnavailableError, match="none of 2 servers answers"):
        asyncio.run(connect_servers([down.target, "127.0.0.1:1"]))
