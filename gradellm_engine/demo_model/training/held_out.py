"""Writes held-out prompts of the demo model's tasks as data files.

    python -m gradellm_engine.demo_model.training.held_out sentiment

The output is JSONL that `gradellm evaluate` reads with the preset of the task's prompt: sst2 for sentiment, boolq for
boolq, tellmewhy for why. The rationale holds the indexes of the words of the review or passage that decide the answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from gradellm_engine.demo_model.training.boolq import PASSAGE_PREFIX, QUESTION_PREFIX
from gradellm_engine.demo_model.training.corpus import TASKS, Example, examples
from gradellm_engine.demo_model.training.sentiment import PREFIX


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Write held-out prompts of a task, a JSON object a line.")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for index, example in enumerate(examples(options.task, "held_out", options.seed, options.count)):
        row = {"id": f"{options.task}-{options.seed}-{index}", **fields(example)}
        sys.stdout.write(json.dumps(row) + "\n")


def fields(example: Example) -> dict[str, Any]:
    """An example's texts and answer, by the field names of the data set whose prompt it has."""
    content = example.user_content
    match example.task:
        case "sentiment":
            text = content.removeprefix(PREFIX)
            return {"text": text, "label": example.answer, "rationale": deciding_words(example, text)}
        case "boolq":
            passage, question = content.removeprefix(PASSAGE_PREFIX).split(f"\n\n{QUESTION_PREFIX}")
            rationale = deciding_words(example, passage)
            return {
                "passage": passage,
                "question": question,
                "answer": example.answer == "true",
                "rationale": rationale,
            }
        case "why" | "two_hop":
            return {"text": content, "answer": example.answer}


def deciding_words(example: Example, text: str) -> list[int]:
    """The indexes of the words of a text within the user's message that are evidence."""
    start, end, indexes = example.user_content.index(text), 0, []
    for index, word in enumerate(text.split()):
        begin = text.index(word, end)
        end = begin + len(word)
        if any(span.start - start < end and begin < span.end - start for span in example.evidence):
            indexes.append(index)
    return indexes


if __name__ == "__main__":
    main()
