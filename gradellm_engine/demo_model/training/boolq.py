"""Short passages that affirm or deny something of several subjects, and a yes/no question about one of them.

1. Draw two to four facts about different subjects, with different values as far as the split has them. Half of them are
   denials ("the soup isn't hot"); of three facts, one or two.
2. Ask whether one subject has the value that its fact speaks of: `true` if the fact affirms it, else `false`.

Neither the question, nor the value, nor that or how often the passage denies something tells the answer: the sentence
about the asked subject must be found, by its subject or its value, and read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from gradellm_engine.demo_model.training.example import (
    Example,
    Message,
    Piece,
    Split,
    fill,
    in_split,
    join,
    render,
    sentence,
)
from gradellm_engine.demo_model.training.names import NAMES, words

SYSTEM_PROMPT = (
    "You are a factual question answering system. Determine if the given passage supports the question being true. "
    "Respond ONLY with the single word 'true' or 'false' in lowercase, without any punctuation or additional text."
)
LABELS = ("true", "false")
# What stands between subject and value: an affirmation and the denial that it becomes in a counterfactual.
VERBS = (("is", "isn't"), ("was", "wasn't"), ("is really", "is never"), ("was clearly", "was hardly"))
PASSAGE_PREFIX = "Passage: "
QUESTION_PREFIX = "Question: "


@dataclass(frozen=True)
class _Domain:
    """Subjects that can have any of the values; `article` stands before each subject."""

    name: str
    article: str
    subjects: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One statement of a passage: of `subject`, `value` is affirmed or denied with one of VERBS."""

    domain: _Domain
    subject: str
    value: str
    affirmed: bool
    verbs: tuple[str, str]

    @property
    def answer(self) -> str:
        """`true` or `false`, to the question whether the subject has the value."""
        return LABELS[0 if self.affirmed else 1]


_DOMAINS = (
    _Domain("people", "", NAMES, words("hungry tired happy sad busy angry young rich ill clever shy late")),
    _Domain(
        "animal",
        "the ",
        words("dog cat horse parrot goat duck mouse rabbit fox bear cow pig"),
        words("hungry tired happy wild young asleep thirsty old loud small fast tame"),
    ),
    _Domain(
        "object",
        "the ",
        words("box chair lamp clock table bag cup vase mirror drum door boat"),
        words("old heavy clean new broken empty wet dark small large cheap strong"),
    ),
    _Domain(
        "food",
        "the ",
        words("soup rice cheese honey fish bread pasta cake salad milk tea pie"),
        words("hot cold fresh sweet cheap soft warm good salty ready dry sour"),
    ),
)


def passage(rng: Random, split: Split, num_facts: int) -> tuple[Fact, ...]:
    """So many facts about different subjects of one domain, every (subject, value) pair in `split`."""
    domain = rng.choice(_DOMAINS)
    denials = num_facts // 2 + (num_facts % 2 and rng.randrange(2))
    affirmed = rng.sample([False] * denials + [True] * (num_facts - denials), num_facts)
    facts: list[Fact] = []
    choices = {s: [value for value in domain.values if in_split(split, s, value)] for s in domain.subjects}
    for subject in rng.sample([s for s, values in choices.items() if values], num_facts):
        values = choices[subject]
        value = rng.choice([v for v in values if v not in {f.value for f in facts}] or values)
        facts.append(Fact(domain, subject, value, affirmed[len(facts)], rng.choice(VERBS)))
    return tuple(facts)


def boolq_example(rng: Random, split: Split) -> Example:
    """Draw one passage with one question."""
    facts = passage(rng, split, rng.choice((2, 3, 3, 4)))
    return as_example(facts, rng.choice(facts))


def as_example(facts: tuple[Fact, ...], asked: Fact) -> Example:
    """Write passage and question out; only the asked fact and the question's words are evidence."""
    pieces = [
        Piece(PASSAGE_PREFIX),
        *join(_statement(fact, is_evidence=fact == asked) for fact in facts),
        Piece(f"\n\n{QUESTION_PREFIX}"),
        *_question(asked),
    ]
    content, evidence = render(pieces)
    messages = (Message("system", SYSTEM_PROMPT), Message("user", content))
    return Example("boolq", asked.domain.name, messages, asked.answer, evidence)


def training_turns(rng: Random) -> list[tuple[str, str]]:
    """Ask about half of the facts of a training passage: (user content, answer).

    The passage stands before the first question alone. Each fact is affirmed or denied by a throw of its own, and half
    of them are not asked about: if all were, the denials not yet accounted for would tell the last answers, and a model
    learns to count them rather than to read.
    """
    facts = _thrown(rng, rng.choice((2, 3, 4)))
    asked = [(QUESTION_PREFIX + render(_question(f))[0], f.answer) for f in rng.sample(facts, (len(facts) + 1) // 2)]
    return [(f"{PASSAGE_PREFIX}{_told(facts)}\n\n{asked[0][0]}", asked[0][1]), *asked[1:]]


def verdicts(rng: Random) -> str:
    """A training passage, and for half of its values at once whether they are affirmed: "hot true ready false".

    No chat, and two words a question: it has the answers of ten conversations in the space of one, and each directly
    behind the word by which it is looked up.
    """
    facts = _thrown(rng, rng.randint(4, 8))
    listed = " ".join(f"{fact.value} {fact.answer}" for fact in rng.sample(facts, (len(facts) + 1) // 2))
    return f"{PASSAGE_PREFIX}{_told(facts)}\n\nVerdicts: {listed}"


def _thrown(rng: Random, num_facts: int) -> list[Fact]:
    """Facts of a training passage, each affirmed or denied by a fair throw of its own."""
    return [replace(fact, affirmed=rng.random() < 0.5) for fact in passage(rng, "train", num_facts)]


def _told(facts: Sequence[Fact]) -> str:
    return render(join(_statement(fact, is_evidence=False) for fact in facts))[0]


def _statement(fact: Fact, *, is_evidence: bool) -> list[Piece]:
    """Write a fact; as evidence, with the verb of the opposite fact as its verb's replacement."""
    verb, opposite = fact.verbs if fact.affirmed else fact.verbs[::-1]
    fields = {"article": fact.domain.article, "subject": fact.subject, "verb": verb, "value": fact.value}
    if not is_evidence:
        return sentence(fill("{article}{subject} {verb} {value}", fields))
    marked = {
        "article": Piece(fact.domain.article),
        "subject": Piece(fact.subject, "subject"),
        "verb": Piece(verb, "verb", opposite),
        "value": Piece(fact.value, "value"),
    }
    return sentence(fill("{article}{subject} {verb} {value}", marked))


def _question(fact: Fact) -> list[Piece]:
    """Write the question, with what it asks about and what it asks for marked as evidence."""
    fields = {
        "article": Piece(fact.domain.article),
        "subject": Piece(fact.subject, "asked_subject"),
        "value": Piece(fact.value, "asked_value"),
    }
    return sentence(fill("is {article}{subject} {value}", fields), end="?")
