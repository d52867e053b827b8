"""The prompts that the demo plays. The first two have the words of the Grad-ELLM paper's own prompts (its table 3)."""

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
        "Does the writer like the film? Which words decide it?",
        (("system", _SENTIMENT), ("user", "Text: The acting was dull, but in the end I loved this film.")),
        8,
    ),
    Scene(
        "Does the passage say so? Which part of it decides?",
        (
            ("system", _BOOLQ),
            (
                "user",
                "Passage: The red kite is a bird of prey. It lives in forests and feeds on small animals. "
                "It was once rare, but today it is common again.\n\nQuestion: is the red kite common today",
            ),
        ),
        8,
    ),
    Scene(
        "Why did it happen? Each word of the answer points to its reason.",
        (
            (
                "user",
                "Mia wanted to bake a cake. She looked in the kitchen, but there were no eggs. So she walked to the "
                "shop. Why did Mia walk to the shop?",
            ),
        ),
        24,
    ),
)
