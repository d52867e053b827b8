"""Generated chats whose answer stands in one sentence of the user's message.

Each chat states some facts of one kind, some of them beside sentences that have nothing to do with the question, and
asks for one of them. The answer is one word of one sentence, the source; other sentences have words of the same kind.
There are two generators, with kinds of facts and sentences of their own, so that what is tuned on one can be measured
on the other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True)
class Kind:
    """One kind of fact.

    Attributes:
        fact: a sentence with {subject} and {answer}.
        question: a question with {subject}.
        subjects: of which each has one answer.
        answers: single words.
    """

    fact: str
    question: str
    subjects: Sequence[str]
    answers: Sequence[str]


@dataclass(frozen=True)
class RetrievalChat:
    """A chat of one user message.

    Attributes:
        text: the message.
        sentences: spans of the sentences of `text` that state facts, in code points.
        source: index of the sentence that has the answer; None where no sentence answers the question.
        word: the answer's span in `text`; None as above.
        answer: the answer, a word.
        candidates: the answers of all facts.
    """

    text: str
    sentences: tuple[Span, ...]
    source: int | None
    word: Span | None
    answer: str
    candidates: tuple[str, ...]


def right_answer(text: str, answer: str, candidates: Collection[str]) -> Span | None:
    """Where a text names the right answer, whatever the case; None where it names another candidate first, or none."""
    of_candidates = {candidate.lower() for candidate in candidates}
    named = next((word for word in re.finditer(r"[^\W_]+", text) if word[0].lower() in of_candidates), None)
    return named.span() if named is not None and named[0].lower() == answer.lower() else None


COLOURS = ("red", "green", "blue", "yellow", "white", "black", "brown", "orange", "purple", "pink")
CITIES = ("Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Prague", "Dublin", "Oslo", "Athens")
ANIMALS = ("cat", "dog", "horse", "rabbit", "parrot", "goat", "snake", "duck", "turtle", "mouse")
FRUITS = ("apples", "pears", "grapes", "cherries", "plums", "lemons", "melons", "peaches", "oranges", "bananas")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo")
ROOMS = ("kitchen", "cellar", "garden", "attic", "garage", "office", "library", "bathroom", "bedroom", "hall")

GENERATORS: dict[str, tuple[Kind, ...]] = {
    "boxes": (
        Kind("{subject}'s box is {answer}.", "What colour is {subject}'s box?", NAMES, COLOURS),
        Kind("{subject} lives in {answer}.", "In which city does {subject} live?", NAMES, CITIES),
        Kind("{subject} has a {answer}.", "Which animal does {subject} have?", NAMES, ANIMALS),
    ),
    "notes": (
        Kind("In the morning {subject} bought some {answer}.", "What did {subject} buy?", NAMES, FRUITS),
        Kind("The key of {subject} lies in the {answer}.", "In which room is the key of {subject}?", NAMES, ROOMS),
        Kind("For the trip {subject} wore a {answer} coat.", "What colour was the coat of {subject}?", NAMES, COLOURS),
    ),
}
DISTRACTORS = (
    "The weather was mild for the season.", "A train leaves every hour from the old station.",
    "Nobody remembered who had closed the window.", "The meeting began with a short report on the budget.",
    "Some birds had built a nest above the door.", "The road to the north was closed for repairs.",
    "It had rained during the night, and the streets were wet.", "The newspaper arrived late again.",
    "A long letter lay unopened on the table.", "The museum is free on the first Sunday of the month.",
    "Three of the lamps in the corridor were broken.", "The bakery at the corner opens at six.",
    "The river was higher than usual.", "Somebody had left an umbrella in the shop.",
    "The concert was sold out within a day.", "The clock in the tower has been slow for years.",
)  # fmt: skip
INSTRUCTION = "Answer with one word."


def retrieval_chat(
    generator: str, seed: int, *, num_facts: int, num_distractors: int = 0, is_answerable: bool = True
) -> RetrievalChat:
    """One chat, a pure function of its arguments.

    Args:
        generator: a name of GENERATORS.
        seed: of all choices.
        num_facts: sentences that state a fact of the kind that is asked for.
        num_distractors: sentences about other things, at random places between them.
        is_answerable: whether the question is about a subject of one of the facts.
    """
    draw = random.Random(f"{generator} {seed} {num_facts} {num_distractors} {is_answerable}")  # noqa: S311
    kind = draw.choice(GENERATORS[generator])
    *subjects, absent = draw.sample(kind.subjects, num_facts + 1)
    answers = draw.sample(kind.answers, num_facts)
    asked = draw.randrange(num_facts)
    facts = [kind.fact.format(subject=s, answer=a) for s, a in zip(subjects, answers, strict=True)]
    others = [draw.choice(DISTRACTORS) for _ in range(num_distractors)]
    is_fact = [True] * num_facts + [False] * num_distractors
    draw.shuffle(is_fact)
    text, spans = "", list[Span]()
    for fact in is_fact:
        sentence = facts[len(spans)] if fact else others.pop()
        text += " " if text else ""
        if fact:
            spans.append((len(text), len(text) + len(sentence)))
        text += sentence
    question = kind.question.format(subject=subjects[asked] if is_answerable else absent)
    text = f"{text}\n\n{question} {INSTRUCTION}"
    if not is_answerable:
        return RetrievalChat(text, tuple(spans), None, None, "", tuple(answers))
    first, end = spans[asked]
    word = text.rindex(answers[asked], first, end)
    return RetrievalChat(text, tuple(spans), asked, (word, word + len(answers[asked])), answers[asked], tuple(answers))
