"""Evaluates a data set on one or more servers: every example once, even if servers fail.

1. Each server takes examples from one queue, up to a limit at a time.
2. A result is on disk before its server takes the next example. Only complete examples are kept: examples in progress
   when a run is stopped are evaluated again by the next run.
3. A server that is unavailable, or fails twice in a row, returns its examples to the queue and is retried with
   exponential backoff. It must come back with the same model.
4. An overloaded server is retried later. An example that is refused, or fails three times, is recorded as failed, and
   the run continues.
5. When no server has answered for `patience` seconds, the run ends, and can be resumed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from gradellm.aio import AsyncClient
from gradellm.errors import (
    CallCancelledError,
    DeadlineExceededError,
    GradellmError,
    InvalidReportError,
    InvalidRequestError,
    OverloadedError,
    ServerError,
    UnavailableError,
)
from gradellm.evaluation.report import EvaluationReport
from gradellm.evaluation.run_spec import PLAUSIBILITY, model_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from gradellm.evaluation.examples import Example
    from gradellm.evaluation.results_file import ResultsFile
    from gradellm.evaluation.run_spec import RunSpec
    from gradellm.models import Event, ServerInfo

Connect: TypeAlias = "Callable[[str], AsyncClient]"

_connect: Connect = partial(AsyncClient, retry=None)  # the runner has its own retries

__all__ = ["PATIENCE_SECONDS", "Runner", "Server", "close", "connect_servers"]

PATIENCE_SECONDS = 60.0
FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS = 1.0, 30.0
PROBE_SECONDS = 10.0
"""Timeout of GetServerInfo."""
_MAX_ATTEMPTS = 3  # of an example on which servers fail
_MAX_ERRORS_IN_A_ROW = 2  # of a server, before it is taken out for a while
_MAX_EQUAL_REFUSALS = 5  # if the first examples are all refused for the same reason, the run itself is wrong
_PROGRESS_SECONDS = 0.1


@dataclass
class Server:
    """A server and its state."""

    target: str
    client: AsyncClient
    info: ServerInfo | None = None
    is_up: bool = False
    is_refused: bool = False
    """Whether it serves another model."""
    reason: str = ""
    """Why it is down."""
    down_since: float = field(default_factory=time.monotonic)
    """By the monotonic clock."""
    delay_seconds: float = 0.0
    """Before it is retried."""
    busy_until: float = 0.0
    """By the monotonic clock: when an overloaded server is retried."""
    errors_in_a_row: int = 0
    has_sent_events: bool = True
    """Whether it has sent events of an evaluation since it is up."""
    has_finished_examples: bool = True
    """Whether it has finished an evaluation since it is up."""
    done: int = 0
    running: dict[str, float] = field(default_factory=dict)
    """The examples in progress, by id, with the share that is done."""

    def mark_down(self, error: GradellmError) -> None:
        """Take the server out, with exponential backoff."""
        if self.has_finished_examples or (self.has_sent_events and not isinstance(error, ServerError)):
            self.down_since = time.monotonic()  # otherwise it has not worked since it was down before
        requested = getattr(error, "retry_after_seconds", None)
        self.delay_seconds = min(MAX_DELAY_SECONDS, requested or max(FIRST_DELAY_SECONDS, 2 * self.delay_seconds))
        self.is_up = self.has_sent_events = self.has_finished_examples = False
        self.reason = str(error)

    def mark_working(self) -> None:
        """Record that the server has finished an example, and reset its backoff."""
        self.has_finished_examples, self.errors_in_a_row, self.delay_seconds = True, 0, 0.0


async def connect_servers(targets: Sequence[str], connect: Connect = _connect) -> list[Server]:
    """Connect to all servers; some may be down. `connect` makes a client for a target.

    Raises UnavailableError if no server answers, and InvalidRequestError if they do not serve the same model.
    """
    servers = [Server(target, connect(target)) for target in targets]
    try:
        await _run_all(*(_probe(server) for server in servers))
    except BaseException:  # such as a token that is not accepted, which a retry does not mend
        await close(servers)
        raise
    up = [server for server in servers if server.info is not None]
    if not up:
        await close(servers)
        reasons = "; ".join(server.reason for server in servers)
        raise UnavailableError(reasons if len(servers) == 1 else f"none of {len(servers)} servers answers: {reasons}")
    for server in up[1:]:
        if up[0].info and server.info and (difference := model_difference(up[0].info.model, server.info.model)):
            await close(servers)
            raise InvalidRequestError.of(
                "target", f"{up[0].target} and {server.target} serve {difference}; all must serve the same model"
            )
    return servers


async def close(servers: Sequence[Server]) -> None:
    """Close all connections."""
    for server in servers:
        await server.client.close()


async def _probe(server: Server) -> None:
    """Update a server's state by GetServerInfo."""
    try:
        server.info = await server.client.server_info(timeout=PROBE_SECONDS)
    except (UnavailableError, DeadlineExceededError, ServerError, CallCancelledError, OverloadedError) as error:
        server.mark_down(error)
    else:
        server.is_up, server.reason = True, ""


class Runner:
    """One run over a data set."""

    def __init__(
        self,
        servers: Sequence[Server],
        spec: RunSpec,
        examples: Sequence[Example],
        results: ResultsFile,
        *,
        connect: Connect = _connect,
        concurrency: int = 2,
        patience: float = PATIENCE_SECONDS,
        timeout: float | None = None,
        on_progress: Callable[[Runner], None] = lambda runner: None,
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Prepare the evaluation of the examples that the results file lacks.

        `concurrency` is the number of examples in progress per server, `timeout` the seconds for one example.
        `on_progress` is called several times per second, `on_message` with changes of a server's state.
        """
        self.servers, self.total = servers, len(examples)
        self.results = results
        self.done_before = sum(example.id in results.done for example in examples)
        self._spec, self._connect = spec, connect
        self._concurrency, self._patience, self._timeout = concurrency, patience, timeout
        self._on_progress, self._on_message = on_progress, on_message
        self._queue = deque(example for example in examples if example.id not in results.done)
        self._left = {example.id for example in self._queue}
        self._attempts: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._over, self._changed = asyncio.Event(), asyncio.Condition()
        self.done_now, self.failed_now = 0, 0
        self.interrupted: set[str] = set()
        """The ids of examples in progress when the run was stopped."""
        self.began = time.monotonic()

    @property
    def summary(self) -> str:
        """The state of the run: "12 of 100 examples are done and kept in out/results.jsonl"."""
        done = self.done_before + self.done_now
        are = "is" if done == 1 else "are"
        text = f"{done} of {self.total} examples {are} done and kept in {self.results.path}"
        if self.interrupted:
            count = len(self.interrupted)
            were = "1 was in progress and is" if count == 1 else f"{count} were in progress and are"
            text += f"; {were} evaluated again, because only complete examples are kept"
        return text

    async def run(self) -> None:
        """Evaluate the remaining examples.

        Raises UnavailableError if no server has answered for `patience` seconds, and InvalidRequestError if the first
        examples are all refused for the same reason.
        """
        try:
            if self._left:
                await _run_all(self._watch(), *(self._serve(server) for server in self.servers))
            self._on_progress(self)
        finally:
            await close(self.servers)

    # --- servers ------------------------------------------------------------------------------------------------------

    async def _serve(self, server: Server) -> None:
        """Evaluate on a server while it is up, and retry it while it is down."""
        while await self._await_up(server):
            await _run_all(*(self._work(server) for _ in range(self._concurrency)))

    async def _await_up(self, server: Server) -> bool:
        """Wait until a server is up. Return False if the run is over, or the server has another model."""
        while not self._over.is_set():
            if server.is_up:
                return True
            await self._wait(server.delay_seconds)
            if self._over.is_set():
                break
            await server.client.close()  # a new channel connects at once; a failed one is in backoff
            server.client = self._connect(server.target)
            before, expected = server.reason, self._model()
            await _probe(server)
            if not server.is_up or server.info is None:
                continue
            if difference := model_difference(expected, server.info.model):
                server.is_up, server.is_refused = False, True
                server.reason = f"{server.target} came back with another model: {difference}; it is not used any more"
                self._on_message(server.reason)
                return False
            self._on_message(f"{server.target} answers again, after: {before}")
            return True
        return False

    def _model(self) -> Any:  # noqa: ANN401
        """The model that all servers must serve."""
        return next(server.info.model for server in self.servers if server.info is not None)

    async def _take_out(self, server: Server, error: GradellmError) -> None:
        if server.is_up:  # otherwise another example has taken it out already
            server.mark_down(error)
            self._on_message(f"{server.target} is taken out for {server.delay_seconds:g} s: {error}")
            await self._notify()

    async def _wait(self, seconds: float) -> None:
        """Wait, at most until the run is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), max(seconds, 1e-3))

    async def _watch(self) -> None:
        """Report progress, and end the run when all servers have been down for too long."""
        while not self._over.is_set():
            self._on_progress(self)
            now = time.monotonic()
            if all(server.is_refused for server in self.servers):
                raise UnavailableError(f"no server is left: {self._reasons()}; {self.summary}")
            if all(server.is_refused or _is_dead(server, now, self._patience) for server in self.servers):
                raise UnavailableError(
                    f"no server has answered for {self._patience:g} s ({self._reasons()}); {self.summary}"
                )
            await self._wait(_PROGRESS_SECONDS)

    def _reasons(self) -> str:
        return "; ".join(dict.fromkeys(server.reason for server in self.servers))

    # --- examples -----------------------------------------------------------------------------------------------------

    async def _work(self, server: Server) -> None:
        """Evaluate examples one after the other while the server is up."""
        while (example := await self._take(server)) is not None:
            try:
                record = await self._evaluate(server, example)
            except asyncio.CancelledError:
                self.interrupted.add(example.id)
                raise
            except InvalidRequestError as error:
                server.mark_working()
                self._refuse(example, error)
            except DeadlineExceededError as error:
                self._fail(example, error)
            except OverloadedError as error:
                await self._give_back(example)
                server.busy_until = time.monotonic() + (error.retry_after_seconds or FIRST_DELAY_SECONDS)
                await self._wait(server.busy_until - time.monotonic())
            except (UnavailableError, CallCancelledError) as error:
                await self._give_back(example)
                await self._take_out(server, error)
            except (ServerError, InvalidReportError) as error:
                await self._server_failed(server, example, error)
            else:
                server.mark_working()
                server.done += 1
                self.done_now += self.results.append(example.id, record)
                self._left.discard(example.id)
            finally:
                server.running.pop(example.id, None)
            if not self._left:
                self._over.set()
            await self._notify()

    async def _take(self, server: Server) -> Example | None:
        """Return the next example; None if the run is over or the server is down."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._queue or self._over.is_set() or not server.is_up)
            if self._over.is_set() or not server.is_up:
                return None
            example = self._queue.popleft()
            server.running[example.id] = 0.0
            return example

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _give_back(self, example: Example, *, at_end: bool = False) -> None:
        if at_end:
            self._queue.append(example)
        else:
            self._queue.appendleft(example)
        await self._notify()

    async def _evaluate(self, server: Server, example: Example) -> dict[str, Any]:
        try:
            return await self._request(server, example, ())
        except InvalidRequestError as error:
            # A rationale with all or none of the tokens has no AUPRC; other metrics do not need it.
            if not (error.violations and all(each.field.endswith("rationale") for each in error.violations)):
                raise
            return await self._request(server, example, PLAUSIBILITY)

    async def _request(self, server: Server, example: Example, without: Sequence[Any]) -> dict[str, Any]:
        prompt, keywords = self._spec.request(example, without=without)
        keywords["timeout"] = self._timeout
        events: list[Event] = []
        async with aclosing(server.client.evaluate_events(prompt, **keywords)) as stream:
            async for event in stream:
                server.has_sent_events = True
                events.append(event)
                if event.progress is not None:
                    server.running[example.id] = event.progress.done
        return self._spec.record(example, EvaluationReport.from_events(events))

    async def _server_failed(self, server: Server, example: Example, error: GradellmError) -> None:
        """Retry the example on other servers: the failure may be due to the server or to the example."""
        self._attempts[example.id] += 1
        server.errors_in_a_row += 1
        if (
            self._attempts[example.id] >= _MAX_ATTEMPTS or error.reason == "NOT_FINITE"
        ):  # a retry gives the same numbers
            self._fail(example, error)
        else:
            await self._give_back(example, at_end=True)
        if server.errors_in_a_row >= _MAX_ERRORS_IN_A_ROW:
            await self._take_out(server, error)

    def _refuse(self, example: Example, error: InvalidRequestError) -> None:
        self._fail(example, error)
        self._refusals[str(error)] += 1
        if self._refusals[str(error)] >= _MAX_EQUAL_REFUSALS and not self.results.done and len(self._refusals) == 1:
            raise InvalidRequestError(
                f"the first {_MAX_EQUAL_REFUSALS} examples were all refused: {error}", error.violations
            )

    def _fail(self, example: Example, error: GradellmError) -> None:
        self.failed_now += self.results.append_failure(example.id, f"{example.origin}: {error}")
        self._left.discard(example.id)


def _is_dead(server: Server, now: float, patience: float) -> bool:
    return not server.is_up and now - server.down_since > patience


async def _run_all(*work: Coroutine[Any, Any, Any]) -> None:
    """Run coroutines concurrently; the first error cancels the rest."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed.exceptions[0].__cause__
