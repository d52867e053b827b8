"""The demo model's corpus: three tasks whose prompts are the paper's, verdict lists, retellings, and plain stories.

Pure and seeded, of the standard library alone.

Split. Every example combines pairs of content choices: a noun with a polarity word (sentiment), a subject with a value
(boolq), an action with a cause (why). SHA-256 of such a pair sends a fifth of all pairs to `held_out` and the rest to
`train`, and an example is written from pairs of its own split alone, wherever in the text they stand and whether they
decide the answer or not. So no pair of a held-out example, stated or asked about, occurs in any training example,
whatever the seeds; single words, names and sentence shapes are shared.

Training differs from evaluation in what is asked, never in which pairs may occur: conversations with more than one
answer, easy reviews first and hard ones more often, verdict lists, which ask of a passage without a chat, and
retellings, which tell causes twice; the reasons are in `train.py`.
"""

from collections.abc import Iterator, Sequence
from random import Random

from gradellm_engine.demo_model.training import boolq, sentiment, why
from gradellm_engine.demo_model.training.boolq import boolq_example, verdicts
from gradellm_engine.demo_model.training.example import TASKS, Example, Message, Piece, Role, Span, Split, Task, render
from gradellm_engine.demo_model.training.sentiment import sentiment_example
from gradellm_engine.demo_model.training.stories import story
from gradellm_engine.demo_model.training.why import retelling, why_example

__all__ = [
    "TASKS",
    "Example",
    "Message",
    "Role",
    "Span",
    "Split",
    "Task",
    "counterfactual",
    "examples",
    "retelling",
    "story",
    "training_conversation",
    "verdicts",
]

_WRITERS = {"sentiment": sentiment_example, "boolq": boolq_example, "why": why_example}
# The harder a construction, the more of it in training.
_TRAINED_CONSTRUCTIONS = ("plain", "negation", "contrast", "contrast", "distractor", "distractor")
_OPPOSITE = {"Positive": "Negative", "Negative": "Positive", "true": "false", "false": "true"}


def examples(task: Task, split: Split, seed: int, count: int) -> Iterator[Example]:
    """Yield `count` examples. Example i is a function of (task, split, seed, i) alone."""
    for index in range(count):
        yield _WRITERS[task](Random(f"{task}/{split}/{seed}/{index}"), split)


def counterfactual(example: Example) -> Example:
    """Turn the evidence of an example round, and so its label; doing so twice gives the example back.

    Sentiment: every deciding polarity word is replaced by one of the other sign. Boolq: what was affirmed of the asked
    subject is denied. The pairs that come about belong to the same split. Raises ValueError for `why`, whose answer
    has no opposite.
    """
    if example.answer not in _OPPOSITE:
        raise ValueError(f"a {example.task} example has no counterfactual")
    content, pieces, position = example.user_content, [], 0
    for span in example.evidence:
        words = content[span.start : span.end]
        pieces.append(Piece(content[position : span.start]))
        swapped = Piece(span.replacement, span.kind, words) if span.replacement else Piece(words, span.kind)
        pieces.append(swapped)
        position = span.end
    flipped, evidence = render([*pieces, Piece(content[position:])])
    messages = (*example.messages[:-1], Message("user", flipped))
    return Example(example.task, example.construction, messages, _OPPOSITE[example.answer], evidence)


def training_conversation(task: Task, rng: Random, easy: bool = False) -> tuple[Message, ...]:
    """A training conversation of a task, answers included: one or two reviews, or a passage or story with questions.

    More than one answer a conversation makes answers denser, but several passages in one would not do: which of them a
    question is about is one thing too many to find out at once. `easy` ones start a curriculum: reviews of the plain
    construction alone, since negation next to it makes single words tell nothing.
    """
    if task == "sentiment":
        constructions = ("plain",) if easy else _TRAINED_CONSTRUCTIONS
        drawn = [sentiment_example(rng, "train", constructions) for _ in range(1 if easy else rng.randint(1, 2))]
        return _conversation(sentiment.SYSTEM_PROMPT, [(example.user_content, example.answer) for example in drawn])
    if task == "why":
        told = why.deeds(rng, "train")
        first, *others = rng.sample(told, len(told))
        story_and_question = why.as_example(rng, told, first).user_content
        asked = [(story_and_question, first.answer), *((deed.question, deed.answer) for deed in others)]
        return _conversation(None, asked)
    return _conversation(boolq.SYSTEM_PROMPT, boolq.training_turns(rng))


def _conversation(system: str | None, turns: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
    """A system prompt, where there is one, and (user content, answer) after (user content, answer)."""
    messages = [] if system is None else [Message("system", system)]
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    return tuple(messages)
