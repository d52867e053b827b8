"""Measures the held-out accuracy of a checkpoint.

    python -m gradellm_engine.demo_model.training.evaluate [--model DIR] [--count 1000]

An answer is correct if greedy decoding from the chat template's generation prompt gives exactly the answer and then
ends the turn. The model is computed in float32, whatever dtype it is stored in. Intervals are Wilson's, at 95%.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from gradellm_engine.demo_model import CHECKPOINT
from gradellm_engine.demo_model.training.corpus import TASKS, Example, Task, examples

_BATCH_SIZE = 50
_MAX_ANSWER_TOKENS = 24  # including the end of turn; a longer answer is wrong


class Accuracy(TypedDict):
    """The share of correct answers out of `count`, and its interval at 95%."""

    accuracy: float
    low: float
    high: float
    count: int


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measure the demo model on held-out examples.")
    parser.add_argument(
        "--model", type=Path, default=CHECKPOINT, help="checkpoint folder (default: the one that ships)"
    )
    parser.add_argument("--count", type=int, default=1000, help="held-out examples a task")
    parser.add_argument("--seed", type=int, default=0, help="seed of the held-out examples")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    accuracies = evaluate(options.model, options.count, options.seed)
    print(json.dumps(accuracies, indent=2) if options.json else report(accuracies))


def evaluate(checkpoint: Path, count: int, seed: int = 0, tasks: Sequence[Task] = TASKS) -> dict[str, Accuracy]:
    """Accuracy by task and by "task/construction", over `count` held-out examples a task."""
    model, tokenizer = load(checkpoint)
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for task in tasks:
        drawn = list(examples(task, "held_out", seed, count))
        for example, answer in zip(drawn, greedy_answers(model, tokenizer, drawn), strict=True):
            for key in (task, f"{task}/{example.construction}"):
                outcomes[key].append(answer == example.answer)
    return {key: _accuracy(outcomes[key]) for key in sorted(outcomes)}


def load(checkpoint: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load the checkpoint in float32, for inference on the CPU, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(checkpoint)


@torch.inference_mode()
def greedy_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, drawn: Sequence[Example]) -> list[str]:
    """The greedy answer to each example, without the end token; cut off after _MAX_ANSWER_TOKENS."""
    prompts = [prompt_ids(tokenizer, example) for example in drawn]
    # Batches of one length only: no padding, so an answer does not depend on its batch.
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, ids in enumerate(prompts):
        by_length[len(ids)].append(index)
    answers = [""] * len(drawn)
    for indexes in by_length.values():
        for start in range(0, len(indexes), _BATCH_SIZE):
            batch = indexes[start : start + _BATCH_SIZE]
            input_ids = torch.tensor([prompts[index] for index in batch])
            output = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=_MAX_ANSWER_TOKENS,
                do_sample=False,
            )
            for index, row in zip(batch, output[:, input_ids.shape[1] :].tolist(), strict=True):
                end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
                answers[index] = str(tokenizer.decode(row[:end]))
    return answers


def prompt_ids(tokenizer: PreTrainedTokenizerFast, example: Example) -> list[int]:
    """The tokens of the example's messages, up to and including the assistant header."""
    messages = [{"role": message.role, "content": message.content} for message in example.messages]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def report(accuracies: dict[str, Accuracy]) -> str:
    """The accuracies as a plain-text table."""
    rows = [f"{'held-out examples':<24}{'accuracy':>9}   95% interval    count"]
    for key, value in accuracies.items():
        interval = f"{value['low']:.3f} to {value['high']:.3f}"
        rows.append(f"{key:<24}{value['accuracy']:>9.3f}   {interval}{value['count']:>7}")
    return "\n".join(rows)


def _accuracy(outcomes: Sequence[bool]) -> Accuracy:
    count, z = len(outcomes), 1.96
    share = sum(outcomes) / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return {
        "accuracy": round(share, 4),
        "low": round(centre - half, 4),
        "high": round(centre + half, 4),
        "count": count,
    }


if __name__ == "__main__":
    main()
