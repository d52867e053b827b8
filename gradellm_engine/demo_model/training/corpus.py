"""The demo model's corpus: three tasks with the paper's prompts, verdict lists, retellings, and plain stories.

Pure, seeded functions that need the standard library only.

Split. Every example combines pairs of content choices: a noun with a polarity word (sentiment), a subject with a value
(boolq), an action with a cause (why), two names, and a name with a colour (two_hop). The SHA-256 of a pair assigns a
fifth of all pairs to `held_out` and the rest to `train`, and an example uses pairs of its own split only, whether they
decide the answer or not. So no pair of a held-out example occurs in a training example, whatever the seeds; single
words, names and sentence shapes are shared.

Training differs from evaluation in the form of its texts, never in the pairs: conversations have more than one answer,
easy reviews come first and hard ones more often, and there are verdict lists and retellings, which have no chat
template; `train.py` gives the reasons.

A fourth task, two_hop, has a model of its own (`two_hop/train.py`).
"""

from collections.abc import Iterator, Sequence
from random import Random

from gradellm_engine.demo_model.training import boolq, sentiment, why
from gradellm_engine.demo_model.training.boolq import boolq_example, verdicts
from gradellm_engine.demo_model.training.example import TASKS, Example, Message, Piece, Role, Span, Split, Task, render
from gradellm_engine.demo_model.training.sentiment import sentiment_example
from gradellm_engine.demo_model.training.stories import story
from gradellm_engine.demo_model.training.two_hop.task import training_turns as two_hop_turns
from gradellm_engine.demo_model.training.two_hop.task import two_hop_example
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

_WRITERS = {"sentiment": sentiment_example, "boolq": boolq_example, "why": why_example, "two_hop": two_hop_example}
# Harder constructions are trained more often.
_TRAINED_CONSTRUCTIONS = ("plain", "negation", "contrast", "contrast", "distractor", "distractor")
_OPPOSITE = {"Positive": "Negative", "Negative": "Positive", "true": "false", "false": "true"}


def examples(task: Task, split: Split, seed: int, count: int) -> Iterator[Example]:
    """`count` examples; example i is a function of (task, split, seed, i)."""
    for index in range(count):
        yield _WRITERS[task](Random(f"{task}/{split}/{seed}/{index}"), split)


def counterfactual(example: Example) -> Example:
    """The example with its evidence reversed, and so its label; applied twice it gives the example back.

    Sentiment: every deciding polarity word is replaced by one of the other sign. Boolq: the fact that the question is
    about becomes its denial, or the reverse. The new pairs belong to the same split.

    Raises:
        ValueError: for `why`, whose answers have no opposite.
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
    """A training conversation with its answers: one or two reviews, or one passage or story with questions.

    Several answers a conversation make the training signal denser. Several passages would not: the model would also
    have to find the passage that a question is about. `easy` starts a curriculum, with reviews of the plain
    construction only: among negated reviews, single words do not predict the label.
    """
    if task == "sentiment":
        constructions = ("plain",) if easy else _TRAINED_CONSTRUCTIONS
        drawn = [sentiment_example(rng, "train", constructions) for _ in range(1 if easy else rng.randint(1, 2))]
        return _conversation(sentiment.SYSTEM_PROMPT, [(example.user_content, example.answer) for example in drawn])
    if task == "why":
        deeds = why.deeds(rng, "train")
        first, *rest = rng.sample(deeds, len(deeds))
        story_and_question = why.as_example(rng, deeds, first).user_content
        turns = [(story_and_question, first.answer), *((deed.question, deed.answer) for deed in rest)]
        return _conversation(None, turns)
    if task == "two_hop":
        return _conversation(None, two_hop_turns(rng))
    return _conversation(boolq.SYSTEM_PROMPT, boolq.training_turns(rng))


def _conversation(system: str | None, turns: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
    """The messages of a system prompt, if any, and of turns (user content, answer)."""
    messages = [] if system is None else [Message("system", system)]
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    return tuple(messages)
