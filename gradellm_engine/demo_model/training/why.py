"""The why task: short stories of one or two people that end in "Why did ...?"; the answer restates the cause.

A story pairs an action with a cause of its theme. Most stories have a second person with another action and cause, so
that the answer has to be looked up by the person and the action of the question. The answer repeats the cause word for
word.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
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
from gradellm_engine.demo_model.training.word_lists import NAMES, TOWNS, possessive, pronoun


@dataclass(frozen=True)
class _Theme:
    """Actions as (past tense, base form), and causes that fit any of them; `{their}` is the person's possessive."""

    actions: tuple[tuple[str, str], ...]
    causes: tuple[str, ...]


@dataclass(frozen=True)
class Deed:
    """A person's action and its cause, both without the subject; the cause as the answer repeats it."""

    name: str
    action: str
    action_base: str
    cause: str

    @property
    def question(self) -> str:
        """The question for the cause."""
        return f"Why did {self.name} {self.action_base}?"

    @property
    def answer(self) -> str:
        """The cause, word for word as in the story."""
        return f"Because {pronoun(self.name)} {self.cause}."


def _combine(template: str, *choices: str) -> tuple[str, ...]:
    """A template with its `{}` slots filled in all ways; the choices of a slot are comma-separated."""
    return tuple(template.format(*choice) for choice in product(*(options.split(", ") for options in choices)))


def _actions(text: str) -> tuple[tuple[str, str], ...]:
    """Comma-separated actions, "past/base rest", as pairs (past rest, base rest)."""
    verbs_and_rests = [action.partition(" ") for action in text.split(", ")]
    forms = [(*verb.split("/"), rest) for verb, _, rest in verbs_and_rests]
    return tuple((f"{past} {rest}".strip(), f"{base} {rest}".strip()) for past, base, rest in forms)


_PEOPLE = "friend, sister, brother, mother, teacher, neighbour, grandfather, aunt"
_THEMES = (
    _Theme(
        _actions(
            "went/go to the shop, went/go to the market, went/go to the bakery, "
            "went/go to the store, went/go to the farm, went/go to the harbour"
        ),
        _combine("wanted {} {}", "fresh, sweet, cheap, warm", "bread, plums, milk, cheese, fish, honey, eggs, apples")
        + _combine("needed {} for {{their}} {}", "bread, milk, flour, apples, honey, eggs", _PEOPLE),
    ),
    _Theme(
        _actions(
            "stayed/stay at home, went/go to bed early, left/leave the party, "
            "missed/miss school, sat/sit down on the bench, called/call the doctor"
        ),
        _combine("had a {} {}", "bad, strange, terrible", "cold, cough, headache, fever")
        + _combine("had hurt {{their}} {} {}", "left, right", "knee, foot, hand, arm, shoulder")
        + _combine("felt {} after the {} {}", "tired, sick, weak", "long, cold, hard", "walk, ride, game"),
    ),
    _Theme(
        _actions(
            "looked/look under the bed, ran/run back to the park, asked/ask the neighbour, "
            "began/begin to cry, emptied/empty the bag"
        ),
        _combine(
            "had lost {{their}} {} {}",
            "red, blue, old, new, little, golden",
            "key, ring, hat, ball, watch, coat, book, glove",
        ),
    ),
    _Theme(
        _actions(
            "smiled/smile, danced/dance in the garden, sang/sing all morning, "
            "laughed/laugh, jumped/jump up and down, hugged/hug the dog"
        ),
        _combine("had won the {} {}", "big, school, first, last", "race, prize, game, match")
        + _combine("had got a {} from {{their}} {}", "letter, present, kitten, card", _PEOPLE),
    ),
    _Theme(
        _actions(
            "took/take an umbrella, closed/close the window, put/put on a coat, "
            "lit/light the fire, stopped/stop at the inn, waited/wait in the barn"
        ),
        _combine("saw {} {} in the {}", "dark, heavy, black", "clouds, smoke, rain", "north, valley, west")
        + _combine("feared the {} {}", "cold, heavy, coming, wild", "wind, storm, snow, night"),
    ),
    _Theme(
        _actions(
            "baked/bake a cake, painted/paint a card, picked/pick some flowers, "
            "wrote/write a song, cleaned/clean the house, bought/buy a present"
        ),
        _combine("wanted to {} {{their}} {} {}", "thank, surprise, cheer up", "old, kind, sad", _PEOPLE),
    ),
)

# Only the cause is evidence.
_TELLINGS = (
    "{name} {action} because {pronoun} {cause}.",
    "{name} {cause}, so {pronoun} {action}.",
    "{name} {cause}. So {pronoun} {action}.",
    "{name} {cause}. That is why {pronoun} {action}.",
    "because {pronoun} {cause}, {name} {action}.",
    "{name} {action}. The reason was that {pronoun} {cause}.",
)
_OPENINGS = (
    "It was a cold morning in {town}.",
    "It was a sunny day in {town}.",
    "{name} lived in {town}.",
    "{name} was at home with {their} family.",
    "The birds sang in the trees.",
    "It was the first day of spring.",
)
_CLOSINGS = (
    "Later it began to rain.",
    "Then it was time for lunch.",
    "The sun was low by then.",
    "A dog barked outside.",
)


def deeds(rng: Random, split: Split) -> tuple[Deed, ...]:
    """The deeds of one or, more often, two people, with different causes; (action, cause) pairs belong to `split`."""
    count = rng.choice((1, 2, 2))
    names = rng.sample(NAMES, count)
    drawn: list[Deed] = []
    for name in names:
        while True:
            action, base, cause = rng.choice(_pairs(rng.randrange(len(_THEMES)), split))
            if all(cause != other.cause and action != other.action for other in drawn):
                break
        drawn.append(Deed(name, action, base, cause.format(their=possessive(name))))
    return tuple(drawn)


def why_example(rng: Random, split: Split) -> Example:
    """A story with a question about one of its people."""
    story = deeds(rng, split)
    return as_example(rng, story, rng.choice(story))


def as_example(rng: Random, story: tuple[Deed, ...], target: Deed) -> Example:
    """The text of a story, ending in the question about `target`."""
    setting = {"name": story[0].name, "their": possessive(story[0].name), "town": rng.choice(TOWNS)}
    parts = [_telling(rng, deed, evidence=deed is target) for deed in story]
    if rng.random() < 0.5:
        parts.insert(0, fill(rng.choice(_OPENINGS), setting))
    if rng.random() < 0.25:
        parts.append([Piece(rng.choice(_CLOSINGS))])
    content, evidence = render(join([*parts, [Piece(target.question)]]))
    return Example("why", f"{len(story)}_people", (Message("user", content),), target.answer, evidence)


def retelling(rng: Random) -> str:
    """A training text: the causes of two to five people, and half of them repeated in another order.

    It has no chat template and no actions: a cause is looked up by its person and copied, as in an answer.
    """
    names = rng.sample(NAMES, rng.randint(2, 5))
    causes = [rng.choice(rng.choice(_THEMES).causes) for _ in names]
    sentences = [f"{n} {cause.format(their=possessive(n))}." for n, cause in zip(names, causes, strict=True)]
    repeated = rng.sample(sentences, (len(sentences) + 1) // 2)
    return f"{' '.join(sentences)}\n\nAgain: {' '.join(repeated)}"


def _telling(rng: Random, deed: Deed, evidence: bool) -> list[Piece]:
    cause = Piece(deed.cause, "cause" if evidence else "")
    template = rng.choice(_TELLINGS)
    fields: dict[str, str | Piece | list[Piece]] = {
        "name": deed.name,
        "pronoun": pronoun(deed.name),
        "action": deed.action,
    }
    return sentence(fill(template, {**fields, "cause": cause}), end="")


@cache
def _pairs(theme: int, split: Split) -> tuple[tuple[str, str, str], ...]:
    """A theme's triples (action, its base form, cause) whose pair (action, cause) belongs to the split."""
    pairs = product(_THEMES[theme].actions, _THEMES[theme].causes)
    return tuple((action, base, cause) for (action, base), cause in pairs if in_split(split, action, cause))
