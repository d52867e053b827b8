"""What vLLM loses while it is followed: `python -m gradellm_bench.following.beside_vllm --model PATH --vllm DIR`.

vLLM on the first core; the explainer, the gateway in front of vLLM and the clients on the others. Each round sends the
same chats twice, as many at once as `--streams` says: to vLLM, and explained, through the gateway:

- **Speed.** Tokens a second of the chats that are followed, over those of the others; the median of the rounds.
- **Lag.** How long after a token its scores come, and how many tokens of its chat come in between. Scores come in
  groups of one chunk, and the explainer takes one pass for them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradellm_bench.capacity.document import put
from gradellm_bench.capacity.report import markdown
from gradellm_bench.network.load import RunSummary, new_texts, run_streams
from gradellm_bench.network.servers import GatewayServer, GradellmServer, ServerError, VLLMServer, posted_chunks

EXIT_FAILED = 70
PROMPT_WORDS = 40
WARM_UP_TOKENS = 16


@dataclass
class Lags:
    """How long after a token its scores came.

    Attributes:
        seconds: for each token.
        tokens: of the same chat, which came in between.
    """

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Chats:
    """Chats with a server of OpenAI's API, streamed.

    Attributes:
        port: of the server, on the loopback interface.
        model: its name.
        lags: of scores, of all chats; None for chats that are not explained.
    """

    port: int
    model: str
    lags: Lags | None = None

    def stream(self, prompt: str, new_tokens: int) -> Iterator[int]:
        """The number of tokens of each chunk of an answer.

        Raises:
            ServerError: the server refused the chat, or could not explain it.
        """
        arrivals: list[float] = []
        for chunk in self._chunks(prompt, new_tokens):
            if (said := chunk.get("gradellm")) is not None and self.lags is not None:
                if said.get("incomplete"):
                    raise ServerError(f"not all is explained: {said['incomplete']}")
                if (row := said.get("attribution")) is not None:
                    self.lags.seconds.append(time.perf_counter() - arrivals[row["token_index"]])
                    self.lags.tokens.append(len(arrivals) - 1 - row["token_index"])
                continue
            count = sum(len(choice.get("token_ids") or ()) for choice in chunk["choices"])
            arrivals += [time.perf_counter()] * count
            yield count

    def _chunks(self, prompt: str, new_tokens: int) -> Iterator[dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": new_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }
        if self.lags is not None:
            body["gradellm"] = {}
        return posted_chunks(self.port, "/v1/chat/completions", body, "status")


@dataclass(frozen=True)
class Beside:
    """Figures for one number of chats at once.

    Attributes:
        streams: chats at once.
        alone: tokens a second of all, not followed; the median of the rounds.
        followed: the same, followed.
        ratio: the median of the rounds' ratios.
        lags: of all rounds.
    """

    streams: int
    alone: float
    followed: float
    ratio: float
    lags: Lags


def measure(alone: Chats, followed_port: int, streams: int, new_tokens: int, rounds: int) -> Beside:
    """Measure so many chats at once, alone and by the gateway at a port, after a short round to warm up.

    Raises:
        ServerError: if a chat failed.
    """
    _rate(alone, 0, streams, WARM_UP_TOKENS)
    _rate(Chats(followed_port, alone.model, Lags()), 0, streams, WARM_UP_TOKENS)
    followed = Chats(followed_port, alone.model, lags := Lags())
    rates = []
    for turn in range(1, rounds + 1):
        order = (alone, followed) if turn % 2 else (followed, alone)
        found = {chats.port: _rate(chats, turn, streams, new_tokens) for chats in order}
        rates.append((found[alone.port], found[followed_port]))
    ratios = [beside / undisturbed for undisturbed, beside in rates]
    own, theirs = zip(*rates, strict=True)
    return Beside(streams, statistics.median(own), statistics.median(theirs), statistics.median(ratios), lags)


def _rate(chats: Chats, turn: int, streams: int, new_tokens: int) -> float:
    """Tokens a second of so many chats at once; the same chats for each `turn`."""
    records = run_streams(chats.stream, new_texts(streams, PROMPT_WORDS, turn), new_tokens)
    for record in records:
        if record.error is not None:
            raise ServerError(record.error)
    return RunSummary.of(records).tokens_per_second


def speed_table(found: Sequence[Beside]) -> str:
    """A row for each number of chats at once."""
    rows = []
    for each in found:
        lags = sorted(each.lags.seconds)
        tokens = sorted(each.lags.tokens)
        at = [len(lags) // 2, int(0.99 * (len(lags) - 1)), len(lags) - 1]
        rows.append(
            [
                str(each.streams),
                f"{each.alone:.1f}",
                f"{each.followed:.1f}",
                f"{each.ratio:.3f}",
                " / ".join(f"{1e3 * lags[place]:.0f}" for place in at),
                " / ".join(str(tokens[place]) for place in at),
            ]
        )
    lag = "median / 99 % / largest"
    header = ["chats", "vLLM alone, tokens/s", "followed", "of alone", f"lag, ms: {lag}", f"lag, tokens: {lag}"]
    return markdown(header, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gradellm_bench.following.beside_vllm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, metavar="PATH", help="checkpoint folder")
    parser.add_argument("--vllm", type=Path, required=True, metavar="DIR", help="a virtual environment that has vLLM")
    parser.add_argument("--dtype", default="float32", metavar="D", help="of both engines; default: %(default)s")
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[1, 4], metavar="N", help="chats at once; default: 1 4"
    )
    parser.add_argument("--new-tokens", type=int, default=96, metavar="N", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table between its markers, too")
    options = parser.parse_args(arguments)
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        parser.error("two cores are needed; this process has one")
    os.sched_setaffinity(0, others)
    try:
        with ExitStack() as servers:
            dtype = ["--dtype", options.dtype]
            vllm = servers.enter_context(VLLMServer(options.vllm, options.model, dtype, [first]))
            ours = servers.enter_context(GradellmServer(options.model, dtype, others))
            gateway = servers.enter_context(
                GatewayServer(f"http://127.0.0.1:{vllm.port}/v1", ours.target, options.dtype, others)
            )
            alone = Chats(vllm.port, str(options.model))
            found = [
                measure(alone, gateway.port, streams, options.new_tokens, options.rounds) for streams in options.streams
            ]
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        os.sched_setaffinity(0, [first, *others])
    print(text := speed_table(found))
    if options.page:
        options.page.write_text(put(options.page.read_text(), "follow vllm", text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
