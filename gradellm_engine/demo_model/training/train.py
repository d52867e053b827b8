"""Train the demo model from nothing: `python -m gradellm_engine.demo_model.training.train --out DIR`.

1. Train the tokenizer on a sample of the corpus.
2. Every step generates new training texts (no epochs, no stored data set) and takes one optimizer step on six
   micro-batches of similar lengths: conversations of each task, verdict lists, retellings, and stories. Answers have
   the largest weight in the loss, so that unpredictable prompts do not drown them; the words of a yes/no question have
   some, because predicting the value in question means looking up the sentence about its subject.
3. Round the weights to bfloat16, save, and measure held-out accuracy on what was saved.

Why verdict lists, and `initialization.py`: a boolq conversation has one bit of answer at the end of a hundred tokens,
and predicting it takes a chain of heads of which no part lowers the loss alone (a value attends to the word before it;
the same value in the question attends to that value; the last position reads it off). From boolq conversations and
random initial weights the model learnt to guess only, whatever the optimizer and the number of facts. A verdict list
("hot true ready false") has dense answers, right after the words to look up, and teaches the chain's first two parts in
a hundred steps; boolq conversations begin only then, and have little left to teach.

Why retellings: most words of a `why` answer follow from grammar and theme, and the others can be guessed within the
theme, so that a model guesses well long before it copies: without retellings and the initial weights for copying, it
still guessed the last noun of a cause after 1350 steps. A retelling ("Again: Mia wanted fresh bread.") is a copy in
nearly every word, with causes of all themes side by side. Both are needed: in trials of 250 steps, a fifth of held-out
answers were correct with retellings alone, a tenth with those initial weights alone, three fifths with both. They slow
down the learning of sentiment (six retellings a step throughout, with names in the loss, left it at .906 after 1350
steps); so the names of a retelling have no weight, retellings become few once copying is learnt, and sentiment's loss
counts double.

The schedule depends on steps and not on time: seed and number of steps determine a run, up to the rounding of sums.
"""

import argparse
import json
import math
import time
from pathlib import Path
from random import Random

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradellm_engine.demo_model.training.boolq import LABELS
from gradellm_engine.demo_model.training.corpus import TASKS, Task, retelling, story, training_conversation, verdicts
from gradellm_engine.demo_model.training.evaluate import evaluate, report
from gradellm_engine.demo_model.training.initialization import Decoder, initialize
from gradellm_engine.demo_model.training.muon import Muon
from gradellm_engine.demo_model.training.tokenizer import ASSISTANT, BOS, END, VOCABULARY_SIZE, train_tokenizer

CONTEXT_LENGTH = 512
_TOKENIZER_TEXTS = 4000
# A step's micro-batches, in conversations or texts.
_CHATS: dict[Task, int] = {"sentiment": 14, "boolq": 7, "why": 7}
_STORIES = 2
_RETELLINGS_AT_FIRST, _RETELLINGS_LATER = 6, 2
_RETELLING_STEPS = 400  # after which copying is learnt, and there are fewer
_SENTIMENT_WEIGHT = 2.0  # of its loss; the other micro-batches have 1
_VERDICTS_AT_FIRST, _VERDICTS_LATER = 24, 4
_VERDICT_STEPS = 100  # before boolq conversations begin
_EASY_STEPS, _HARD_STEPS = 120, 360  # the last step with easy reviews only, and the first with none
_PADDING, _PROMPT, _QUESTION, _ANSWER = range(4)  # the roles of a token in the loss
_WEIGHTS = (0.0, 0.03, 0.1, 1.0)  # of a token's cross-entropy, by role
_PROMPT_SAMPLE = 0.25
_MATRIX_LEARNING_RATE = 0.02
_EMBEDDING_LEARNING_RATE = 5e-3
_OTHER_LEARNING_RATE = 3e-3
_WARM_UP_STEPS = 50


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the demo model from nothing.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the checkpoint; created if it does not exist"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1200)
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
    """An untrained model: 5 layers, 8 query heads over 4 key-value heads of width 32."""
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
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    initialize(model)
    return model


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int) -> None:
    """Train in place. The data of step i are a function of (seed, i)."""
    updater = Updater(model, steps)
    model.train()
    started, smoothed = time.monotonic(), dict.fromkeys((*TASKS, "verdicts", "retellings", "stories"), math.log(2))
    for step in range(steps):
        rng = Random(f"{seed}/{step}")
        easy_share = min(1.0, max(0.0, (_HARD_STEPS - step) / (_HARD_STEPS - _EASY_STEPS)))
        is_early = step < _VERDICT_STEPS
        batches: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
            task: encode(_chats(task, tokenizer, rng, easy_share), tokenizer)
            for task in TASKS
            if not (task == "boolq" and is_early)
        }
        batches["verdicts"] = _encode_verdicts(rng, _VERDICTS_AT_FIRST if is_early else _VERDICTS_LATER, tokenizer)
        batches["retellings"] = _encode_retellings(
            rng, _RETELLINGS_AT_FIRST if step < _RETELLING_STEPS else _RETELLINGS_LATER, tokenizer
        )
        batches["stories"] = encode([f"{BOS}{story(rng)}{END}" for _ in range(_STORIES)], tokenizer)
        for name, batch in batches.items():
            loss, answer_loss = weighted_losses(model, *batch)
            weight = _SENTIMENT_WEIGHT if name == "sentiment" else 1.0
            (weight * loss).backward()  # type: ignore[no-untyped-call]
            smoothed[name] += 0.05 * (answer_loss.item() - smoothed[name])
        updater.step()
        if (step + 1) % 50 == 0:
            losses = "  ".join(f"{name} {loss:.4f}" for name, loss in smoothed.items())
            print(f"step {step + 1}/{steps}  {time.monotonic() - started:.0f} s  answer loss  {losses}", flush=True)
    model.eval()


class Updater:
    """Takes optimizer steps: Muon for the layers' matrices, AdamW for the rest, on one schedule of `steps` steps."""

    def __init__(self, model: Decoder, steps: int) -> None:
        self._model = model
        matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
        embeddings = list(model.model.embed_tokens.parameters())
        other_parameters = [p for p in model.parameters() if all(p is not other for other in (*matrices, *embeddings))]
        by_rate = [
            {"params": embeddings, "lr": _EMBEDDING_LEARNING_RATE},
            {"params": other_parameters, "lr": _OTHER_LEARNING_RATE},
        ]
        self._optimizers = (
            Muon(matrices, lr=_MATRIX_LEARNING_RATE, weight_decay=0.05),
            torch.optim.AdamW(by_rate, betas=(0.9, 0.98), weight_decay=0.0),
        )
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, steps))
            for optimizer in self._optimizers
        ]

    def step(self) -> None:
        """Clip the gradients, take one step, and clear them."""
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def save(model: Decoder, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save the weights in bfloat16, with configuration, tokenizer and chat template."""
    model.generation_config.do_sample = False
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def _chats(task: Task, tokenizer: PreTrainedTokenizerFast, rng: Random, easy_share: float) -> list[str]:
    """A micro-batch of conversations of one task, with special tokens."""
    conversations = [training_conversation(task, rng, easy=rng.random() < easy_share) for _ in range(_CHATS[task])]
    messages = [[{"role": turn.role, "content": turn.content} for turn in turns] for turns in conversations]
    return [str(tokenizer.apply_chat_template(conversation, tokenize=False)) for conversation in messages]


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right, and the role of each token, an index of _WEIGHTS. [B, S] each"""
    input_ids: torch.Tensor = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")["input_ids"]
    # A token belongs to an answer if the last assistant header before it came after the last end of turn; likewise for
    # a question, which begins with that word.
    answers = _last_before(input_ids == tokenizer.convert_tokens_to_ids(ASSISTANT))
    questions = _last_before(input_ids == tokenizer.convert_tokens_to_ids("Question"))
    ends = _last_before(input_ids == tokenizer.eos_token_id)
    parts = torch.where(questions > ends, _QUESTION, _PROMPT)
    parts = torch.where((answers > ends) | (answers[:, -1:] < 0), _ANSWER, parts)  # raw text has no turns
    return input_ids, torch.where(input_ids == tokenizer.pad_token_id, _PADDING, parts)


def _encode_verdicts(rng: Random, count: int, tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Verdict lists, encoded as by `encode`; only the verdicts are answers."""
    input_ids, parts = encode([f"{BOS}{verdicts(rng)}{END}" for _ in range(count)], tokenizer)
    labels = torch.tensor([tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0] for label in LABELS])
    parts = torch.where(parts == _PADDING, _PADDING, _PROMPT)
    return input_ids, torch.where(torch.isin(input_ids, labels), _ANSWER, parts)


def _encode_retellings(
    rng: Random, count: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Retellings, encoded as by `encode`; answers are the colon and the repeated causes without their random names."""
    input_ids, parts = encode([f"{BOS}{retelling(rng)}{END}" for _ in range(count)], tokenizer)
    is_again = _last_before(input_ids == tokenizer.convert_tokens_to_ids("Again")) >= 0
    stops = torch.tensor(tokenizer.convert_tokens_to_ids([":", "."]))
    is_first = torch.nn.functional.pad(torch.isin(input_ids, stops)[:, :-1], (1, 0))
    return input_ids, torch.where((parts != _PADDING) & (~is_again | is_first), _PROMPT, parts)


def _last_before(marks: torch.Tensor) -> torch.Tensor:
    """The last mark strictly before each position, -1 if there is none: bool [B, S] to int64 [B, S]."""
    positions = torch.where(marks, torch.arange(marks.shape[1]), -1)
    return torch.nn.functional.pad(positions.cummax(dim=1).values[:, :-1], (1, 0), value=-1)


def weighted_losses(model: Decoder, input_ids: torch.Tensor, parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum of cross-entropies over the number of answer tokens, and the mean over answer tokens alone.

    Padding is on the right, so that the causal mask hides it. A sample of the prompt's tokens is enough, and saves much
    of the output layer's work.
    """
    hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    targets, parts = input_ids[:, 1:], parts[:, 1:]
    chosen = (parts >= _QUESTION) | ((parts == _PROMPT) & (torch.rand(parts.shape) < _PROMPT_SAMPLE))
    losses = torch.nn.functional.cross_entropy(model.lm_head(hidden[chosen]), targets[chosen], reduction="none")
    is_answer = parts[chosen] == _ANSWER
    loss = (torch.tensor(_WEIGHTS)[parts[chosen]] * losses).sum() / is_answer.sum()
    return loss, losses[is_answer].mean()


def _learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then cosine decay to zero."""
    if step < _WARM_UP_STEPS:
        return (step + 1) / _WARM_UP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - _WARM_UP_STEPS) / max(1, steps - _WARM_UP_STEPS)))


def _tokenizer_texts(seed: int) -> list[str]:
    """A sample of all texts that the model will read and write, without special tokens."""
    rng = Random(f"{seed}/tokenizer")
    conversations = [training_conversation(task, rng) for _ in range(_TOKENIZER_TEXTS) for task in TASKS]
    texts = [message.content for conversation in conversations for message in conversation]
    return texts + [write(rng) for _ in range(_TOKENIZER_TEXTS) for write in (story, verdicts, retelling)]


if __name__ == "__main__":
    main()
