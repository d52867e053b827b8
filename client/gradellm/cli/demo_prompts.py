"""The prompts of `gradellm demo`, of kinds that the demo model was trained on. Two are the paper's (table 3)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SCENES", "Scene"]


@dataclass(frozen=True, slots=True)
class Scene:
    """One prompt of the demo."""

    title: str
    messages: tuple[tuple[str, str], ...]
    max_new_tokens: int


_SENTIMENT = (
    "You are a helpful sentiment classifier. Please help to do the sentiment classification of the given text and "
    "respond ONLY with the single word Positive or Negative."
)
_BOOLQ = (
    "You are a factual question answering system. Determine if the given passage supports the question being true. "
    "Respond ONLY with the single word 'true' or 'false' in lowercase, without any punctuation or additional text."
)

SCENES = (
    Scene(
        "Does the writer like the musical? Which words decide it?",
        (
            ("system", _SENTIMENT),
            ("user", "Text: The musical began at eight. The stage was dull, but all in all the musical was wonderful."),
        ),
        8,
    ),
    Scene(
        "Does the passage say so? Which part of it decides?",
        (
            ("system", _BOOLQ),
            (
                "user",
                "Passage: The milk was cold. The soup isn't hot. The bread is fresh.\n\nQuestion: Is the soup hot?",
            ),
        ),
        8,
    ),
    Scene(
        "Why did it happen? What did each word of the answer draw on?",
        (
            (
                "user",
                "Tess picked some flowers because she wanted to surprise her old neighbour. Lucy had lost her red hat, "
                "so she asked the neighbour. Why did Tess pick some flowers?",
            ),
        ),
        24,
    ),
)
