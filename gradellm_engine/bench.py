"""What an explained token costs: `python -m gradellm_engine.bench`.

One run, one model with random weights, several ways to decode in turn: this engine without attribution, with it at
every token and in chunks, and Transformers' own generate. Figures are medians over the rounds, of milliseconds a token
and of what that is in plain tokens of the same round; reading the prompt is left out. Ratios mean something on a shared
machine, milliseconds by themselves do not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gradellm_engine.decoder import Decoder, Explain, Part, Target
from gradellm_engine.kv_pool import KVSlot
from gradellm_engine.settings import GradEllm

SHAPE_125M = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}


CHUNK_SIZES = (16, 32)


@dataclass(frozen=True)
class Row:
    """One prompt length: milliseconds a token in each round, by way of decoding."""

    prompt_tokens: int
    milliseconds: dict[str, list[float]]

    def median(self, way: str) -> float:
        """Milliseconds a token."""
        return statistics.median(self.milliseconds[way])

    def over_plain(self, way: str) -> float:
        """What a token costs in plain ones of the same round: what slows the machine for a while slows both."""
        rounds = zip(self.milliseconds[way], self.milliseconds["plain"], strict=True)
        return statistics.median(time / plain for time, plain in rounds)


Decoded = tuple[float, list[int]]  # seconds a token, and the tokens


class Contest:
    """One set of weights, decoded in several ways."""

    def __init__(self, shape: dict[str, int], new_tokens: int) -> None:
        torch.manual_seed(0)
        theirs = LlamaForCausalLM(LlamaConfig(**shape)).eval().requires_grad_(False)
        ours = LlamaForCausalLM(LlamaConfig(**shape))
        ours.load_state_dict(theirs.state_dict(), assign=True)  # the same tensors: neither runs from a warmer cache
        self._transformers = theirs
        self._decoder = Decoder(ours)
        self._explain = Explain(GradEllm(layers=tuple(range(self._decoder.num_layers))))
        self._vocab_size = shape["vocab_size"]
        self._new_tokens = new_tokens
        self.num_parameters = sum(parameter.numel() for parameter in theirs.parameters())

    def row(self, prompt_tokens: int, rounds: int) -> Row:
        """Measure one prompt length; the ways alternate, so that a busy moment meets them alike."""
        ids = torch.randint(self._vocab_size, (prompt_tokens,)).tolist()
        ways: dict[str, Callable[[Sequence[int]], Decoded]] = {
            "plain": self.plain,
            "per_token": self.per_token,
            **{f"chunked({size})": partial(self.chunked, size) for size in CHUNK_SIZES},
            "generate": self.transformers,
        }
        results = [{name: way(ids) for name, way in ways.items()} for _ in range(rounds + 1)][1:]  # the first warms up
        texts = [tokens for result in results for _, tokens in result.values()]
        if any(tokens != texts[0] for tokens in texts):
            raise RuntimeError("the ways decoded different tokens: there is nothing to compare")
        return Row(prompt_tokens, {name: [1e3 * result[name][0] for result in results] for name in ways})

    def plain(self, ids: Sequence[int]) -> Decoded:
        """Without attribution."""

        def step(token: int, slot: KVSlot) -> int:
            return int(self._decoder.step([Part.new(slot, [token])]).argmax())

        return self._decode(ids, step)

    def per_token(self, ids: Sequence[int]) -> Decoded:
        """Each token with its vector over the prefix."""

        def step(token: int, slot: KVSlot) -> int:
            explained = self._decoder.explained_pass([Part.new(slot, [token], self._explain)])
            chosen = int(explained.logits.argmax())
            explained.heat_maps([Target(chosen)])
            return chosen

        return self._decode(ids, step)

    def chunked(self, size: int, ids: Sequence[int]) -> Decoded:
        """Vectors for `size` tokens at once, behind them."""
        unexplained: list[Target] = []

        def step(token: int, slot: KVSlot) -> int:
            chosen = int(self._decoder.step([Part.new(slot, [token])]).argmax())
            unexplained.append(Target(chosen))
            if len(unexplained) == size:
                chunk = Part.again(slot, slot.length - size, slot.length, self._explain)
                self._decoder.replay([chunk], unexplained)
                unexplained.clear()
            return chosen

        decoded = self._decode(ids, step)
        if unexplained:
            raise RuntimeError(f"{self._new_tokens} tokens are not whole chunks of {size}")
        return decoded

    def transformers(self, ids: Sequence[int]) -> Decoded:
        """Transformers' `generate`: the time for all tokens less that for the first."""
        first, _ = self._generate(ids, 1)
        whole, tokens = self._generate(ids, self._new_tokens + 1)
        return (whole - first) / self._new_tokens, tokens[: self._new_tokens]

    def _decode(self, ids: Sequence[int], step: Callable[[int, KVSlot], int]) -> Decoded:
        self._decoder.allocate_pool(len(ids) + self._new_tokens)
        slot = self._decoder.pool.allocate(len(ids) + self._new_tokens)
        if slot is None:
            raise RuntimeError("a pool has no room for its own size")
        *rest, token = ids
        self._decoder.read([Part.new(slot, rest)])
        tokens = []
        began = time.perf_counter()
        for _ in range(self._new_tokens):
            token = step(token, slot)
            tokens.append(token)
        return (time.perf_counter() - began) / self._new_tokens, tokens

    def _generate(self, ids: Sequence[int], count: int) -> Decoded:
        given = torch.tensor([ids])
        began = time.perf_counter()
        output = self._transformers.generate(
            given,
            attention_mask=torch.ones_like(given),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        return time.perf_counter() - began, output[0, len(ids) :].tolist()


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown: milliseconds a token, and in brackets what that is in plain tokens."""
    names = list(rows[0].milliseconds)
    lines = [
        f"| prompt tokens | {' | '.join(names)} |",
        f"| ---: |{' ---: |' * len(names)}",
    ]
    for row in rows:
        cells = [f"{row.median(name):.1f} ({row.over_plain(name):.2f})" for name in names]
        lines.append(f"| {row.prompt_tokens} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the contest and print its table; `--json` keeps the figures."""
    parser = argparse.ArgumentParser(prog="python -m gradellm_engine.bench", description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 512, 2048], help="prompt lengths in tokens")
    parser.add_argument(
        "--new-tokens", type=int, default=32, help="tokens to decode after each; whole chunks (default: 32)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take the median of (default: 5)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    contest = Contest(SHAPE_125M, options.new_tokens)
    print(
        f"random Llama, {contest.num_parameters / 1e6:.1f}M parameters, float32, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; medians of {options.rounds}, {options.new_tokens} tokens each\n"
    )
    rows = [contest.row(length, options.rounds) for length in options.prompts]
    print(table(rows))
    if options.json is not None:
        figures = {
            "model": f"random Llama, {contest.num_parameters / 1e6:.1f}M parameters, float32",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rounds": options.rounds,
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
