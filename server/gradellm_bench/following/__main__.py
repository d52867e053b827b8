"""What following another engine costs: `python -m gradellm_bench.following --model PATH`.

- **Cost.** Seconds of a followed token, explained in chunks, over those of a token that the same engine decodes
  plainly, and the same of a whole answer explained by Attribute. One right after the other in each round, so that all
  meet the same load of the machine; the median of the ratios.
- **Beside own requests.** `--streams` completions are followed while `--own` requests are generated and explained: the
  gaps between the own tokens, and the lag of the followed ones. Each followed stream gets a token whenever the own ones
  have got one, as if written at their pace.
- **Generators.** Tokens a second of followed completions over those of plain decode, with 1, 8 and `--streams` at once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradellm_bench.capacity.document import put
from gradellm_bench.capacity.report import markdown
from gradellm_bench.following.generators import FOLLOW, explained, follow_rates, generators_table
from gradellm_engine import (
    Attribution,
    Engine,
    FollowedRequest,
    Request,
    Sampling,
    Step,
)

PROMPT = "Once upon a time there was a little girl who "
PLAIN = "plain decode"


def run(engine: Engine, request: Request) -> float:
    """Run a request to its end; the seconds of its passes. The prefix cache has its prompt."""
    engine.scheduler.submit(request)
    return run_on(engine, request)


def run_on(engine: Engine, request: Request) -> float:
    """Run a submitted request to its end; the seconds of its passes.

    Raises:
        Exception: the error that the request ended with.
    """
    began = time.perf_counter()
    while not request.is_closed:
        list(engine.scheduler.step())
    if request.error is not None:
        raise request.error
    return time.perf_counter() - began


def decode_seconds(engine: Engine, prompt: str, ids: Sequence[int]) -> float:
    """Decode as many tokens plainly."""
    return run(engine, engine.generation_request(prompt, Sampling(max_new_tokens=len(ids))))


def attribute_seconds(engine: Engine, prompt: str, ids: Sequence[int]) -> float:
    """Explain the completion as a whole."""
    return run(engine, engine.attribution_request(prompt, ids, explained(engine, 64)))


def follow_seconds(engine: Engine, prompt: str, ids: Sequence[int], chunk_size: int) -> float:
    """Follow a completion whose tokens come in pieces of one chunk; the seconds of its passes."""
    scheduler, request = engine.scheduler, engine.follow_request(prompt, explained(engine, chunk_size), FOLLOW)
    began = time.perf_counter()
    scheduler.submit(request)
    for first in range(0, len(ids), chunk_size):
        scheduler.append(request, ids[first : first + chunk_size])
        while scheduler.has_work():
            list(scheduler.step())
    seconds = time.perf_counter() - began
    scheduler.finish(request)
    return seconds + run_on(engine, request)


def costs(engine: Engine, prompt: str, num_tokens: int, chunk_sizes: Sequence[int], rounds: int) -> dict[str, float]:
    """Seconds of each way over those of plain decode, the median of the rounds after one to warm up."""
    steps = engine.generate(prompt, Sampling(max_new_tokens=num_tokens))
    ids = [step.id for step in steps]
    ways: dict[str, Callable[[], float]] = {
        PLAIN: lambda: decode_seconds(engine, prompt, ids),
        "Attribute, 64 tokens a pass": lambda: attribute_seconds(engine, prompt, ids),
        **{
            f"Follow, {size} tokens a chunk": lambda size=size: follow_seconds(engine, prompt, ids, size)  # type: ignore[misc]
            for size in chunk_sizes
        },
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        seconds = {name: way() for name, way in ways.items()}
        if turn:
            for name, value in seconds.items():
                found[name].append(value / seconds[PLAIN])
    return {name: statistics.median(values) for name, values in found.items()}


@dataclass
class Gaps:
    """Times of one request's tokens, and of its scores.

    Attributes:
        tokens: seconds at which each token was there.
        arrivals: of a followed request: seconds at which each token came.
        rows: seconds at which each token's scores were there.
    """

    tokens: list[float] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)

    def take(self, request: Request, now: float) -> None:
        """Record a request's new events.

        Raises:
            Exception: the error that the request ended with.
        """
        if request.error is not None:
            raise request.error
        for event in request.take_events():
            match event:
                case Step():
                    self.tokens.append(now)
                case Attribution():
                    self.rows.append(now)

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [later - earlier for earlier, later in zip(self.tokens, self.tokens[1:], strict=False)]


def beside_own(
    engine: Engine, prompt: str, *, streams: int, own: int, num_tokens: int, chunk_size: int
) -> tuple[list[Gaps], list[Gaps]]:
    """Generate and explain `own` requests while `streams` completions are followed; the times of both."""
    scheduler = engine.scheduler
    ids = [step.id for step in engine.generate(prompt, Sampling(max_new_tokens=num_tokens))]
    ours = [
        engine.generation_request(f"{number} {prompt}", Sampling(max_new_tokens=num_tokens), explained(engine))
        for number in range(own)
    ]
    followed = [
        engine.follow_request(f"{number} {prompt}", explained(engine, chunk_size), FOLLOW)
        for number in range(own, own + streams)
    ]
    for request in (*ours, *followed):
        scheduler.submit(request)
    times = {request: Gaps() for request in (*ours, *followed)}

    def step(is_eligible: Callable[[Request], bool] = lambda request: True) -> None:
        for _ in scheduler.step(is_eligible):
            now = time.perf_counter()
            for request, gaps in times.items():
                gaps.take(request, now)

    scheduler.admit()
    while any(request.num_prefill_left and not request.is_closed for request in times):
        step(lambda request: bool(request.num_prefill_left))
    for gaps in times.values():
        gaps.tokens.clear()  # of prompts that were read before others
    sent = dict.fromkeys(followed, 0)
    while not all(request.is_closed for request in (*ours, *followed)):
        now = time.perf_counter()
        for number, request in enumerate(followed):
            pace = ours[number % own]
            turn = len(ids) if pace.is_closed else len(times[pace].tokens)
            _write(engine, request, ids, sent, times[request], now, turn=turn)
        step()
    for request, gaps in times.items():
        gaps.take(request, time.perf_counter())
    return [times[request] for request in ours], [times[request] for request in followed]


def _write(
    engine: Engine,
    request: FollowedRequest,
    ids: Sequence[int],
    sent: dict[FollowedRequest, int],
    gaps: Gaps,
    now: float,
    *,
    turn: int,
) -> None:
    """Append what the other engine has written by its `turn`-th token, and finish at the end."""
    if request.is_closed or sent[request] > len(ids):
        return
    new = ids[sent[request] : turn]
    if new:
        engine.scheduler.append(request, new)
        gaps.arrivals += [now] * len(new)
        sent[request] += len(new)
    if sent[request] >= len(ids):
        engine.scheduler.finish(request)
        sent[request] = len(ids) + 1


def cost_table(found: Mapping[str, float]) -> str:
    """A row for each way."""
    return markdown(["a token of", "over plain decode"], [[name, f"{ratio:.3f}"] for name, ratio in found.items()])


def beside_table(ours: Sequence[Gaps], followed: Sequence[Gaps]) -> str:
    """Gaps of own tokens, and lags of followed ones."""
    gaps = sorted(gap for each in ours for gap in each.gaps)
    lags = sorted(row - came for each in followed for came, row in zip(each.arrivals, each.rows, strict=True))
    median = statistics.median(gaps) if gaps else 0.0
    rows = [
        ["gap between two tokens of an own request", *_quantiles(gaps, median)],
        ["lag of a followed token's scores", *_quantiles(lags, median)],
    ]
    return markdown(["milliseconds", "median", "99 %", "largest", "largest over the median gap"], rows)


def _quantiles(values: Sequence[float], median_gap: float) -> list[str]:
    """Median, 99 % and the largest in milliseconds, and the largest over the median gap; dashes for no values."""
    if not values or not median_gap:
        return ["-"] * 4
    found = (statistics.median(values), values[int(0.99 * (len(values) - 1))], values[-1])
    return [*(f"{1000 * value:.0f}" for value in found), f"{values[-1] / median_gap:.2f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a model; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gradellm_bench.following",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="PATH", help="checkpoint folder")
    parser.add_argument("--dtype", default="float32", metavar="D", help="default: %(default)s")
    parser.add_argument("--device", default="auto", metavar="D", help="default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="about; default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument("--chunk-sizes", type=int, nargs="+", default=[16, 32], metavar="N")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    parser.add_argument("--streams", type=int, default=32, metavar="N", help="followed ones; default: %(default)s")
    parser.add_argument("--own", type=int, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the tables between their markers, too")
    parser.add_argument("--capacity-page", type=Path, metavar="FILE", help="the same for the generators")
    options = parser.parse_args(arguments)
    engine = Engine.load(
        options.model,
        dtype=options.dtype,
        device=options.device,
        max_running=max(options.own, options.streams),
        max_followed=options.streams,
    )
    prompt = PROMPT * max(1, options.prompt_tokens // len(engine.tokenize(PROMPT).tokens))
    tables = {
        "follow cost": cost_table(costs(engine, prompt, options.new_tokens, options.chunk_sizes, options.rounds)),
        "follow beside": beside_table(
            *beside_own(
                engine,
                prompt,
                streams=options.streams,
                own=options.own,
                num_tokens=options.new_tokens,
                chunk_size=options.chunk_sizes[0],
            )
        ),
        "follow generators": generators_table(
            follow_rates(
                engine,
                prompt,
                streams=sorted({1, min(8, options.streams), options.streams}),
                num_tokens=options.new_tokens,
                chunk_size=options.chunk_sizes[0],
                rounds=max(1, options.rounds // 2),
            )
        ),
    }
    for name, text in tables.items():
        print(f"{text}\n")
        page = options.capacity_page if name == "follow generators" else options.page
        if page is not None:
            page.write_text(put(page.read_text(), name, text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
