"""Generated chats whose user message holds documents, for the study of citations.

A document is one fact of `retrieval` and one to three sentences about other things. All documents of a chat state facts
of the same kind, so that a wrong one looks like the right one. A question is about one document, about two of them,
about a subject that no document names, or about what a model knows without documents. Small models do not answer two
questions at once, so that the answer of those is given: a sentence for each, in words other than the document's, and a
last one that no document has. Two more kinds try the rule of missing names: the second of two questions is about a
subject that no document names, and a question stands among names that no document has.

The generators are those of `retrieval` and "synonyms", whose questions share no content word with the documents.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from gradellm_bench.study import retrieval
from gradellm_bench.study.retrieval import ANIMALS, CITIES, COLOURS, DISTRACTORS, Kind, Span

Asks = Literal["one", "two", "absent", "knowledge", "mixed", "instructed"]
MAIN_ASKS: tuple[Asks, ...] = ("one", "two", "absent", "knowledge")
NUM_DOCUMENTS = 3
KNOWLEDGE = (
    ("What is the capital of France?", "Paris"), ("What is the capital of Italy?", "Rome"),
    ("How many days does a week have?", "seven"), ("At what temperature does water boil?", "100"),
    ("Which planet is the largest?", "Jupiter"), ("Who wrote Romeo and Juliet?", "Shakespeare"),
    ("What do bees make?", "honey"), ("Which gas do plants take in?", "carbon dioxide"),
    ("How many legs does a spider have?", "eight"), ("What is the opposite of hot?", "cold"),
    ("In which country is the city of Tokyo?", "Japan"), ("Which metal is liquid at room temperature?", "mercury"),
    ("What is two plus two?", "four"), ("Which ocean is the largest?", "Pacific"),
    ("What is the frozen form of water called?", "ice"), ("Who painted the Mona Lisa?", "Leonardo"),
)  # fmt: skip
SYNONYMS = {
    "physician": "doctor", "attorney": "lawyer", "constable": "policeman", "author": "writer", "aviator": "pilot",
    "chef": "cook", "vicar": "priest", "kid": "child", "instructor": "teacher", "merchant": "trader",
    "janitor": "cleaner", "seaman": "sailor",
}  # fmt: skip
"""How questions name the subjects of facts."""
GENERATORS: dict[str, tuple[Kind, ...]] = {
    **retrieval.GENERATORS,
    "synonyms": (
        Kind("The {subject} owns a {answer}.", "Which animal belongs to the {subject}?", tuple(SYNONYMS), ANIMALS),
        Kind("The {subject} dwells in {answer}.", "In which city is the {subject}'s home?", tuple(SYNONYMS), CITIES),
        Kind(
            "The {subject} drives a {answer} van.", "What colour is the car of the {subject}?", tuple(SYNONYMS), COLOURS
        ),
    ),
}
INSTRUCTION = "Answer with a full sentence."
DRAWN_AS: dict[Asks, Asks] = {"mixed": "two", "instructed": "one"}
"""Kinds with the documents and the questions of another."""
INSTRUCTED = "My name is Peter. {question} Answer in English with a full sentence."
STATEMENTS = {
    "{subject}'s box is {answer}.": "The colour of {subject}'s box is {answer}.",
    "{subject} lives in {answer}.": "The home of {subject} is in {answer}.",
    "{subject} has a {answer}.": "The animal of {subject} is a {answer}.",
    "In the morning {subject} bought some {answer}.": "The shopping of {subject} was {answer}.",
    "The key of {subject} lies in the {answer}.": "The place of {subject}'s key is the {answer}.",
    "For the trip {subject} wore a {answer} coat.": "The coat of {subject} was {answer}.",
    "The {subject} owns a {answer}.": "The animal of the {subject} is a {answer}.",
    "The {subject} dwells in {answer}.": "The home of the {subject} is in {answer}.",
    "The {subject} drives a {answer} van.": "The car of the {subject} is {answer}.",
}
"""Sentences of a given answer, by the facts that they repeat in other words."""
CLOSINGS = ("I hope this helps you.", "Let me know if you have more questions.", "Have a nice day!")


@dataclass(frozen=True)
class Expected:
    """An answer that the model must give for its sentence to count.

    Attributes:
        word: the answer.
        document: name of the document that has it.
        fact: span of the sentence that states it, in the message, in code points.
    """

    word: str
    document: str
    fact: Span


@dataclass(frozen=True)
class DocumentChat:
    """A chat of one user message.

    Attributes:
        asks: about one document, two of them, a subject that none names, or common knowledge; "mixed": one document and
            a subject that none names; "instructed": one document, among names that none has.
        text: the message.
        documents: spans of the documents in `text` by name, in code points.
        expected: for each question that a document answers, its answer.
        candidates: the answers of all documents' facts.
        completion: a given answer; empty where the model answers.
    """

    asks: Asks
    text: str
    documents: dict[str, Span]
    expected: tuple[Expected, ...]
    candidates: tuple[str, ...]
    completion: str = ""


def document_chat(generator: str, seed: int, asks: Asks) -> DocumentChat:
    """One chat, a pure function of its arguments.

    Args:
        generator: a name of GENERATORS.
        seed: of all choices.
        asks: what the question is about.
    """
    drawn_as = DRAWN_AS.get(asks, asks)
    draw = random.Random(f"documents {generator} {seed} {drawn_as}")  # noqa: S311
    kind = draw.choice(GENERATORS[generator])
    *subjects, absent = draw.sample(kind.subjects, NUM_DOCUMENTS + 1)
    answers = draw.sample(kind.answers, NUM_DOCUMENTS)
    others = draw.sample(DISTRACTORS, 3 * NUM_DOCUMENTS)
    text, documents, facts = "", {}, []
    for number, (subject, answer) in enumerate(zip(subjects, answers, strict=True), start=1):
        fact = kind.fact.format(subject=subject, answer=answer)
        sentences = [others.pop() for _ in range(draw.randint(1, 3))]
        sentences.insert(draw.randint(0, len(sentences)), fact)
        name, document = f"Document {number}", " ".join(sentences)
        text += f"{name}: "
        documents[name] = (len(text), len(text) + len(document))
        start = len(text) + document.index(fact)
        facts.append(Expected(answer, name, (start, start + len(fact))))
        text += f"{document}\n\n"
    asked = draw.sample(range(NUM_DOCUMENTS), {"one": 1, "two": 2}.get(drawn_as, 0))
    named = [subjects[i] for i in asked] or [absent]
    if asks == "mixed":
        named[1] = next(name for name in kind.subjects if name not in subjects)
    named = [SYNONYMS.get(name, name) for name in named]
    questions = [kind.question.format(subject=name) for name in named]
    if asks == "knowledge":
        questions = [draw.choice(KNOWLEDGE)[0]]
    completion = ""
    if drawn_as == "two":
        statement = STATEMENTS[kind.fact]
        repeated = [statement.format(subject=name, answer=answers[i]) for name, i in zip(named, asked, strict=True)]
        completion = " ".join([*repeated, draw.choice(CLOSINGS)])
    request = INSTRUCTED if asks == "instructed" else f"{{question}} {INSTRUCTION}"
    text += request.format(question=" ".join(questions))
    expected = asked[:1] if asks == "mixed" else asked
    return DocumentChat(asks, text, documents, tuple(facts[i] for i in expected), tuple(answers), completion)
