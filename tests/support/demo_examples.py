"""Examples of the demo model's corpus in tests: drawn by seed, and labelled by rule from their evidence."""

from __future__ import annotations

from hypothesis import strategies as st

from gradellm_engine.demo_model.training.boolq import VERBS
from gradellm_engine.demo_model.training.corpus import Example, Split, Task, examples
from gradellm_engine.demo_model.training.sentiment import POLARITY

seeds = st.integers(min_value=0, max_value=2**32)
splits: st.SearchStrategy[Split] = st.sampled_from(("train", "held_out"))
AFFIRMATIONS = frozenset(affirmation for affirmation, _ in VERBS)
ANY_VERB = "|".join(sorted((verb for pair in VERBS for verb in pair), key=len, reverse=True))


def draw(task: Task, split: Split, seed: int) -> Example:
    return next(examples(task, split, seed, 1))


def words_of(example: Example, kind: str) -> list[str]:
    return [example.user_content[span.start : span.end] for span in example.evidence if span.kind == kind]


def sentiment_by_rule(example: Example) -> str:
    """The label, from the evidence alone: the sign of the polarity words, turned round by a negator."""
    (sign,) = {POLARITY[word.lower()] for word in words_of(example, "polarity")}
    return "Positive" if sign != bool(words_of(example, "negator")) else "Negative"


def boolq_by_rule(example: Example) -> str:
    """The answer, from the verb of the fact in question alone."""
    (verb,) = words_of(example, "verb")
    return "true" if verb in AFFIRMATIONS else "false"
