"""Streams by the SDK: in this process (`explain_all`), or as `python -m trials.load.callers TARGET FOLDER SECONDS`.

The command starts a caller for each line of FOLDER/requests.jsonl (a request's keywords), which sends its request again
and again until standard input ends or SECONDS are over. It writes FOLDER/explanations.jsonl, an explanation a line, and
FOLDER/calls.jsonl, a `Call` a line. Times are those of the system's monotonic clock, which all processes share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradellm import AsyncClient, Event, Explanation, GradellmError
from gradellm.explanation.io import read_jsonl, write_jsonl
from trials import calls

CALL_SECONDS = 180.0


@dataclass
class Call:
    """One stream, as its caller sees it.

    Attributes:
        request: index among the requests.
        started, ended: seconds.
        silent_from, silent_seconds: start and length of the longest wait for an event.
        explanation: index among the explanations; None where the call failed.
        error: why the call failed; empty where it did not.
    """

    request: int
    started: float
    ended: float = 0.0
    silent_from: float = 0.0
    silent_seconds: float = 0.0
    explanation: int | None = None
    error: str = ""


class Callers:
    """Callers on one client, a caller for each request."""

    def __init__(self, client: AsyncClient, requests: list[Any]) -> None:
        self._client, self._requests = client, requests
        self.calls: list[Call] = []
        self.explanations: list[Explanation] = []
        self.stopping = asyncio.Event()

    async def run(self, request: int) -> None:
        """Send a request at least once, and again until `stopping` is set."""
        while True:
            await self._call(request)
            if self.stopping.is_set():
                return

    async def _call(self, request: int) -> None:
        call = Call(request, started=time.monotonic())
        last_event = call.started

        def on_event(event: Event | None) -> None:
            nonlocal last_event
            now = time.monotonic()
            if now - last_event > call.silent_seconds:
                call.silent_from, call.silent_seconds = last_event, now - last_event
            last_event = now

        try:
            explanation = await self._client.explain(timeout=CALL_SECONDS, on_event=on_event, **self._requests[request])
        except GradellmError as error:
            call.error = f"{type(error).__name__}: {error}"
        else:
            if explanation.finished is None:
                call.error = "the stream ended without a finished event"
            call.explanation = len(self.explanations)
            self.explanations.append(explanation)
        on_event(None)
        call.ended = time.monotonic()
        self.calls.append(call)


async def explain_all(
    targets: Sequence[str], requests: Sequence[Any], rounds: int, until: Callable[[], bool] = lambda: True
) -> list[list[Explanation | None]]:
    """Explanations of all requests at once, `rounds` times and on until `until()`; None for a call that failed."""
    results: list[list[Explanation | None]] = []
    async with AsyncClient(targets) as client:

        async def explain(keywords: Any) -> Explanation | None:
            try:
                explanation = await client.explain(timeout=calls.CALL_SECONDS, **keywords)
            except GradellmError:
                return None
            return explanation if explanation.finished is not None else None

        while len(results) < rounds or not until():
            results.append(list(await asyncio.gather(*map(explain, requests))))
    return results


async def main(target: str, folder: Path, seconds: float) -> None:
    """Run all callers, and write calls and explanations."""
    requests = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    async with AsyncClient(target) as client:
        callers = Callers(client, requests)
        loop = asyncio.get_running_loop()
        loop.call_later(seconds, callers.stopping.set)
        loop.add_reader(sys.stdin, callers.stopping.set)
        print("ready", flush=True)
        running = asyncio.gather(*map(callers.run, range(len(requests))))
        await callers.stopping.wait()
        loop.remove_reader(sys.stdin)
        await running
    write_jsonl(callers.explanations, folder / "explanations.jsonl")
    (folder / "calls.jsonl").write_text("".join(json.dumps(asdict(call)) + "\n" for call in callers.calls))


def read_outcome(folder: Path) -> tuple[list[Call], list[Explanation]]:
    """Calls and explanations that the command has written to a folder."""
    lines = (folder / "calls.jsonl").read_text().splitlines()
    return [Call(**json.loads(line)) for line in lines], list(read_jsonl(folder / "explanations.jsonl"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
