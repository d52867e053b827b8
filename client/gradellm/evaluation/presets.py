"""Presets of data sets: prompt, columns and label words. `PRESETS` has those of the paper (its table 3).

`custom_preset` makes a preset from a prompt template. Presets are plain data; datasets.py reads the files.

A prompt is a chat with a system message, if the preset has one, and a user message. For models without a chat template
it is one text: the system text, an empty line, the user's text.
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
"""What is evaluated: the first token of the label word, or every fifth token of an open answer."""
RationaleUnit = Literal["words", "characters"]
Column = str | tuple[str, ...]
"""A column's name, or the names of several columns whose texts are joined by a space."""


@dataclass(frozen=True, slots=True)
class Hub:
    """A public data set of the Hugging Face hub."""

    name: str
    split: str
    config: str | None = None

    def __str__(self) -> str:
        return ":".join(filter(None, ("hub", self.name, self.config, self.split)))


@dataclass(frozen=True, slots=True)
class Rationale:
    """The columns of human rationales."""

    field: str
    """The template field whose text they annotate."""
    columns: tuple[str, ...] = ("rationale",)
    """The first of these columns that a row has is used."""
    unit: RationaleUnit = "words"
    """The unit of positions: words, split at white space, or code points. A rationale is a list of pairs [start, end);
    for words also of single indexes."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered prompt in one of two forms; the other is None."""

    messages: tuple[tuple[str, str], ...] | None
    """Pairs (role, content), as the client's keyword of that name."""
    prompt: str | None
    starts: Mapping[str, tuple[int, ...]]
    """The offsets of each field's text, in code points of the last message or of the prompt."""


@dataclass(frozen=True, slots=True)
class Preset:
    """The prompt for a row of data, and the columns that it is filled from."""

    name: str
    user: str
    """The user's message, with {field} for each text of the data; literal braces are doubled."""
    columns: Mapping[str, tuple[Column, ...]]
    """For each field its possible columns; the first that a row has is used."""
    system: str | None = None
    label_words: tuple[str, ...] = ()
    """The answers that the model chooses from; empty for open generation."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """From values of the data, in lower case, to label words."""
    label_columns: tuple[str, ...] = ()
    label_required: bool = False
    """Whether a row without a label is bad. Faithfulness is measured on the predicted label and needs no gold label."""
    level: Level = "sequence"
    rationale: Rationale | None = None
    sentences: Mapping[str, int] = field(default_factory=dict)
    """By column: how many sentences of its text are used."""
    hub: Hub | None = None
    """The data set that is used without --data."""

    def label(self, value: object) -> str | None:
        """Return the label word of a value of the data; None if it is not a label."""
        if (
            isinstance(value, float) and value.is_integer()
        ):  # integer columns with missing values are often stored as floats
            value = int(value)
        return self.labels.get(str(value).strip().lower())

    def render(self, values: Mapping[str, str], *, chat: bool = True) -> Rendered:
        """Render the prompt as messages or (`chat` False) as one text."""
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
    """Split a template into pairs of a literal text and the field after it."""
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
        # The train split, because validation has only 872 sentences and test has no labels.
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
            columns={"text": ("text", "wiki_bio_text")},  # a text in full, of a biography the first sentences
            sentences={"wiki_bio_text": 2},
            hub=Hub("potsawee/wiki_bio_gpt3_hallucination", "evaluation"),
        ),
    )
}


# --- custom presets ---------------------------------------------------------------------------------------------------


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
    """Make a preset from a prompt template.

    Args:
        prompt_template: the user's message, with {field} for each text of the data.
        system: the system message.
        columns: maps fields, "label" and "rationale" to columns with other names. A mapped label is required in every
            row; rationales are read only if they are mapped.
        label_words: the possible answers; empty for open generation. A mapping also has the values of the data, in any
            case: {"good": ["1", "pos"], "bad": ["0", "neg"]}.
        rationale_field: the field that rationales annotate; by default the template's first.
        rationale_unit: the unit of positions in rationales.
        name: the preset's name.

    Raises InvalidRequestError, which names the keyword.
    """
    fields = _fields_of(prompt_template)
    columns = dict(columns or {})
    for key in columns:
        if key not in (*fields, "label", "rationale"):
            raise InvalidRequestError.of(
                "columns",
                f"names {key!r}, which is not a field of the template; allowed are {_join(fields)}, label, rationale",
            )
    labels = _labels_of(label_words)
    if "label" in columns and not labels:
        raise InvalidRequestError.of("label_words", f"must be given with a label column ({columns['label']})")
    if rationale_field is not None and rationale_field not in fields:
        raise InvalidRequestError.of(
            "rationale_field", f"must be a field of the template, one of {_join(fields)}, not {rationale_field!r}"
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
        columns={field: (columns.get(field, field),) for field in fields},
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
            f"has an unmatched brace ({error}); write literal braces as {{{{ and }}}}",
        ) from error
    fields = []
    for _, name, form, conversion in parsed:
        if name is None:
            continue
        if not re.fullmatch(r"\w+", name) or name.isdigit() or form or conversion:
            placeholder = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise InvalidRequestError.of(
                "prompt_template",
                f"has {{{placeholder}}}, not a plain field; write {{name}}, and literal braces as {{{{ and }}}}",
            )
        if name in ("label", "rationale"):
            raise InvalidRequestError.of(
                "prompt_template",
                f"has the field {{{name}}}, which is reserved for the expected answer; give it another name",
            )
        fields.append(name)
    if not fields:
        raise InvalidRequestError.of(
            "prompt_template",
            "has no field, so every prompt would be the same; write {text} where the text goes",
        )
    return list(dict.fromkeys(fields))


def _labels_of(label_words: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the mapping from values of the data, in lower case, to label words."""
    if isinstance(label_words, str):
        raise InvalidRequestError.of("label_words", f"must be a list of words, not the text {label_words!r}")
    values_by_word = label_words if isinstance(label_words, Mapping) else dict.fromkeys(label_words, ())
    if len(label_words) == 1:
        raise InvalidRequestError.of(
            "label_words", f"has only {next(iter(values_by_word))!r}; give at least two, or none for open generation"
        )
    labels: dict[str, str] = {}
    if len(values_by_word) != len(label_words):
        raise InvalidRequestError.of("label_words", f"has duplicates: {_join(label_words)}")
    for word, values in values_by_word.items():
        if not word.strip():
            raise InvalidRequestError.of("label_words", "has an empty word")
        for value in dict.fromkeys(str(value).strip().lower() for value in (word, *values)):
            if value in labels:
                raise InvalidRequestError.of(
                    "label_words",
                    f"{value!r} is mapped to both {labels[value]!r} and {word!r}; case is ignored",
                )
            labels[value] = word
    return labels


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)


# --- sentences --------------------------------------------------------------------------------------------------------

_ABBREVIATIONS = re.compile(
    r"(mr|mrs|ms|dr|prof|rev|hon|st|sr|jr|gen|col|maj|capt|cmdr|lt|sgt|gov|sen|rep|pres|no|vol|ca|cf|fl|vs|approx"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
    r"|\w|.*\w\.\w+)\."  # an initial, or a word with a full stop inside
)
_END = re.compile(r"""[.!?]+["'”’»)\]]*(?=\s+["'“‘«(\[]*(\w))""")


def first_sentences(text: str, count: int) -> str:
    """Return the first `count` sentences of `text`; all of it if there are fewer.

    A sentence ends at . ! or ? and closing quotation marks and brackets, if white space and no lower-case letter
    follow. It does not end inside round brackets, after an initial ("W."), after a word with a full stop inside
    ("U.S."), or after a known abbreviation ("Jr.", "ca."). So a sentence that ends with "U.S." is joined with the next.
    """
    num_sentences = 0
    for match in _END.finditer(text):
        end = match.end()
        inside = text.count("(", 0, end) > text.count(")", 0, end) and ")" in text[end:]
        if inside or match[1].islower() or _abbreviates(text[: match.start() + 1]):
            continue
        num_sentences += 1
        if num_sentences == count:
            return text[:end]
    return text


def _abbreviates(beginning: str) -> bool:
    """Whether the full stop at the end of `beginning` belongs to an abbreviation."""
    word = beginning.rsplit(maxsplit=1)[-1].lstrip("\"'“‘«([").lower()
    return _ABBREVIATIONS.fullmatch(word) is not None
