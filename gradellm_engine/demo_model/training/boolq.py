"""The boolq task: short passages that affirm or deny something of several subjects, and a yes/no question about one.

1. Draw two to four facts about different subjects, with different values as far as the split has them. Half of them are
   denials ("the soup isn't hot"); of three facts, one or two.
2. Ask whether one subject has the value of its fact: the answer is `true` if the fact affirms it, else `false`.

The answer follows neither from the question, nor from the value, nor from the number of denials: the model must find
the sentence about the subject in question, by its subject or its value, and read it.
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
from gradellm_engine.demo_model.training.word_lists import NAMES, words

SYSTEM_PROMPT = (
    "You are a factual question answering system. Determine if the given passage supports the question being true. "
    "Respond ONLY with the single word 'true' or 'false' in lowercase, without any punctuation or additional text."
)
LABELS = ("true", "false")
# Between subject and value: an affirmation, and the denial that replaces it in a counterfactual.
VERBS = (("is", "isn't"), ("was", "wasn't"), ("is really", "is never"), ("was clearly", "was hardly"))
PASSAGE_PREFIX = "Passage: "
QUESTION_PREFIX = "Question: "


@dataclass(frozen=True)
class _Domain:
    """Subjects that can have any of the values; `article` precedes each subject."""

    name: str
    article: str
    subjects: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One statement of a passage: it affirms or denies `value` of `subject`, with one of VERBS."""

    domain: _Domain
    subject: str
    value: str
    affirmed: bool
    verbs: tuple[str, str]

    @property
    def answer(self) -> str:
        """`true` if the subject has the value, else `false`."""
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
    """`num_facts` facts about different subjects of one domain, every (subject, value) pair in `split`."""
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
    """A passage with a question about one of its facts."""
    facts = passage(rng, split, rng.choice((2, 3, 3, 4)))
    return as_example(facts, rng.choice(facts))


def as_example(facts: tuple[Fact, ...], target: Fact) -> Example:
    """The text of passage and question; only the target fact and the question's words are evidence."""
    pieces = [
        Piece(PASSAGE_PREFIX),
        *join(_statement(fact, is_evidence=fact == target) for fact in facts),
        Piece(f"\n\n{QUESTION_PREFIX}"),
        *_question(target),
    ]
    content, evidence = render(pieces)
    messages = (Message("system", SYSTEM_PROMPT), Message("user", content))
    return Example("boolq", target.domain.name, messages, target.answer, evidence)


def training_turns(rng: Random) -> list[tuple[str, str]]:
    """Turns (user content, answer) with questions about half of the facts of a training passage.

    The passage precedes the first question only. Each fact is affirmed or denied independently, and half of them have
    no question: if all had one, the last answers would follow from the number of denials so far, and the model would
    learn to count denials instead of reading.
    """
    facts = _random_facts(rng, rng.choice((2, 3, 4)))
    turns = [(QUESTION_PREFIX + render(_question(f))[0], f.answer) for f in rng.sample(facts, (len(facts) + 1) // 2)]
    return [(f"{PASSAGE_PREFIX}{_passage_text(facts)}\n\n{turns[0][0]}", turns[0][1]), *turns[1:]]


def verdicts(rng: Random) -> str:
    """A training passage, followed by a list that tells of half of its values whether they are affirmed.

    For example "hot true ready false". It has no chat template and two words a question: the answers of ten
    conversations in the space of one, each right after the word to look up.
    """
    facts = _random_facts(rng, rng.randint(4, 8))
    listed = " ".join(f"{fact.value} {fact.answer}" for fact in rng.sample(facts, (len(facts) + 1) // 2))
    return f"{PASSAGE_PREFIX}{_passage_text(facts)}\n\nVerdicts: {listed}"


def _random_facts(rng: Random, num_facts: int) -> list[Fact]:
    """Facts of a training passage, each affirmed with probability one half."""
    return [replace(fact, affirmed=rng.random() < 0.5) for fact in passage(rng, "train", num_facts)]


def _passage_text(facts: Sequence[Fact]) -> str:
    return render(join(_statement(fact, is_evidence=False) for fact in facts))[0]


def _statement(fact: Fact, *, is_evidence: bool) -> list[Piece]:
    """The sentence of a fact; as evidence, with the opposite verb as its verb's replacement."""
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
    """The question of a fact, with subject and value marked as evidence."""
    fields = {
        "article": Piece(fact.domain.article),
        "subject": Piece(fact.subject, "asked_subject"),
        "value": Piece(fact.value, "asked_value"),
    }
    return sentence(fill("is {article}{subject} {value}", fields), end="?")
