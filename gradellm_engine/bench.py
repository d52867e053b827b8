"""What an explained token costs: `python -m gradellm_engine.bench`.

One run, one model with random weights, three ways to decode in turn: this engine without and with attribution, and
Transformers' own generate. Figures are medians over the rounds of milliseconds a token; reading the prompt is left
out. Ratios within a run mean something on a shared machine, milliseconds by themselves do not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gradellm_engine.decoder import Decoder
from gradellm_engine.grad_ellm import heat_map
from gradellm_engine.kv_slot import KVSlot
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


@dataclass(frozen=True)
class Row:
    """Medians for one prompt length, in milliseconds a token."""

    prompt_tokens: int
    plain_ms: float
    explained_ms: float
    transformers_ms: float

    @property
    def explained_over_plain(self) -> float:
        """What an explained token costs in plain ones."""
        return self.explained_ms / self.plain_ms

    @property
    def transformers_over_plain(self) -> float:
        """What Transformers' token costs in plain ones."""
        return self.transformers_ms / self.plain_ms


class Contest:
    """One set of weights, decoded in three ways."""

    def __init__(self, shape: dict[str, int], new_tokens: int) -> None:
        torch.manual_seed(0)
        theirs = LlamaForCausalLM(LlamaConfig(**shape)).eval().requires_grad_(False)
        ours = LlamaForCausalLM(LlamaConfig(**shape))
        ours.load_state_dict(theirs.state_dict(), assign=True)  # the same tensors: neither runs from a warmer cache
        self._transformers = theirs
        self._decoder = Decoder(ours)
        self._vocab_size = shape["vocab_size"]
        self._new_tokens = new_tokens
        self.num_parameters = sum(parameter.numel() for parameter in theirs.parameters())

    def row(self, prompt_tokens: int, rounds: int) -> Row:
        """Measure one prompt length; the three ways alternate, so that a busy moment meets them alike."""
        ids = torch.randint(self._vocab_size, (prompt_tokens,)).tolist()
        ways: list[Callable[[Sequence[int]], tuple[float, list[int]]]] = [self.plain, self.explained, self.transformers]
        results = [[way(ids) for way in ways] for _ in range(rounds + 1)][1:]  # the first round warms up
        texts = [tokens for result in results for _, tokens in result]
        if any(tokens != texts[0] for tokens in texts):
            raise RuntimeError("the three ways decoded different tokens: there is nothing to compare")
        return Row(prompt_tokens, *(1e3 * statistics.median(result[i][0] for result in results) for i in range(3)))

    def plain(self, ids: Sequence[int]) -> tuple[float, list[int]]:
        """Seconds a token and the tokens, without attribution."""

        def step(token: int, slot: KVSlot) -> int:
            return int(self._decoder.step(token, slot).argmax())

        return self._decode(ids, step)

    def explained(self, ids: Sequence[int]) -> tuple[float, list[int]]:
        """Seconds a token and the tokens, each with its vector over the prefix."""
        switches = GradEllm()

        def step(token: int, slot: KVSlot) -> int:
            explained = self._decoder.explained_step(token, slot, switches)
            chosen = int(explained.logits.argmax())
            heat_map(explained.contributions(chosen), slot.length, switches)
            return chosen

        return self._decode(ids, step)

    def transformers(self, ids: Sequence[int]) -> tuple[float, list[int]]:
        """Seconds a token and the tokens of `generate`: the time for all tokens less that for the first."""
        first, _ = self._generate(ids, 1)
        whole, tokens = self._generate(ids, self._new_tokens + 1)
        return (whole - first) / self._new_tokens, tokens[: self._new_tokens]

    def _decode(self, ids: Sequence[int], step: Callable[[int, KVSlot], int]) -> tuple[float, list[int]]:
        slot = KVSlot(len(ids) + self._new_tokens)
        *rest, token = ids
        self._decoder.prefill(list(rest), slot)
        tokens = []
        began = time.perf_counter()
        for _ in range(self._new_tokens):
            token = step(token, slot)
            tokens.append(token)
        return (time.perf_counter() - began) / self._new_tokens, tokens

    def _generate(self, ids: Sequence[int], count: int) -> tuple[float, list[int]]:
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
    """The rows in Markdown."""
    lines = [
        "| prompt tokens | plain ms | explained ms | generate ms | explained / plain | generate / plain |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.prompt_tokens} | {row.plain_ms:.1f} | {row.explained_ms:.1f} | {row.transformers_ms:.1f} "
        f"| {row.explained_over_plain:.2f} | {row.transformers_over_plain:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the contest and print its table; `--json` keeps the figures."""
    parser = argparse.ArgumentParser(prog="python -m gradellm_engine.bench", description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 512, 2048], help="prompt lengths in tokens")
    parser.add_argument("--new-tokens", type=int, default=24, help="tokens to decode after each (default: 24)")
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
        figures = [
            {
                **vars(row),
                "explained_over_plain": row.explained_over_plain,
                "transformers_over_plain": row.transformers_over_plain,
            }
            for row in rows
        ]
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
