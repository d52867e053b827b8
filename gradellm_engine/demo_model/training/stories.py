"""Plain stories without a chat template: they teach the model to continue a raw prompt such as "Once upon a time"."""

from random import Random

from gradellm_engine.demo_model.training.word_lists import COLOURS, NAMES, OBJECTS, TOWNS, possessive, pronoun, words

_ANIMALS = words("fox bear mouse owl rabbit duck cat dog horse goat")
_TRAITS = words("little brave shy clever lazy kind hungry")
_OPENINGS = (
    "Once upon a time, there was a {trait} {animal} named {name}.",
    "Once upon a time, a {trait} {animal} lived near {town}. Everybody called {them} {name}.",
    "Once upon a time, in {town}, there lived a {trait} {animal}. The name of the {animal} was {name}.",
)
_TROUBLES = (
    "One day, {name} found a {colour} {thing} in the forest.",
    "One morning, {name} lost {their} {colour} {thing}.",
    "One evening, {name} saw a {colour} {thing} by the river.",
)
_MIDDLES = (
    "{pronoun} showed it to {their} friend {friend}, the {other}.",
    "{pronoun} asked {friend}, the {other}, for help.",
    "{friend}, the {other}, came by and asked what it was.",
)
_TURNS = (
    '"This {thing} is mine," said {friend}, "but we can share it."',
    '"Let us look at the {thing} together," said {friend}.',
    '"I know who made the {thing}," said {friend}. "Come with me."',
)
_ENDINGS = (
    "From that day on, {name} and {friend} were good friends.",
    "They took the {colour} {thing} home to {town} and were happy.",
    "In the end, {name} gave the {thing} to {friend} and went to sleep.",
)


def story(rng: Random) -> str:
    """A story of five or six sentences."""
    name, friend = rng.sample(NAMES, 2)
    animal, other = rng.sample(_ANIMALS, 2)
    fields = {
        "name": name,
        "friend": friend,
        "animal": animal,
        "other": other,
        "trait": rng.choice(_TRAITS),
        "town": rng.choice(TOWNS),
        "colour": rng.choice(COLOURS),
        "thing": rng.choice(OBJECTS),
        "pronoun": pronoun(name).capitalize(),
        "them": "her" if pronoun(name) == "she" else "him",
        "their": possessive(name),
    }
    return " ".join(rng.choice(part).format_map(fields) for part in (_OPENINGS, _TROUBLES, _MIDDLES, _TURNS, _ENDINGS))
