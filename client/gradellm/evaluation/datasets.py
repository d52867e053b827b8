"""From the records of a data source to examples, by a preset.

1. A source is a file (.jsonl: one object per line; .csv: with a header; .parquet), or a data set of the hub:
   hub:ID, hub:ID:SPLIT or hub:ID:CONFIG:SPLIT.
2. A record becomes an `Example`, or a `BadRow` with the reason. Bad rows do not stop the run; a source that cannot be
   used at all raises `DataError`.
3. An example's id is the text or integer of the column `id`, else a hash of its fields and label. Repeated ids get the
   suffixes "#2", "#3", ... in the source's order.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from gradellm.evaluation.examples import BadRow, DataError, Example, Rows
from gradellm.evaluation.presets import first_sentences
from gradellm.evaluation.readers import UnusableRecord, columns_text, position_unit, read_records, truncated_list
from gradellm.serialization import short_repr

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gradellm.evaluation.examples import Span
    from gradellm.evaluation.presets import Column, Preset, RationaleUnit, Rendered
    from gradellm.evaluation.readers import Record

__all__ = ["load_rows", "read_rows"]


def load_rows(source: str | os.PathLike[str], preset: Preset, *, chat: bool = True) -> Rows:
    """Read a whole source. Raises DataError if no row is usable; see `read_rows`."""
    examples: list[Example] = []
    bad: list[BadRow] = []
    for row in read_rows(source, preset, chat=chat):
        if isinstance(row, Example):
            examples.append(row)
        else:
            bad.append(row)
    if not examples and not bad:
        raise DataError(f"{source} is empty: it has no rows")
    if not examples:
        first = "; ".join(f"{position_unit(str(source))} {row.line} {row.reason}" for row in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DataError(f"{source} has no usable row, all {len(bad)} are bad: {first}{more}")
    return Rows(tuple(examples), tuple(bad))


def read_rows(source: str | os.PathLike[str], preset: Preset, *, chat: bool = True) -> Iterator[Example | BadRow]:
    """Yield the rows of a source in order, with prompts as messages or (`chat` False) as one text.

    Raises DataError if the source is missing, unsupported, not UTF-8 or malformed, or lacks a column that every row
    needs.
    """
    source = str(source)
    seen: dict[str, int] = {}
    for line, record in read_records(source, preset):
        origin = f"{source}, {position_unit(source)} {line}"
        try:
            if isinstance(record, UnusableRecord):
                raise record
            yield _example(record, origin, preset, seen, chat=chat)
        except UnusableRecord as problem:
            yield BadRow(line, str(problem), origin)


def _example(record: Record, origin: str, preset: Preset, seen: dict[str, int], *, chat: bool) -> Example:
    values = {name: _field(record, name, columns, preset) for name, columns in preset.columns.items()}
    label = _label(record, preset)
    rendered = preset.render(values, chat=chat)
    rationale = _rationale(record, preset, values, rendered)
    return Example(
        id=_unique(_id(record, values, label), seen),
        origin=origin,
        messages=rendered.messages,
        prompt=rendered.prompt,
        label=label,
        rationale=rationale,
        fields=values,
    )


def _field(record: Record, name: str, columns: Sequence[Column], preset: Preset) -> str:
    for column in columns:
        parts = (column,) if isinstance(column, str) else column
        if any(record.get(part) is None for part in parts):
            continue
        texts = [_text(part, record[part]) for part in parts]
        if isinstance(column, str) and (count := preset.sentences.get(column)):
            texts = [first_sentences(texts[0], count)]
        return " ".join(texts)
    raise UnusableRecord(f"has no {name}: it needs {columns_text(columns)}, and has {truncated_list(record)}")


def _text(column: str, value: object) -> str:
    if not isinstance(value, str):
        raise UnusableRecord(f"has a {column} that is not a text: {short_repr(value)}")
    if not value.strip():
        raise UnusableRecord(f"has an empty {column}")
    _refuse_surrogates(column, value)
    return value


def _refuse_surrogates(column: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UnusableRecord(f"has a lone surrogate in its {column}, at character {error.start}") from None


def _label(record: Record, preset: Preset) -> str | None:
    column, value = _first(record, preset.label_columns)
    if column is None:
        if preset.label_required:
            raise UnusableRecord(
                f"has no label: it needs {columns_text(preset.label_columns)}, and has {truncated_list(record)}"
            )
        return None
    label = preset.label(value)
    if label is None:
        labels = ", ".join(sorted(preset.labels))
        raise UnusableRecord(f"has the {column} {short_repr(value)}, which is not a label of {preset.name}: {labels}")
    return label


def _first(record: Record, columns: Iterable[str]) -> tuple[str | None, object]:
    """Return the first column that is not empty, and its value."""
    for column in columns:
        value = record.get(column)
        if value is not None and not (isinstance(value, str) and not value.strip()):  # an empty cell of CSV
            return column, value
    return None, None


def _id(record: Record, values: Mapping[str, str], label: str | None) -> str:
    column, value = _first(record, ("id",))
    if column is None:
        content = json.dumps([sorted(values.items()), label])
        return hashlib.sha256(content.encode()).hexdigest()[:16]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnusableRecord(f"has an id that is neither a text nor an integer: {short_repr(value)}")
    _refuse_surrogates("id", str(value))
    return str(value)


def _unique(example_id: str, seen: dict[str, int]) -> str:
    """Return the id, with the next free number as a suffix if it is taken. `seen` has the last number of each id."""
    unique = example_id
    while unique in seen:
        seen[example_id] += 1
        unique = f"{example_id}#{seen[example_id]}"
    seen[unique] = 1
    return unique


def _rationale(
    record: Record, preset: Preset, values: Mapping[str, str], rendered: Rendered
) -> tuple[Span, ...] | None:
    if preset.rationale is None:
        return None
    column, value = _first(record, preset.rationale.columns)
    if column is None:
        return None
    if isinstance(value, str):  # a cell of a CSV file
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UnusableRecord(f"has a {column} that is not a JSON list: {short_repr(value)}") from None
    field = preset.rationale.field
    spans = _spans(column, value, preset.rationale.unit, values[field])
    return _merged((start + at, end + at) for at in rendered.starts[field] for start, end in spans)


def _spans(column: str, value: object, unit: RationaleUnit, text: str) -> list[Span]:
    """Return the spans of a rationale in code points of its text."""
    if not isinstance(value, list):
        raise UnusableRecord(f"has a {column} that is not a list: {short_repr(value)}")
    units = [match.span() for match in re.finditer(r"\S+", text)] if unit == "words" else None
    limit = len(text) if units is None else len(units)
    form = "a pair [start, end)" if units is None else "a word's index or a pair [start, end)"
    spans = []
    for item in value:
        pair = [item, item + 1] if units is not None and type(item) is int else item
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(type(number) is int for number in pair)):
            raise UnusableRecord(f"has {short_repr(item)} in its {column}, which is not {form}")
        start, end = pair
        if not 0 <= start < end <= limit:
            raise UnusableRecord(
                f"has {short_repr(item)} in its {column}, which is empty or outside its text of {limit} {unit}"
            )
        spans.append((start, end) if units is None else (units[start][0], units[end - 1][1]))
    return spans


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)
