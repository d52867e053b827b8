"""The sentiment task: short reviews, Positive or Negative, in four constructions.

1. Draw the label. Everything else is independent of it, except the sign of the deciding polarity words.
2. A clause is a template, a noun and a polarity word; a negator in the template reverses the word's sign.
3. plain, negation: one opinion (sometimes two that agree), which decides.
   contrast: aspects of the thing in a concession, and a verdict on the whole after a marker such as "overall"; the
   verdict decides. distractor: other people's opinion of the thing, or an opinion of something else; the reviewer's
   opinion of the thing decides.
4. The sign of every other clause is a fair coin, and order, connectives and neutral sentences are random: none of them
   correlates with the label. (So a concession may agree with the verdict that it is contrasted with.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from gradellm_engine.demo_model.training.example import (
    Example,
    Message,
    Piece,
    Split,
    fill,
    in_split,
    join,
    plain,
    render,
    sentence,
)
from gradellm_engine.demo_model.training.word_lists import words

SYSTEM_PROMPT = (
    "You are a helpful sentiment classifier. Please help to do the sentiment classification of the given text "
    "and respond ONLY with the single word Positive or Negative."
)
LABELS = ("Positive", "Negative")
CONSTRUCTIONS = ("plain", "negation", "contrast", "distractor")
PREFIX = "Text: "


@dataclass(frozen=True)
class _Domain:
    things: tuple[str, ...]
    aspects: tuple[str, ...]
    facts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Form:
    """Words of one grammatical form by sign, each as (word, its base form), and the clauses that take them."""

    words: dict[bool, tuple[tuple[str, str], ...]]
    templates: tuple[str, ...]
    personal_templates: tuple[str, ...]
    negated_templates: tuple[str, ...]
    personal_negated_templates: tuple[str, ...]
    reported_templates: tuple[str, ...]


_DOMAINS = (
    _Domain(
        ("film", "movie", "comedy", "thriller", "cartoon", "documentary"),
        ("acting", "plot", "ending", "music", "dialogue"),
        (
            "I saw the {thing} on Tuesday evening",
            "the {thing} lasts two hours",
            "the {thing} is about a doctor from a small town",
            "we sat in the third row",
            "I watched the {thing} with my family",
        ),
    ),
    _Domain(
        ("book", "novel", "biography", "guide book", "story"),
        ("style", "first chapter", "cover", "hero", "ending"),
        (
            "I read the {thing} on the train",
            "the {thing} has three hundred pages",
            "the {thing} is about two sisters at sea",
            "a friend gave me the {thing} last year",
            "I did not know the writer before",
        ),
    ),
    _Domain(
        ("restaurant", "cafe", "bistro", "canteen", "pizzeria"),
        ("food", "soup", "service", "bread", "dessert"),
        (
            "we had a table by the window",
            "the {thing} is near the station",
            "we went to the {thing} on Friday",
            "we did not book a table",
            "I ordered fish and my wife had rice",
        ),
    ),
    _Domain(
        ("hotel", "inn", "hostel", "guest house", "campsite"),
        ("room", "bed", "breakfast", "view", "pool"),
        (
            "we stayed at the {thing} for three nights",
            "the {thing} is close to the beach",
            "we came to the {thing} in June",
            "our room was on the second floor",
            "we never used the car park",
        ),
    ),
    _Domain(
        ("phone", "tablet", "laptop", "camera", "radio"),
        ("screen", "battery", "sound", "keyboard", "design"),
        (
            "I bought the {thing} in March",
            "the {thing} came in a small box",
            "I use the {thing} at work",
            "the {thing} has four buttons",
            "I have not tried the blue one",
        ),
    ),
    _Domain(
        ("shop", "bakery", "bookshop", "market", "supermarket"),
        ("service", "choice", "layout", "delivery", "window display"),
        (
            "the {thing} opens at nine",
            "we went to the {thing} on Monday",
            "the {thing} is on the main street",
            "I was there for twenty minutes",
            "I did not need a bag",
        ),
    ),
    _Domain(
        ("concert", "play", "musical", "opera", "circus"),
        ("singing", "stage", "lighting", "costume", "orchestra"),
        (
            "we saw the {thing} in the old theatre",
            "the {thing} began at eight",
            "I went to the {thing} with two friends",
            "there was one break",
            "we sat near the door",
        ),
    ),
    _Domain(
        ("tour", "cruise", "boat trip", "train ride", "museum"),
        ("guide", "route", "lunch", "driver", "audio guide"),
        (
            "the {thing} took four hours",
            "we booked the {thing} in May",
            "there were ten of us",
            "the {thing} starts at the harbour",
            "we did not take the bus",
        ),
    ),
)

_POSITIVE_ADJECTIVES = words(
    "good great wonderful brilliant lovely excellent superb charming delightful fantastic enjoyable impressive "
    "pleasant perfect amazing splendid terrific marvellous beautiful interesting fun exciting satisfying outstanding"
)
_NEGATIVE_ADJECTIVES = words(
    "bad awful terrible dull poor boring horrible dreadful disappointing weak dire sloppy ugly tedious unpleasant "
    "annoying clumsy mediocre lousy bland dismal shabby useless frustrating"
)
_ADJECTIVES = _Form(
    {
        True: tuple((word, word) for word in _POSITIVE_ADJECTIVES),
        False: tuple((word, word) for word in _NEGATIVE_ADJECTIVES),
    },
    templates=(
        "{subject} was {word}",
        "{subject} was really {word}",
        "{subject} was quite {word}",
        "{subject} turned out {word}",
        "{subject} was {word} in every way",
        "{subject} was a truly {word} one",
        "what a truly {word} thing {subject} was",
    ),
    personal_templates=(
        "I found {subject} {word}",
        "I thought {subject} was {word}",
        "{subject} seemed {word} to me",
        "to me {subject} was {word}",
        "I would call {subject} {word}",
    ),
    negated_templates=(
        "{subject} was [not] {word}",
        "{subject} [wasn't] {word}",
        "{subject} was [never] {word}",
        "{subject} was [hardly] {word}",
        "{subject} was [far from] {word}",
        "{subject} was [anything but] {word}",
        "{subject} was [not at all] {word}",
        "{subject} was [by no means] {word}",
        "{subject} did [not] turn out {word}",
    ),
    personal_negated_templates=(
        "I did [not] find {subject} {word}",
        "I [never] found {subject} {word}",
        "I would [not] call {subject} {word}",
        "{subject} did [not] seem {word} to me",
        "to me {subject} was [not] {word}",
    ),
    reported_templates=(
        "{person} found {subject} {word}",
        "{person} called {subject} {word}",
        "{person} said that {subject} was {word}",
        "{person} did not find {subject} {word}",
        "{person} said that {subject} was not {word}",
    ),
)
_IDIOMS = _Form(
    {
        True: tuple(
            (w, w)
            for w in ("worth the money", "worth a visit", "worth the time", "worth every penny", "a real pleasure")
        ),
        False: tuple((w, w) for w in ("a waste of money", "a waste of time", "a let-down", "a mess", "a real pain")),
    },
    templates=("{subject} was {word}", "{subject} was really {word}", "{subject} turned out to be {word}"),
    personal_templates=("I found {subject} {word}", "to me {subject} was {word}", "I thought {subject} was {word}"),
    negated_templates=(
        "{subject} was [not] {word}",
        "{subject} [wasn't] {word}",
        "{subject} was [hardly] {word}",
        "{subject} was [never] {word}",
    ),
    personal_negated_templates=(
        "I did [not] find {subject} {word}",
        "to me {subject} was [not] {word}",
        "I would [not] call {subject} {word}",
    ),
    reported_templates=(
        "{person} found {subject} {word}",
        "{person} said that {subject} was {word}",
        "{person} did not find {subject} {word}",
    ),
)
_VERBS = _Form(
    {
        True: (("loved", "love"), ("enjoyed", "enjoy"), ("liked", "like"), ("adored", "adore"), ("admired", "admire")),
        False: (
            ("hated", "hate"),
            ("disliked", "dislike"),
            ("regretted", "regret"),
            ("loathed", "loathe"),
            ("despised", "despise"),
        ),
    },
    templates=("I {word} {subject}", "I really {word} {subject}", "we {word} {subject}"),
    personal_templates=("I {word} {subject}", "I really {word} {subject}", "I simply {word} {subject}"),
    negated_templates=(
        "I did [not] {base} {subject}",
        "I [didn't] {base} {subject}",
        "I [never] {word} {subject}",
        "I [hardly] {word} {subject}",
        "we did [not] {base} {subject}",
    ),
    personal_negated_templates=(
        "I did [not] {base} {subject}",
        "I [didn't] {base} {subject}",
        "I [never] {word} {subject}",
        "I [cannot] say that I {word} {subject}",
    ),
    reported_templates=(
        "{person} {word} {subject}",
        "{person} really {word} {subject}",
        "{person} did not {base} {subject}",
    ),
)

_FORMS = {_ADJECTIVES: 6, _IDIOMS: 1, _VERBS: 3}  # with the weights that they are drawn with

POLARITY = {  # every form of every polarity word and idiom of the corpus, and whether it is positive
    form_of_word: positive
    for form in _FORMS
    for positive, entries in form.words.items()
    for entry in entries
    for form_of_word in entry
}

_VERDICT_MARKERS = ("overall", "all in all", "in the end", "on the whole", "taken together")
_CONTRASTS = (
    "although {concession}, {marker} {verdict}",
    "even though {concession}, {marker} {verdict}",
    "while {concession}, {marker} {verdict}",
    "{concession}, but {marker} {verdict}",
    "{concession}; {marker}, {verdict}",
    "{marker}, {verdict}, although {concession}",
    "{marker} {verdict}, even if {concession}",
)
_OTHER_PEOPLE = (
    "my brother",
    "my sister",
    "my friend",
    "my neighbour",
    "the critic",
    "my father",
    "everyone else",
    "the man next to me",
    "my teacher",
)
_REPORTS = (
    "{report}, {opinion}",
    "{report}, but {opinion}",
    "{report}, yet {opinion}",
    "{opinion}, although {report}",
    "{opinion}, while {report}",
    "{opinion}, but {report}",
)
_OFF_TOPIC = ("the weather", "the traffic", "my job", "the bus ride", "my headache", "the news")
_OFF_TOPIC_TAILS = ("that day", "that week", "at the time", "on the way home")


def sentiment_example(rng: Random, split: Split, constructions: Sequence[str] = CONSTRUCTIONS) -> Example:
    """A review; every (noun, polarity word) pair in it, deciding or not, belongs to `split`."""
    positive = rng.random() < 0.5
    construction = rng.choice(constructions)
    domain = rng.choice(_DOMAINS)
    thing = rng.choice(domain.things)
    writer = _Writer(rng, split, domain, thing, positive)
    core: list[Piece] = {
        "plain": writer.plain,
        "negation": writer.negation,
        "contrast": writer.contrast,
        "distractor": writer.distractor,
    }[construction]()
    text, evidence = render(writer.with_facts(core), offset=len(PREFIX))
    messages = (Message("system", SYSTEM_PROMPT), Message("user", PREFIX + text))
    return Example("sentiment", construction, messages, LABELS[0 if positive else 1], evidence)


@dataclass(frozen=True)
class _Writer:
    """Writes the parts of one review of `thing`, whose verdict is `positive`."""

    rng: Random
    split: Split
    domain: _Domain
    thing: str
    positive: bool

    def plain(self) -> list[Piece]:
        return self._agreeing(negated=False)

    def negation(self) -> list[Piece]:
        return self._agreeing(negated=True)

    def contrast(self) -> list[Piece]:
        verdict = self._opinion(
            self.thing, self.rng.choice(("it", f"the {self.thing}")), negated=self.rng.random() < 0.3
        )
        aspects = self.rng.sample(self.domain.aspects, 2)
        signs = [self.rng.random() < 0.5]
        if self.rng.random() < 0.5:
            signs.append(not signs[0])
        concession = join([self._aside(aspect, sign) for aspect, sign in zip(aspects, signs, strict=False)], " and ")
        marker = self.rng.choice(_VERDICT_MARKERS)
        if self.rng.random() < 0.25:
            return join([sentence(concession), sentence([Piece(f"{marker}, "), *verdict])])
        return sentence(
            fill(self.rng.choice(_CONTRASTS), {"marker": marker, "concession": concession, "verdict": verdict})
        )

    def distractor(self) -> list[Piece]:
        negated = self.rng.random() < 0.3
        if self.rng.random() < 0.35:
            opinion = self._opinion(self.thing, f"the {self.thing}", negated)
            noun = self.rng.choice(_OFF_TOPIC)
            word, _ = self._word(_ADJECTIVES, noun, self.rng.random() < 0.5)
            aside = [Piece(f"{noun} was {word} {self.rng.choice(_OFF_TOPIC_TAILS)}")]
            return join(self._shuffled([sentence(aside), sentence(opinion)]))
        template = self.rng.choice(_REPORTS)
        as_sentences = self.rng.random() < 0.3
        named, again = f"the {self.thing}", "it"
        opinion_first = template.startswith("{opinion}")
        report = self._report(again if opinion_first else named)
        opinion = self._opinion(self.thing, named if opinion_first else again, negated, is_personal=True)
        if as_sentences:
            return join([sentence(part) for part in ((opinion, report) if opinion_first else (report, opinion))])
        return sentence(fill(template, {"report": report, "opinion": opinion}))

    def with_facts(self, core: list[Piece]) -> list[Piece]:
        """The opinion with up to two neutral sentences around it."""
        facts = [
            sentence([Piece(fact.format(thing=self.thing))])
            for fact in self.rng.sample(self.domain.facts, self.rng.choice((0, 1, 1, 2)))
        ]
        before = self.rng.randint(0, len(facts))
        return join([*facts[:before], core, *facts[before:]])

    def _agreeing(self, negated: bool) -> list[Piece]:
        opinion = self._opinion(self.thing, f"the {self.thing}", negated)
        if self.rng.random() < 0.6:
            return sentence(opinion)
        aspect = self.rng.choice(self.domain.aspects)
        opinions = self._shuffled([opinion, self._opinion(aspect, f"the {aspect}", negated)])
        return (
            sentence(join(opinions, " and "))
            if self.rng.random() < 0.5
            else join([sentence(part) for part in opinions])
        )

    def _opinion(self, noun: str, subject: str, negated: bool, is_personal: bool = False) -> list[Piece]:
        """A deciding clause about `noun`, called `subject`; with `is_personal`, one in the first person."""
        form = self._form(noun)
        if is_personal:
            templates = form.personal_negated_templates if negated else form.personal_templates
        elif negated:
            templates = form.negated_templates + form.personal_negated_templates
        else:
            templates = form.templates + form.personal_templates
        sign = self.positive != negated
        word, opposite = self._word(form, noun, sign), self._word(form, noun, not sign)
        pieces = {name: Piece(word[i], "polarity", opposite[i]) for i, name in enumerate(("word", "base"))}
        return fill(self.rng.choice(templates), {"subject": subject, **pieces})

    def _aside(self, noun: str, positive: bool) -> list[Piece]:
        """A clause about an aspect, which does not decide."""
        negated = self.rng.random() < 0.2
        form = self._form(noun)
        word, base = self._word(form, noun, positive != negated)
        template = self.rng.choice(form.negated_templates if negated else form.templates)
        return plain(fill(template, {"subject": f"the {noun}", "word": word, "base": base}))

    def _report(self, subject: str) -> list[Piece]:
        """Another person's opinion of the thing; its sign is a fair coin, whatever negator the template has."""
        form = self._form(self.thing)
        word, base = self._word(form, self.thing, self.rng.random() < 0.5)
        fields = {"person": self.rng.choice(_OTHER_PEOPLE), "subject": subject, "word": word, "base": base}
        return fill(self.rng.choice(form.reported_templates), fields)

    def _form(self, noun: str) -> _Form:
        """A random form with words of both signs for this noun in the split (some have no held-out idiom or verb)."""
        forms = [form for form in _FORMS if all(_words(form, noun, sign, self.split) for sign in (True, False))]
        return self.rng.choices(forms, weights=[_FORMS[form] for form in forms])[0]

    def _word(self, form: _Form, noun: str, positive: bool) -> tuple[str, str]:
        return self.rng.choice(_words(form, noun, positive, self.split))

    def _shuffled(self, parts: list[list[Piece]]) -> list[list[Piece]]:
        return self.rng.sample(parts, len(parts))


@cache
def _words(form: _Form, noun: str, positive: bool, split: Split) -> tuple[tuple[str, str], ...]:
    """The words of a sign whose pair with `noun` belongs to the split; all forms of a word go together."""
    return tuple(word for word in form.words[positive] if in_split(split, noun, word[0]))
