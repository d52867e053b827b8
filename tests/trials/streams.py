"""`python -m trials.streams TARGET FOLDER SECONDS`: streams over the SDK, as a process of its own on a host of its own.

Each line of FOLDER/asked.jsonl is a request's keywords; each is asked again and again by a caller of its own until
standard input ends, or so many seconds are over. What came goes to FOLDER: answers.jsonl, an explanation a line, and
calls.jsonl, what was seen of each call. Times are of the system's monotonic clock, which all processes share.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradellm import AsyncClient, Event, Explanation, GradellmError
from gradellm.explanation.io import read_jsonl, write_jsonl

CALL_SECONDS = 180.0


@dataclass
class Call:
    """One stream, as its caller sees it.

    Attributes:
        request: its place among what is asked.
        began, ended: seconds.
        silent_from, silent_seconds: its longest wait for anything.
        answer: its place among the answers; None where it failed.
        error: what failed.
    """

    request: int
    began: float
    ended: float = 0.0
    silent_from: float = 0.0
    silent_seconds: float = 0.0
    answer: int | None = None
    error: str = ""


class Callers:
    """All of them, on one client."""

    def __init__(self, client: AsyncClient, asked: list[Any]) -> None:
        self._client, self._asked = client, asked
        self.calls: list[Call] = []
        self.answers: list[Explanation] = []
        self.stopping = asyncio.Event()

    async def run(self, request: int) -> None:
        """Ask at least once, and until it is time to stop."""
        while True:
            await self._one(request)
            if self.stopping.is_set():
                return

    async def _one(self, request: int) -> None:
        call = Call(request, began=time.monotonic())
        last = call.began

        def heard(event: Event | None) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > call.silent_seconds:
                call.silent_from, call.silent_seconds = last, now - last
            last = now

        try:
            answer = await self._client.explain(timeout=CALL_SECONDS, on_event=heard, **self._asked[request])
        except GradellmError as error:
            call.error = f"{type(error).__name__}: {error}"
        else:
            if answer.finished is None:
                call.error = "it ended before it was finished"
            call.answer = len(self.answers)
            self.answers.append(answer)
        heard(None)
        call.ended = time.monotonic()
        self.calls.append(call)


async def main(target: str, folder: Path, seconds: float) -> None:
    """Run all callers, and write what came."""
    asked = [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]
    async with AsyncClient(target) as client:
        callers = Callers(client, asked)
        loop = asyncio.get_running_loop()
        loop.call_later(seconds, callers.stopping.set)
        loop.add_reader(sys.stdin, callers.stopping.set)
        print("ready", flush=True)
        running = asyncio.gather(*map(callers.run, range(len(asked))))
        await callers.stopping.wait()
        loop.remove_reader(sys.stdin)
        await running
    write_jsonl(callers.answers, folder / "answers.jsonl")
    (folder / "calls.jsonl").write_text("".join(json.dumps(asdict(call)) + "\n" for call in callers.calls))


def read(folder: Path) -> tuple[list[Call], list[Explanation]]:
    """What a process of these has written."""
    lines = (folder / "calls.jsonl").read_text().splitlines()
    return [Call(**json.loads(line)) for line in lines], list(read_jsonl(folder / "answers.jsonl"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
