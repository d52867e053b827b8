"""Trains a small model on the two-hop task: `python -m gradellm_engine.demo_model.training.two_hop.train --out DIR`.

The model is as wide as the demo model, with fewer layers and heads, and starts from its initial weights and heads that
look two tokens back. Every step generates new conversations of the training split.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from gradellm_engine.demo_model.training.corpus import training_conversation
from gradellm_engine.demo_model.training.evaluate import evaluate, report
from gradellm_engine.demo_model.training.initialization import initialize
from gradellm_engine.demo_model.training.tokenizer import train_tokenizer
from gradellm_engine.demo_model.training.train import Updater, encode, save, weighted_losses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STEPS = 200
_CONTEXT_LENGTH = 256
_NUM_LAYERS, _NUM_HEADS = 2, 4
_LARGEST_SCORE = 4.6
"""Of a key before the softmax. Among 80 tokens a head then gives one at most about half of its weight."""
_TOKENIZER_TEXTS = 2000
_CHATS = 24  # a step


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train a small model on the two-hop task alone.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint; created if it is missing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--evaluate", type=int, default=500, help="held-out examples to measure at the end")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train_two_hop(options.out, options.seed, options.steps)
    print(report(evaluate(options.out, options.evaluate, tasks=("two_hop",))))


def train_two_hop(out: Path, seed: int = 0, steps: int = STEPS) -> None:
    """Train from nothing and write the checkpoint. The data of step i are a function of (seed, i)."""
    torch.manual_seed(seed)
    rng = Random(f"{seed}/tokenizer")
    texts = [turn.content for _ in range(_TOKENIZER_TEXTS) for turn in training_conversation("two_hop", rng)]
    tokenizer = train_tokenizer(texts, _CONTEXT_LENGTH)
    model = new_model(tokenizer)
    updater = Updater(model, steps)
    model.train()
    began, smoothed = time.monotonic(), 0.0
    for step in range(steps):
        batch = encode(_chats(Random(f"{seed}/{step}"), tokenizer), tokenizer)
        loss, answer_loss = weighted_losses(model, *batch)
        loss.backward()  # type: ignore[no-untyped-call]
        updater.step()
        smoothed += (answer_loss.item() - smoothed) * max(0.1, 1 / (step + 1))
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - began
            print(f"step {step + 1}/{steps}  {seconds:.0f} s  answer loss  {smoothed:.4f}", flush=True)
    model.eval()
    save(model, tokenizer, out)


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained Qwen3 whose norms of queries and keys are fixed, which bounds attention scores.

    Without a bound the trained heads rest on one token alone, where the gradient by the attention weights is 0.
    """
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=_NUM_LAYERS,
        num_attention_heads=_NUM_HEADS,
        num_key_value_heads=_NUM_HEADS,
        head_dim=32,
        max_position_embeddings=_CONTEXT_LENGTH,
        initializer_range=0.05,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    initialize(model, two_back=True)
    for layer in model.model.layers:
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            norm.weight.requires_grad_(False).fill_((_LARGEST_SCORE / config.head_dim**0.5) ** 0.5)
    return model


def _chats(rng: Random, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """A step's conversations, with special tokens."""
    chats = []
    for _ in range(_CHATS):
        turns = training_conversation("two_hop", rng)
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        chats.append(str(tokenizer.apply_chat_template(messages, tokenize=False)))
    return chats


if __name__ == "__main__":
    main()
