"""The prompts of the paper's data sets (its table 3), which columns they are filled from, and which words answer them.

A preset is a row of the table `PRESETS`, or made from the user's own template by `custom_preset`. It is plain data:
what reads files is datasets.py.

A prompt is a chat: a system message, if the preset has one, and the user's. Models without a chat template get one text
instead: the system text, an empty line, the user's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Literal

from gradellm.errors import InvalidRequestError

__all__ = [
    "PRESETS",
    "Column",
    "Hub",
    "Level",
    "Preset",
    "Rationale",
    "RationaleUnit",
    "Rendered",
    "custom_preset",
    "first_sentences",
]

Level = Literal["token", "sequence"]
"""What is evaluated: the label word's first token, or every fifth token of an open answer."""
RationaleUnit = Literal["words", "characters"]
Column = str | tuple[str, ...]
"""A column's name, or the names of several whose texts are joined by a space."""


@dataclass(frozen=True, slots=True)
class Hub:
    """Where a public data set lies."""

    name: str
    split: str
    config: str | None = None

    def __str__(self) -> str:
        return ":".join(filter(None, ("hub", self.name, self.config, self.split)))


@dataclass(frozen=True, slots=True)
class Rationale:
    """Where the data says which parts of a text a human found decisive."""

    field: str
    """The field whose text is meant."""
    columns: tuple[str, ...] = ("rationale",)
    """The first of these that a row has is taken."""
    unit: RationaleUnit = "words"
    """What is counted: words of the text split at white space, or code points. A rationale is a list of pairs
    [start, end), and of words also of single indexes."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A filled prompt, in one of two forms: the other is None."""

    messages: tuple[tuple[str, str], ...] | None
    """(role, content), as the client's keyword of that name takes them."""
    prompt: str | None
    starts: Mapping[str, tuple[int, ...]]
    """Where each field's text begins, in code points of the last message or of the prompt."""


@dataclass(frozen=True, slots=True)
class Preset:
    """What is asked about a row of data, and how the data says it."""

    name: str
    user: str
    """The user's message, with {field} for each text of the data; a brace that is meant is doubled."""
    columns: Mapping[str, tuple[Column, ...]]
    """For each field the columns that it may be taken from; the first that a row has is."""
    system: str | None = None
    label_words: tuple[str, ...] = ()
    """The answers as the model is to write them; none for open generation."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What the data may say, in lower case, to the label word that it means."""
    label_columns: tuple[str, ...] = ()
    label_required: bool = False
    """Whether a row without a label is bad. Faithfulness needs none: it is measured on the predicted label."""
    level: Level = "sequence"
    rationale: Rationale | None = None
    sentences: Mapping[str, int] = field(default_factory=dict)
    """Columns of whose text only so many first sentences are taken."""
    hub: Hub | None = None
    """The public data set, where none is given."""

    def label(self, value: object) -> str | None:
        """Return the label word that a value of the data means, or None if it means none of them."""
        if isinstance(value, float) and value.is_integer():  # how a column of integers with gaps is often stored
            value = int(value)
        return self.labels.get(str(value).strip().lower())

    def render(self, values: Mapping[str, str], *, chat: bool = True) -> Rendered:
        """Fill the template, as messages or (`chat` False) as one text."""
        before = "" if chat or self.system is None else f"{self.system}\n\n"
        parts, length = [before], len(before)
        starts: dict[str, tuple[int, ...]] = {}
        for literal, name in _parsed(self.user):
            parts.append(literal)
            length += len(literal)
            if name is not None:
                starts[name] = (*starts.get(name, ()), length)
                parts.append(values[name])
                length += len(values[name])
        text = "".join(parts)
        if not chat:
            return Rendered(None, text, starts)
        system = [("system", self.system)] if self.system is not None else []
        return Rendered((*system, ("user", text)), None, starts)


def _parsed(template: str) -> list[tuple[str, str | None]]:
    """Split a template into literal texts, each with the field behind it."""
    return [(literal, name) for literal, name, _, _ in Formatter().parse(template)]


# --- the paper's presets ----------------------------------------------------------------------------------------------

_POSITIVE, _NEGATIVE = ("positive", "pos", "1", "true"), ("negative", "neg", "0", "false")


def _sentiment(name: str, columns: tuple[Column, ...], hub: Hub) -> Preset:
    return Preset(
        name=name,
        system=(
            "You are a helpful sentiment classifier. Please help to do the sentiment classification of the given text "
            "and respond ONLY with the single word Positive or Negative."
        ),
        user="Text: {text}",
        columns={"text": columns},
        label_words=("Positive", "Negative"),
        labels=dict.fromkeys(_POSITIVE, "Positive") | dict.fromkeys(_NEGATIVE, "Negative"),
        label_columns=("label", "sentiment"),
        level="token",
        rationale=Rationale("text"),
        hub=hub,
    )


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        # The split that has 1,000 of each label: validation has 872 sentences, and test no labels.
        _sentiment("sst2", ("sentence", "text"), Hub("stanfordnlp/sst2", "train")),
        _sentiment("imdb", ("text", "review"), Hub("stanfordnlp/imdb", "test")),
        Preset(
            name="boolq",
            system=(
                "You are a factual question answering system. Determine if the given passage supports the question "
                "being true. Respond ONLY with the single word 'true' or 'false' in lowercase, without any punctuation "
                "or additional text."
            ),
            user="Passage: {passage}\n\nQuestion: {question}",
            columns={"passage": ("passage",), "question": ("question",)},
            label_words=("true", "false"),
            labels=dict.fromkeys(("true", "1", "yes"), "true") | dict.fromkeys(("false", "0", "no"), "false"),
            label_columns=("answer", "label"),
            level="token",
            rationale=Rationale("passage"),
            hub=Hub("google/boolq", "validation"),
        ),
        Preset(
            name="tellmewhy",
            user="{text}",
            columns={"text": ("text", ("narrative", "question"), ("passage", "question"))},
            hub=Hub("StonyBrookNLP/tellmewhy", "test"),
        ),
        Preset(
            name="wikibio",
            user="{text}",
            columns={"text": ("text", "wiki_bio_text")},  # a text is taken as it is, of a biography its beginning
            sentences={"wiki_bio_text": 2},
            hub=Hub("potsawee/wiki_bio_gpt3_hallucination", "evaluation"),
        ),
    )
}


# --- a preset of one's own --------------------------------------------------------------------------------------------


def custom_preset(
    prompt_template: str,
    *,
    system: str | None = None,
    columns: Mapping[str, str] | None = None,
    label_words: Sequence[str] | Mapping[str, Sequence[str]] = (),
    rationale_field: str | None = None,
    rationale_unit: RationaleUnit = "words",
    name: str = "custom",
) -> Preset:
    """Make a preset of a prompt of one's own.

    `prompt_template` is the user's message, with {field} for each text of the data. `columns` maps a field to the
    column that it is taken from, where that has another name, and likewise "label" and "rationale". `label_words` are
    the possible answers, none for open generation; a mapping also says what the data calls them:
    {"good": ["1", "pos"], "bad": ["0", "neg"]}. Upper and lower case are one in the data. Labels are read from the
    column "label" where there is one; if `columns` names it, every row must have it. Rationales are read only if
    `columns` names them, and are of the template's first field unless `rationale_field` says otherwise.

    Raises InvalidRequestError, which names the keyword.
    """
    fields = _fields_of(prompt_template)
    columns = dict(columns or {})
    for key in columns:
        if key not in (*fields, "label", "rationale"):
            raise InvalidRequestError.of(
                "columns",
                f"names {key!r}, which is no field of the template; it has {_listed(fields)}, label, rationale",
            )
    labels = _labels_of(label_words)
    if "label" in columns and not labels:
        raise InvalidRequestError.of(
            "label_words", f"must be given where columns has a label ({columns['label']}): the words that are answers"
        )
    if rationale_field is not None and rationale_field not in fields:
        raise InvalidRequestError.of(
            "rationale_field", f"must be a field of the template, one of {_listed(fields)}, not {rationale_field!r}"
        )
    rationale = (
        Rationale(rationale_field or fields[0], (columns["rationale"],), rationale_unit)
        if "rationale" in columns
        else None
    )
    return Preset(
        name=name,
        system=system,
        user=prompt_template,
        columns={one: (columns.get(one, one),) for one in fields},
        label_words=tuple(label_words),
        labels=labels,
        label_columns=(columns.get("label", "label"),) if labels else (),
        label_required="label" in columns,
        level="token" if labels else "sequence",
        rationale=rationale,
    )


def _fields_of(template: str) -> list[str]:
    """Return the template's fields, each once."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise InvalidRequestError.of(
            "prompt_template",
            f"has a brace without its other half ({error}); write a brace that is meant as {{{{ or }}}}",
        ) from error
    fields = []
    for _, name, form, conversion in parsed:
        if name is None:
            continue
        if not re.fullmatch(r"\w+", name) or name.isdigit() or form or conversion:
            shown = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise InvalidRequestError.of(
                "prompt_template",
                f"has {{{shown}}}, which is no plain field; write {{name}}, and a brace that is meant as {{{{ or }}}}",
            )
        if name in ("label", "rationale"):
            raise InvalidRequestError.of(
                "prompt_template", f"has the field {{{name}}}, which is the answer to be found; give it another name"
            )
        fields.append(name)
    if not fields:
        raise InvalidRequestError.of(
            "prompt_template",
            "has no field, so that every row would be asked the same; write {text} where the text goes",
        )
    return list(dict.fromkeys(fields))


def _labels_of(label_words: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return what the data may say, to the label word that it means."""
    if isinstance(label_words, str):
        raise InvalidRequestError.of("label_words", f"must be a list of words, not the text {label_words!r}")
    said = label_words if isinstance(label_words, Mapping) else dict.fromkeys(label_words, ())
    if len(label_words) == 1:
        raise InvalidRequestError.of(
            "label_words", f"has {next(iter(said))!r} alone; give two or more, or none for open generation"
        )
    labels: dict[str, str] = {}
    if len(said) != len(label_words):
        raise InvalidRequestError.of("label_words", f"has a word twice: {_listed(label_words)}")
    for word, values in said.items():
        if not word.strip():
            raise InvalidRequestError.of(
                "label_words", "has an empty word; a label word is what the model is to answer"
            )
        for value in dict.fromkeys(str(value).strip().lower() for value in (word, *values)):
            if value in labels:
                raise InvalidRequestError.of(
                    "label_words",
                    f"{value!r} would mean both {labels[value]!r} and {word!r}; upper and lower case are one",
                )
            labels[value] = word
    return labels


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


# --- sentences --------------------------------------------------------------------------------------------------------

_ABBREVIATIONS = re.compile(
    r"(mr|mrs|ms|dr|prof|rev|hon|st|sr|jr|gen|col|maj|capt|cmdr|lt|sgt|gov|sen|rep|pres|no|vol|ca|cf|fl|vs|approx"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
    r"|\w|.*\w\.\w+)\."  # an initial, or what has a full stop inside
)
_END = re.compile(r"""[.!?]+["'”’»)\]]*(?=\s+["'“‘«(\[]*(\w))""")


def first_sentences(text: str, count: int) -> str:
    """Return the beginning of `text`, to the end of its `count`-th sentence; all of it where it has fewer.

    A sentence ends at . ! or ?, with the quotation marks and brackets that close there, if white space and something
    that is no lower-case letter follow. It does not end inside round brackets, nor after an initial ("W."), after what
    has a full stop inside ("U.S."), or after one of some known abbreviations ("Jr.", "ca."). So a sentence that does
    end with "U.S." is taken together with the next.
    """
    found = 0
    for match in _END.finditer(text):
        end = match.end()
        inside = text.count("(", 0, end) > text.count(")", 0, end) and ")" in text[end:]
        if inside or match[1].islower() or _abbreviates(text[: match.start() + 1]):
            continue
        found += 1
        if found == count:
            return text[:end]
    return text


def _abbreviates(beginning: str) -> bool:
    """Whether the full stop that `beginning` ends with belongs to its last word."""
    word = beginning.rsplit(maxsplit=1)[-1].lstrip("\"'“‘«([").lower()
    return _ABBREVIATIONS.fullmatch(word) is not None
