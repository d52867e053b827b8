"""A data set over one or more servers: every example is evaluated once, whatever becomes of the servers meanwhile.

1. Each server takes examples from one queue, a bounded number at a time.
2. What comes back is on the disk before the next is taken. Only whole examples are kept: where a run is stopped, those
   under way are evaluated anew by the next one, and are not counted as done.
3. A server that is unavailable, or fails twice in a row, gives its examples back to the others and is asked again
   after a pause, which grows. It must come back with the same model.
4. One that has no room is asked again later. An example that cannot be served as it is, or that fails on three
   tries, is kept as a failure, and the run goes on.
5. When no server has answered for the time of `patience`, the run ends; the next one goes on from there.
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
from gradellm.evaluation.run_spec import PLAUSIBILITY, difference

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from gradellm.evaluation.datasets import Example
    from gradellm.evaluation.results_file import ResultsFile
    from gradellm.evaluation.run_spec import Plan
    from gradellm.models import Event, ServerInfo

Connect: TypeAlias = "Callable[[str], AsyncClient]"

_connected: Connect = partial(AsyncClient, retry=None)  # what to do without a server is decided here

__all__ = ["PATIENCE_SECONDS", "Runner", "Server", "ask_servers"]

PATIENCE_SECONDS = 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
PROBE_SECONDS = 10.0
"""How long a server may take to say what it serves."""
_TRIES = 3  # of an example that servers fail on
_ERRORS_IN_A_ROW = 2  # of a server, before it rests
_ALIKE = 5  # examples that are refused for the very same reason, before any was served: the run's fault, not theirs
_LOOK_SECONDS = 0.1


@dataclass
class Server:
    """One of the servers, and how it does."""

    target: str
    client: AsyncClient
    info: ServerInfo | None = None
    is_up: bool = False
    is_refused: bool = False
    """It serves another model."""
    reason: str = ""
    """Why it is not up."""
    down_since: float = field(default_factory=time.monotonic)
    """By the monotonic clock."""
    pause_seconds: float = 0.0
    """Before it is asked again."""
    busy_until: float = 0.0
    """By the monotonic clock: it had no room."""
    errors_in_a_row: int = 0
    heard: bool = True
    """Whether it has told anything of an evaluation since it is up."""
    worked: bool = True
    """Whether it has brought one to an end."""
    done: int = 0
    running: dict[str, float] = field(default_factory=dict)
    """The examples that it works on, by id, and how far each is, 0 to 1."""

    def fell(self, error: GradellmError) -> None:
        """It gets a rest, each time a longer one, until it works."""
        if self.worked or (self.heard and not isinstance(error, ServerError)):  # else it has been down all the time
            self.down_since = time.monotonic()
        asked = getattr(error, "retry_after_seconds", None)
        self.pause_seconds = min(LONGEST_PAUSE_SECONDS, asked or max(FIRST_PAUSE_SECONDS, 2 * self.pause_seconds))
        self.is_up = self.heard = self.worked = False
        self.reason = str(error)

    def answered(self) -> None:
        """It has brought an example to an end."""
        self.worked, self.errors_in_a_row, self.pause_seconds = True, 0, 0.0


async def ask_servers(targets: Sequence[str], connect: Connect = _connected) -> list[Server]:
    """Ask all servers what they serve; some may be down. `connect` makes a client of a target.

    Raises UnavailableError where none answers, and InvalidRequestError where they do not serve the same model.
    """
    servers = [Server(target, connect(target)) for target in targets]
    try:
        await _together(*(_ask(server) for server in servers))
    except BaseException:  # such as a token that is not accepted: asking again would not help
        await close(servers)
        raise
    up = [server for server in servers if server.info is not None]
    if not up:
        await close(servers)
        said = "; ".join(server.reason for server in servers)
        raise UnavailableError(said if len(servers) == 1 else f"none of {len(servers)} servers answers: {said}")
    for server in up[1:]:
        if up[0].info and server.info and (differ := difference(up[0].info.model, server.info.model)):
            await close(servers)
            raise InvalidRequestError.of(
                "target", f"{up[0].target} and {server.target} serve {differ}; all must serve the same model"
            )
    return servers


async def close(servers: Sequence[Server]) -> None:
    """Close all connections."""
    for server in servers:
        await server.client.close()


async def _ask(server: Server) -> None:
    """Learn what it serves, or why it does not answer."""
    try:
        server.info = await server.client.server_info(timeout=PROBE_SECONDS)
    except (UnavailableError, DeadlineExceededError, ServerError, CallCancelledError, OverloadedError) as error:
        server.fell(error)
    else:
        server.is_up, server.reason = True, ""


class Runner:
    """One run over a data set."""

    def __init__(
        self,
        servers: Sequence[Server],
        plan: Plan,
        examples: Sequence[Example],
        results: ResultsFile,
        *,
        connect: Connect = _connected,
        concurrency: int = 2,
        patience: float = PATIENCE_SECONDS,
        timeout: float | None = None,
        show: Callable[[Runner], None] = lambda runner: None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Take up what the results file lacks.

        `concurrency` is how many examples a server works on at a time, `timeout` how many seconds one may take. `show`
        is called several times a second, `tell` with what a person would want to know.
        """
        self.servers, self.total = servers, len(examples)
        self.results = results
        self.done_before = sum(example.id in results.done for example in examples)
        self._plan, self._connect = plan, connect
        self._concurrency, self._patience, self._timeout = concurrency, patience, timeout
        self._show, self._tell = show, tell
        self._queue = deque(example for example in examples if example.id not in results.done)
        self._left = {example.id for example in self._queue}
        self._tries: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._over, self._changed = asyncio.Event(), asyncio.Condition()
        self.done_now, self.failed_now = 0, 0
        self.broken_off: set[str] = set()
        """Examples that were under way when the run was stopped, by id."""
        self.began = time.monotonic()

    @property
    def where_it_stands(self) -> str:
        """Where the run stands: "12 of 100 examples are done and kept in out/results.jsonl"."""
        done = self.done_before + self.done_now
        are = "is" if done == 1 else "are"
        said = f"{done} of {self.total} examples {are} done and kept in {self.results.path}"
        if self.broken_off:
            count = len(self.broken_off)
            was = "1 was under way and is" if count == 1 else f"{count} were under way and are"
            said += f"; {was} evaluated anew, for only whole examples are kept"
        return said

    async def run(self) -> None:
        """Evaluate what is left.

        Raises UnavailableError when its patience is over, and InvalidRequestError where every example is refused for
        the same reason.
        """
        try:
            if self._left:
                await _together(self._watch(), *(self._serve(server) for server in self.servers))
            self._show(self)
        finally:
            await close(self.servers)

    # --- servers ------------------------------------------------------------------------------------------------------

    async def _serve(self, server: Server) -> None:
        """Have a server work as long as it answers, and come back to it."""
        while await self._reach(server):
            await _together(*(self._work(server) for _ in range(self._concurrency)))

    async def _reach(self, server: Server) -> bool:
        """Wait until it answers; False where it is needed no more."""
        while not self._over.is_set():
            if server.is_up:
                return True
            await self._wait(server.pause_seconds)
            if self._over.is_set():
                break
            await server.client.close()  # a new connection does not pause by itself, as one does that has failed
            server.client = self._connect(server.target)
            before, expected = server.reason, self._model()
            await _ask(server)
            if not server.is_up or server.info is None:
                continue
            if differ := difference(expected, server.info.model):
                server.is_up, server.is_refused = False, True
                server.reason = f"{server.target} came back with another model: {differ}; it is asked no more"
                self._tell(server.reason)
                return False
            self._tell(f"{server.target} answers again; before: {before}")
            return True
        return False

    def _model(self) -> Any:  # noqa: ANN401
        """What all must serve."""
        return next(server.info.model for server in self.servers if server.info is not None)

    async def _fell(self, server: Server, error: GradellmError) -> None:
        if server.is_up:  # else another of its examples has told so already
            server.fell(error)
            self._tell(f"{server.target} rests for {server.pause_seconds:g} s: {error}")
            await self._notify()

    async def _wait(self, seconds: float) -> None:
        """Wait, but not longer than the run goes."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), max(seconds, 1e-3))

    async def _watch(self) -> None:
        """Show how far it is, and lose patience."""
        while not self._over.is_set():
            self._show(self)
            now = time.monotonic()
            if all(server.is_refused for server in self.servers):
                raise UnavailableError(f"no server is left: {self._reasons()}; {self.where_it_stands}")
            if all(server.is_refused or _is_dead(server, now, self._patience) for server in self.servers):
                raise UnavailableError(
                    f"no server has answered for {self._patience:g} s ({self._reasons()}); {self.where_it_stands}"
                )
            await self._wait(_LOOK_SECONDS)

    def _reasons(self) -> str:
        return "; ".join(dict.fromkeys(server.reason for server in self.servers))

    # --- examples -----------------------------------------------------------------------------------------------------

    async def _work(self, server: Server) -> None:
        """Evaluate one example after the other, as long as the server does it."""
        while (example := await self._take(server)) is not None:
            try:
                record = await self._evaluate(server, example)
            except asyncio.CancelledError:
                self.broken_off.add(example.id)
                raise
            except InvalidRequestError as error:
                server.answered()
                self._refused(example, error)
            except DeadlineExceededError as error:
                self._fail(example, error)
            except OverloadedError as error:
                await self._give_back(example)
                server.busy_until = time.monotonic() + (error.retry_after_seconds or FIRST_PAUSE_SECONDS)
                await self._wait(server.busy_until - time.monotonic())
            except (UnavailableError, CallCancelledError) as error:
                await self._give_back(example)
                await self._fell(server, error)
            except (ServerError, InvalidReportError) as error:
                await self._server_failed(server, example, error)
            else:
                server.answered()
                server.done += 1
                self.done_now += self.results.append(example.id, record)
                self._left.discard(example.id)
            finally:
                server.running.pop(example.id, None)
            if not self._left:
                self._over.set()
            await self._notify()

    async def _take(self, server: Server) -> Example | None:
        """The next example; None where the run is over, or the server is not up."""
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

    async def _give_back(self, example: Example, *, to_the_end: bool = False) -> None:
        if to_the_end:
            self._queue.append(example)
        else:
            self._queue.appendleft(example)
        await self._notify()

    async def _evaluate(self, server: Server, example: Example) -> dict[str, Any]:
        try:
            return await self._ask(server, example, ())
        except InvalidRequestError as error:
            # A rationale that holds all or none of the text's tokens says nothing; the other metrics still do.
            if not (error.violations and all(one.field.endswith("rationale") for one in error.violations)):
                raise
            return await self._ask(server, example, PLAUSIBILITY)

    async def _ask(self, server: Server, example: Example, without: Sequence[Any]) -> dict[str, Any]:
        prompt, keywords = self._plan.request(example, without=without)
        keywords["timeout"] = self._timeout
        events: list[Event] = []
        async with aclosing(server.client.evaluate_events(prompt, **keywords)) as stream:
            async for event in stream:
                server.heard = True
                events.append(event)
                if event.progress is not None:
                    server.running[example.id] = event.progress.done
        return self._plan.record(example, EvaluationReport.from_events(events))

    async def _server_failed(self, server: Server, example: Example, error: GradellmError) -> None:
        """Its own fault, or the example's: others try."""
        self._tries[example.id] += 1
        server.errors_in_a_row += 1
        if self._tries[example.id] >= _TRIES or error.reason == "NOT_FINITE":  # the model's numbers will be the same
            self._fail(example, error)
        else:
            await self._give_back(example, to_the_end=True)
        if server.errors_in_a_row >= _ERRORS_IN_A_ROW:
            await self._fell(server, error)

    def _refused(self, example: Example, error: InvalidRequestError) -> None:
        self._fail(example, error)
        self._refusals[str(error)] += 1
        if self._refusals[str(error)] >= _ALIKE and not self.results.done and len(self._refusals) == 1:
            raise InvalidRequestError(f"the first {_ALIKE} examples were all refused: {error}", error.violations)

    def _fail(self, example: Example, error: GradellmError) -> None:
        self.failed_now += self.results.append_failure(example.id, f"{example.origin}: {error}")
        self._left.discard(example.id)


def _is_dead(server: Server, now: float, patience: float) -> bool:
    return not server.is_up and now - server.down_since > patience


async def _together(*work: Coroutine[Any, Any, Any]) -> None:
    """Run all at the same time; the first that fails ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed.exceptions[0].__cause__
