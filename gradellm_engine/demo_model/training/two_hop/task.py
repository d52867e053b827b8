"""The two-hop task: the end of an answer follows from a name that the answer found, "Mia trusts Ben who likes red."

1. Draw four people who trust a friend each, and the colour that each friend likes; every pair (person, friend) and
   (friend, colour) is of the split. Write the eight facts in a random order.
2. Ask about one person. The answer repeats the person's fact, and then what the friend likes.

The friend follows from the person's fact. The colour follows from the friend's fact, and the friend stands in the
answer by then: the colour depends on the first fact through words that the model wrote itself. Position and order of
the facts tell nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

from gradellm_engine.demo_model.training.example import (
    Example,
    Message,
    Piece,
    Span,
    Split,
    in_split,
    join,
    render,
)
from gradellm_engine.demo_model.training.word_lists import BOYS, COLOURS, GIRLS

NUM_CHAINS = 4
_PEOPLE, _FRIENDS = GIRLS[:12], BOYS[:12]  # few, so that a small model soon learns to copy each
FIRST_HOP, SECOND_HOP = "trusts", "likes"
"""The verbs, which are the kinds of the facts' spans."""


@dataclass(frozen=True)
class Chain:
    """Two facts: a person trusts a friend, and the friend likes a colour."""

    person: str
    friend: str
    colour: str

    @property
    def question(self) -> str:
        """The question whose answer takes both facts. Between quotes a name is another token than after a space."""
        return f'Question: What about "{self.person}"?'

    @property
    def facts(self) -> tuple[str, str]:
        """The first hop and the second."""
        return f"{self.person} {FIRST_HOP} {self.friend}.", f"{self.friend} {SECOND_HOP} {self.colour}."

    @property
    def answer(self) -> str:
        """Both facts, after a word, so that their names are tokens of the facts."""
        return f"So {self.person} {FIRST_HOP} {self.friend} who {SECOND_HOP} {self.colour}."


@dataclass(frozen=True)
class TwoHopExample(Example):
    """A question with the spans of all facts; its evidence are the two that the answer follows from."""

    facts: tuple[Span, ...] = ()
    colour: str = ""
    """The answer's word that takes both hops."""


def chains(rng: Random, split: Split) -> tuple[Chain, ...]:
    """NUM_CHAINS chains of different people, friends and colours, every pair in `split`."""
    while True:
        drawn: list[Chain] = []
        for person in rng.sample(_PEOPLE, NUM_CHAINS):
            friends = [name for name in _partners(split, person, _FRIENDS) if name not in {c.friend for c in drawn}]
            friend = rng.choice(friends or _FRIENDS)
            taken = {chain.colour for chain in drawn}
            colours = [colour for colour in _partners(split, friend, COLOURS) if colour not in taken]
            if friends and colours:
                drawn.append(Chain(person, friend, rng.choice(colours)))
        if len(drawn) == NUM_CHAINS:
            return tuple(drawn)


@cache
def _partners(split: Split, left: str, rights: tuple[str, ...]) -> tuple[str, ...]:
    """The words that a pair of `split` may join to `left`."""
    return tuple(right for right in rights if in_split(split, left, right))


def two_hop_example(rng: Random, split: Split) -> TwoHopExample:
    """Eight facts with a question about one chain."""
    drawn = chains(rng, split)
    return as_example(rng, drawn, rng.choice(drawn))


def as_example(rng: Random, drawn: tuple[Chain, ...], target: Chain) -> TwoHopExample:
    """The facts of all chains in a random order, and the question of `target`."""
    kinds = (FIRST_HOP, SECOND_HOP)
    pieces = [Piece(fact, kind) for chain in drawn for fact, kind in zip(chain.facts, kinds, strict=True)]
    rng.shuffle(pieces)
    content, facts = render([Piece("Facts: "), *join([piece] for piece in pieces), Piece(f"\n\n{target.question}")])
    evidence = tuple(fact for fact in facts if content[fact.start : fact.end] in target.facts)
    return TwoHopExample(
        "two_hop", "", (Message("user", content),), target.answer, evidence, facts=facts, colour=target.colour
    )


def training_turns(rng: Random) -> list[tuple[str, str]]:
    """Turns (user content, answer) about three of four chains; the facts precede the first question only."""
    drawn = chains(rng, "train")
    first, *rest = rng.sample(drawn, NUM_CHAINS - 1)
    asked = as_example(rng, drawn, first)
    return [(asked.user_content, asked.answer), *((chain.question, chain.answer) for chain in rest)]
