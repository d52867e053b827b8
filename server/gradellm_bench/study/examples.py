"""Rows of data sets as prompts with a target, a human rationale or a known source."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gradellm.evaluation.datasets import load_rows
from gradellm.evaluation.presets import PRESETS, Preset, Rationale
from gradellm_bench.study.retrieval import Span, retrieval_chat
from gradellm_engine import Message, PromptInput

NUM_RETRIEVAL_CHATS = 200  # of each number of candidates; those that the model answers wrongly do not count

ReadFn = Callable[[Path, bool], list["StudyExample"]]
"""Reads a data set from the folder with the files: as chats, or as raw prompts."""


@dataclass(frozen=True)
class StudyExample:
    """One prompt.

    Attributes:
        id: unique within its data set.
        prompt: the input.
        labels: answers of which the model's likeliest is explained; empty where another token is.
        target: the text whose first token is explained; empty for the model's own next token.
        evidence: spans of the user's text that a human marked, or that hold the answer, in code points; empty for none.
        sentences: spans of the sentences of which one holds the answer; empty where that is not known.
        answer: what the model must answer for the row to count; empty for anything.
        candidates: what it could answer, in lower case, the answer among them.
    """

    id: str
    prompt: PromptInput
    labels: tuple[str, ...] = ()
    target: str = ""
    evidence: tuple[Span, ...] = ()
    sentences: tuple[Span, ...] = ()
    answer: str = ""
    candidates: frozenset[str] = frozenset()


_LAMBADA = Preset("lambada", "{text}", {"text": ("text",)}, rationale=Rationale("text", unit="characters"))

_SST2_RAW = Preset(
    "sst2_raw",
    "{text}\nSentiment:",
    {"text": ("text",)},
    label_words=("positive", "negative"),
    rationale=PRESETS["sst2"].rationale,
)  # for models that follow no instructions


def _rows(path: Path, preset: Preset, *, chat: bool) -> list[StudyExample]:
    """The rows of a file; as chats, or as raw prompts for models without a chat template."""
    return [
        StudyExample(
            row.id,
            PromptInput(prompt=row.prompt)
            if row.messages is None
            else PromptInput(messages=tuple(Message(role, text) for role, text in row.messages)),
            labels=preset.label_words,
            evidence=row.rationale or (),
        )
        for row in load_rows(path, preset, chat=chat).examples
    ]


def _file(name: str, preset: Preset) -> ReadFn:
    return lambda folder, chat: _rows(folder / name, preset, chat=chat)


def _lambada(folder: Path, chat: bool) -> list[StudyExample]:
    """The human's next word, which the text as a raw prompt leads to."""
    path = folder / "lambada_rationales.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines() if line]
    targets = {record["id"]: f" {record['target']}" for record in records}
    return [replace(row, target=targets[row.id]) for row in _rows(path, _LAMBADA, chat=False) if row.evidence]


def _retrieval(num_facts: int, num_distractors: int) -> ReadFn:
    def chats(folder: Path, chat: bool) -> list[StudyExample]:
        return [_chat(seed, num_facts, num_distractors, chat=chat) for seed in range(NUM_RETRIEVAL_CHATS)]

    return chats


def _chat(seed: int, num_facts: int, num_distractors: int, *, chat: bool) -> StudyExample:
    found = retrieval_chat("boxes", seed, num_facts=num_facts, num_distractors=num_distractors)
    prompt = PromptInput(messages=(Message("user", found.text),)) if chat else PromptInput(prompt=f"{found.text}\n\n")
    return StudyExample(
        f"boxes-{num_facts}-{num_distractors}-{seed}",
        prompt,
        evidence=() if found.word is None else (found.word,),
        sentences=found.sentences,
        answer=found.answer,
        candidates=frozenset(map(str.lower, found.candidates)),
    )


DATASETS: Mapping[str, ReadFn] = {
    "sst2": _file("sst2.jsonl", PRESETS["sst2"]),
    "sst2_raw": lambda folder, chat: _rows(folder / "sst2.jsonl", _SST2_RAW, chat=False),
    "boolq": _file("boolq.jsonl", PRESETS["boolq"]),
    "eraser_boolq": _file("eraser_boolq.jsonl", PRESETS["boolq"]),
    "lambada": _lambada,
    "retrieval2": _retrieval(2, 2),
    "retrieval4": _retrieval(4, 4),
    "imdb": _file("imdb.jsonl", PRESETS["imdb"]),
    "tellmewhy": _file("tellmewhy_reagent.jsonl", PRESETS["tellmewhy"]),
    "wikibio": _file("wikibio.jsonl", PRESETS["wikibio"]),
}
"""How each data set is read."""
