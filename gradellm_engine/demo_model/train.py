"""Train the demo model from nothing: `python -m gradellm_engine.demo_model.train --out DIR`.

1. Train the tokenizer on a sample of the corpus.
2. Every step writes fresh training conversations (no epochs, no stored data set) and takes one optimizer step on four
   micro-batches of like lengths: one a task, and raw text. Answers count most in the loss, so that they are not drowned
   by prompts that nobody could guess; the words of a yes/no question count for something, because guessing the value
   that is asked about means looking up the sentence about its subject. Easy examples and retellings fade out.
3. Round the weights to bfloat16, save, and measure held-out accuracy on what was saved.

The schedule is bound to steps, so a run is determined by its seed and number of steps, apart from the rounding of sums.
"""

import argparse
import json
import math
import time
from pathlib import Path
from random import Random

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradellm_engine.demo_model.corpus import TASKS, Task, retelling, story, training_conversation
from gradellm_engine.demo_model.evaluate import evaluate, report
from gradellm_engine.demo_model.muon import Muon
from gradellm_engine.demo_model.tokenizer import ASSISTANT, BOS, END, VOCABULARY_SIZE, train_tokenizer

CONTEXT_LENGTH = 512
_TOKENIZER_TEXTS = 4000
# A step's micro-batches, in conversations or texts.
_CHATS: dict[Task, int] = {"sentiment": 14, "boolq": 16, "why": 7}
_STORIES = 3
_RETELLINGS = 6
# Shares of all steps over which easy examples and retellings fade out.
_EASY_SHARES: dict[Task, float] = {"sentiment": 0.1, "boolq": 0.08, "why": 0.1}
_RETELLING_SHARE = 0.4
_PADDING, _PROMPT, _QUESTION, _ANSWER = range(4)  # the parts that a token can play in training
_WEIGHTS = (0.0, 0.06, 0.3, 1.0)  # what its cross-entropy counts for, by part
_PROMPT_SAMPLE = 0.25
_MATRIX_LEARNING_RATE = 0.02
_OTHER_LEARNING_RATE = 3e-3
_WARM_UP_STEPS = 50


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the demo model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, made if need be")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--evaluate", type=int, default=1000, help="held-out examples a task to measure at the end")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    tokenizer = train_tokenizer(_tokenizer_texts(options.seed), CONTEXT_LENGTH)
    model = new_model(tokenizer)
    print(f"{model.num_parameters():,} parameters", flush=True)
    started = time.monotonic()
    train(model, tokenizer, options.seed, options.steps)
    minutes = (time.monotonic() - started) / 60
    save(model, tokenizer, options.out)

    accuracies = evaluate(options.out, options.evaluate)
    print(report(accuracies))
    metrics = {
        "seed": options.seed,
        "steps": options.steps,
        "training_minutes": round(minutes, 1),
        "threads": options.threads,
        "parameters": model.num_parameters(),
        "held_out": accuracies,
    }
    (options.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make an untrained model: 5 layers, 8 query heads over 4 key-value heads of width 32, tied embeddings."""
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int) -> None:
    """Train in place; step i's data are a function of (seed, i)."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    optimizers = (
        Muon(matrices, lr=_MATRIX_LEARNING_RATE, weight_decay=0.05),
        torch.optim.AdamW(others, lr=_OTHER_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, steps))
        for optimizer in optimizers
    ]
    model.train()
    started, smoothed = time.monotonic(), dict.fromkeys((*TASKS, "raw"), math.log(VOCABULARY_SIZE))
    for step in range(steps):
        rng = Random(f"{seed}/{step}")
        batches: dict[str, list[str]] = {
            task: _chats(task, tokenizer, rng, easy_share=_fading(step, _EASY_SHARES[task] * steps)) for task in TASKS
        }
        batches["raw"] = _raw_texts(rng, round(_RETELLINGS * _fading(step, _RETELLING_SHARE * steps)))
        for name, texts in batches.items():
            loss, answer_loss = _losses(model, *_encode(texts, tokenizer))
            loss.backward()  # type: ignore[no-untyped-call]
            smoothed[name] += 0.05 * (answer_loss.item() - smoothed[name])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            losses = "  ".join(f"{name} {loss:.4f}" for name, loss in smoothed.items())
            print(f"step {step + 1}/{steps}  {time.monotonic() - started:.0f} s  answer loss  {losses}", flush=True)
    model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the weights as bfloat16, half the bytes of float32, with configuration, tokenizer and chat template."""
    model.generation_config.do_sample = False
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _chats(task: Task, tokenizer: PreTrainedTokenizerFast, rng: Random, easy_share: float) -> list[str]:
    """Write a micro-batch of conversations of one task, special tokens included."""
    conversations = [training_conversation(task, rng, easy=rng.random() < easy_share) for _ in range(_CHATS[task])]
    messages = [[{"role": turn.role, "content": turn.content} for turn in turns] for turns in conversations]
    return [str(tokenizer.apply_chat_template(conversation, tokenize=False)) for conversation in messages]


def _raw_texts(rng: Random, retellings: int) -> list[str]:
    """Write a micro-batch of stories and retellings."""
    texts = [story(rng) for _ in range(_STORIES)] + [retelling(rng) for _ in range(retellings)]
    return [f"{BOS}{text}{END}" for text in texts]


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode as token ids [B, S], padded on the right, with the part that each token plays, an index of _WEIGHTS."""
    input_ids: torch.Tensor = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")["input_ids"]
    # A token is an answer's if, among the tokens before it, the last assistant header came after the last end of turn;
    # likewise for a question, which begins with that word.
    answers = _last_before(input_ids == tokenizer.convert_tokens_to_ids(ASSISTANT))
    questions = _last_before(input_ids == tokenizer.convert_tokens_to_ids("Question"))
    ends = _last_before(input_ids == tokenizer.eos_token_id)
    parts = torch.where(questions > ends, _QUESTION, _PROMPT)
    parts = torch.where((answers > ends) | (answers[:, -1:] < 0), _ANSWER, parts)  # raw text knows no turns
    return input_ids, torch.where(input_ids == tokenizer.pad_token_id, _PADDING, parts)


def _last_before(marks: torch.Tensor) -> torch.Tensor:
    """Find the last mark strictly before each position, -1 where there is none: bool [B, S] to int64 [B, S]."""
    positions = torch.where(marks, torch.arange(marks.shape[1]), -1)
    return torch.nn.functional.pad(positions.cummax(dim=1).values[:, :-1], (1, 0), value=-1)


def _losses(model: LlamaForCausalLM, input_ids: torch.Tensor, parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted sum of cross-entropies over the number of answer tokens, and the mean over answer tokens alone.

    Padding stands on the right, so causality alone hides it. Of the prompt, a sample is enough, and saves much of the
    output layer's work.
    """
    hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    targets, parts = input_ids[:, 1:], parts[:, 1:]
    chosen = (parts >= _QUESTION) | ((parts == _PROMPT) & (torch.rand(parts.shape) < _PROMPT_SAMPLE))
    losses = torch.nn.functional.cross_entropy(model.lm_head(hidden[chosen]), targets[chosen], reduction="none")
    is_answer = parts[chosen] == _ANSWER
    loss = (torch.tensor(_WEIGHTS)[parts[chosen]] * losses).sum() / is_answer.sum()
    return loss, losses[is_answer].mean()


def _fading(step: int, steps: float) -> float:
    """Fall from one to none in so many steps."""
    return max(0.0, 1 - step / steps)


def _learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < _WARM_UP_STEPS:
        return (step + 1) / _WARM_UP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - _WARM_UP_STEPS) / max(1, steps - _WARM_UP_STEPS)))


def _tokenizer_texts(seed: int) -> list[str]:
    """Draw a sample of everything the model will read and write, without special tokens."""
    rng = Random(f"{seed}/tokenizer")
    conversations = [training_conversation(task, rng) for _ in range(_TOKENIZER_TEXTS) for task in TASKS]
    texts = [message.content for conversation in conversations for message in conversation]
    return texts + [story(rng) for _ in range(_TOKENIZER_TEXTS)]


if __name__ == "__main__":
    main()
