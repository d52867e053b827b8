"""Servers killed (SIGKILL) under streams: the SDK must resume every stream on another server."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from gradellm import Client, Explanation
from trials.calls import CALL_SECONDS
from trials.diff import TIE, Differences, compare, unchanged
from trials.load.callers import explain_all
from trials.report import Finding
from trials.serving import free_port, served

STREAMS, ROUNDS, SERVERS = 24, 4, 3


def survive(scale: float) -> list[Finding]:
    """Streams over three servers, each of which is killed once, compared with the same streams undisturbed.

    Once with batch-invariant results, where numbers must be exact, and once without: there a row's rounding depends on
    the rows of its batch, and a token that a resumed stream replays is in another batch.
    """
    requests = [
        {
            "prompt": f"Once upon a time, there was a {('cat', 'dog', 'bear', 'girl')[i % 4]} who",
            "max_new_tokens": 96,
            "num_alternatives": 2,
            "seed": i,
            "temperature": 1.0 if i % 2 else 0.0,
            "delivery": "chunked" if i % 4 >= 2 else "per_token",
        }
        for i in range(STREAMS)
    ]
    rounds = max(1, round(ROUNDS * scale))
    return [
        *_batch_invariant_findings(_kill_servers(requests, rounds, "--batch-invariant")),
        *_default_findings(_kill_servers(requests, rounds)),
    ]


@dataclass(frozen=True)
class KillRun:
    """Streams whose servers were killed, compared with references.

    Attributes:
        num_runs: rounds of all streams together.
        num_kills: servers killed while they ran.
        killed: the disturbed streams against the undisturbed ones.
        alone: undisturbed streams, each in a batch of its own, against the undisturbed ones.
        killed_from_float64: the disturbed streams against a float64 replay of the undisturbed run's tokens.
        undisturbed_from_float64: the undisturbed streams against the same replay.
    """

    num_runs: int
    num_kills: int
    killed: Differences
    alone: Differences
    killed_from_float64: Differences
    undisturbed_from_float64: Differences

    @property
    def setup(self) -> list[Finding]:
        """What was run."""
        how = f"{self.num_runs} times {STREAMS} over {SERVERS} servers, each killed (SIGKILL) and restarted once"
        return [
            Finding("streams", how),
            Finding("kills while they ran", str(self.num_kills), f"{SERVERS}", self.num_kills == SERVERS),
        ]

    @property
    def from_float64(self) -> tuple[str, str]:
        """Name and value of the distance to float64."""
        return (
            "from a float64 server's scores of the same tokens, of 1 or its row's largest",
            f"{self.killed_from_float64.largest:.1e} (undisturbed: {self.undisturbed_from_float64.largest:.1e})",
        )


def _batch_invariant_findings(run: KillRun) -> list[Finding]:
    """With --batch-invariant, every row must be equal to the last bit."""
    killed, alone = run.killed, run.alone
    return [
        *(replace(finding, what=f"with --batch-invariant: {finding.what}") for finding in run.setup),
        *unchanged(killed),
        Finding(
            "rows of scores that differ in any bit",
            f"{killed.rows_unequal} of {killed.rows:,}",
            "none",
            killed.rows_unequal == 0,
        ),
        Finding(
            "the same, undisturbed, but each stream alone",
            f"{alone.rows_unequal} of {alone.rows:,}",
            "none",
            alone.rows_unequal == 0,
        ),
        Finding(*run.from_float64, f"{TIE:.0e}", run.killed_from_float64.largest <= TIE),
    ]


def _default_findings(run: KillRun) -> list[Finding]:
    """Without it, streams must be whole and texts equal; differences of scores are reported without a limit."""
    killed, alone = run.killed, run.alone
    texts = [
        replace(finding, limit="", holds=None) if "score" in finding.what else finding for finding in unchanged(killed)
    ]
    return [
        *(replace(finding, what=f"without: {finding.what}") for finding in run.setup),
        *texts,
        Finding(
            "the same, of its row's largest alone",
            f"{killed.largest_relative:.1e}, above 1e-05 in {killed.rows_above} rows; undisturbed, but each stream "
            f"alone: {alone.largest_relative:.1e}, above 1e-05 in {alone.rows_above} of {alone.rows:,}: float32 "
            "rounding, which depends on the batch",
        ),
        Finding(*run.from_float64),
    ]


def _kill_servers(requests: Sequence[Any], rounds: int, *arguments: str) -> KillRun:
    """Run streams over three servers and kill each once; `arguments` are the servers'."""
    with served(*arguments) as server:
        undisturbed = asyncio.run(explain_all([server.address], requests, 1))[0]
        alone = [asyncio.run(explain_all([server.address], [request], 1))[0][0] for request in requests]
    rng = random.Random(0)
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(SERVERS)]
    kills: list[float] = []
    with ExitStack() as stack:
        servers = [stack.enter_context(served(*arguments, address=address)) for address in addresses]

        def kill_each() -> None:
            for index in rng.sample(range(SERVERS), SERVERS):
                time.sleep(rng.uniform(1.0, 3.0))
                kills.append(time.monotonic())
                servers[index].process.kill()
                servers[index].process.wait()
                servers[index] = stack.enter_context(served(*arguments, address=addresses[index]))

        killer = threading.Thread(target=kill_each)
        killer.start()
        runs = asyncio.run(explain_all(addresses, requests, rounds, until=lambda: not killer.is_alive()))
        killer.join()
    exact = _replayed_in_float64(undisturbed)
    return KillRun(
        num_runs=len(runs),
        num_kills=len(kills),
        killed=compare([pair for run in runs for pair in zip(run, undisturbed, strict=True)]),
        alone=compare(list(zip(alone, undisturbed, strict=True))),
        killed_from_float64=compare([pair for run in runs for pair in zip(run, exact, strict=True)]),
        undisturbed_from_float64=compare(list(zip(undisturbed, exact, strict=True))),
    )


def _replayed_in_float64(explanations: Sequence[Explanation | None]) -> list[Explanation | None]:
    """A teacher-forced replay of their tokens, explained in float64."""
    with served("--dtype", "float64") as server, Client(server.address) as client:
        return [
            explanation
            and client.attribute(
                explanation.started.prompt_text,
                completion_ids=[token.id for token in explanation.tokens],
                timeout=CALL_SECONDS,
            )
            for explanation in explanations
        ]
