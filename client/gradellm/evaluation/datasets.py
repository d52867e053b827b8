"""From a data file, or a data set of the hub, to examples: what to ask, what the right answer is, and why.

1. A source is a file (.jsonl: one object a line; .csv: with a header; .parquet), or a name on the hub:
   hub:ID, hub:ID:SPLIT or hub:ID:CONFIG:SPLIT.
2. A record becomes an `Example` by a preset, or a `BadRow` that says why it does not. One bad row stops nothing.
   What makes the whole source useless is a `DataError`.
3. An example's id is the text or integer of the column `id`, else a hash of its fields and label. Where an id comes
   again, the second has "#2" behind it, and so on in the source's order.
4. `sample` takes a part of the examples, by seed and ids alone: the same on every machine and for every order of the
   source (but for different rows of one id, whose numbers go by that order).

Parquet files and the hub need packages that the client does without: pip install 'gradellm[data]'.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import importlib
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gradellm.errors import GradellmError
from gradellm.evaluation.presets import first_sentences
from gradellm.serialization import shown

if TYPE_CHECKING:
    import os

    from gradellm.evaluation.presets import Column, Preset, RationaleUnit, Rendered

__all__ = ["BadRow", "DataError", "Example", "Rows", "Span", "digest", "load_rows", "read_rows", "sample"]

Span = tuple[int, int]
"""A stretch of text, from its first code point to the one behind its last."""

_HUB = "hub:"


class DataError(GradellmError, ValueError):
    """Data that cannot be used as a whole: what is wrong, where, and what to do."""


@dataclass(frozen=True, slots=True)
class Example:
    """What is asked once. Exactly one of `messages` and `prompt` is not None."""

    id: str
    """Unique within its source."""
    origin: str
    """Where it comes from: "reviews.jsonl, line 12", or row 12 of what has no lines."""
    messages: tuple[tuple[str, str], ...] | None
    """The prompt as a chat of (role, content), the user's message last."""
    prompt: str | None
    """The prompt as one text."""
    label: str | None
    """The right answer, one of the preset's label words; None where the data does not say it."""
    rationale: tuple[Span, ...] | None
    """What a human found decisive, in code points of the last message or of `prompt`, in order and without overlap.
    Empty where a human found nothing, None where nobody looked."""
    fields: Mapping[str, str]
    """The texts that the prompt is filled with."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be asked."""

    line: int
    """Its line in the file, where it begins; its row, from 1 on, in what has no lines."""
    reason: str
    """What is said of it: "has an empty text"."""
    origin: str
    """Where it is, as of an example."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a source holds."""

    examples: tuple[Example, ...]
    bad: tuple[BadRow, ...]


def load_rows(source: str | os.PathLike[str], preset: Preset, *, chat: bool = True) -> Rows:
    """Read the whole source. Raises DataError where no row can be used; see `read_rows`."""
    examples: list[Example] = []
    bad: list[BadRow] = []
    for row in read_rows(source, preset, chat=chat):
        if isinstance(row, Example):
            examples.append(row)
        else:
            bad.append(row)
    if not examples and not bad:
        raise DataError(f"{source} is empty: it has no row; give data with at least one")
    if not examples:
        first = "; ".join(f"{_unit(str(source))} {row.line} {row.reason}" for row in bad[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DataError(f"{source} has no row that can be used, {len(bad)} of {len(bad)} are bad: {first}{more}")
    return Rows(tuple(examples), tuple(bad))


def read_rows(source: str | os.PathLike[str], preset: Preset, *, chat: bool = True) -> Iterator[Example | BadRow]:
    """Yield the source's rows in its order, with prompts as messages or (`chat` False) as one text.

    Raises DataError where the source is missing, of a kind that is not read, not UTF-8, broken as a whole, or lacks a
    column that every row needs.
    """
    source = str(source)
    seen: dict[str, int] = {}
    for line, record in _records(source, preset):
        origin = f"{source}, {_unit(source)} {line}"
        try:
            if isinstance(record, _Unusable):
                raise record
            yield _example(record, origin, preset, seen, chat=chat)
        except _Unusable as problem:
            yield BadRow(line, str(problem), origin)


def sample(rows: Iterable[Example], n: int, seed: int, *, balance_by_label: bool = False) -> tuple[Example, ...]:
    """Take `n` examples at random, or (`balance_by_label`) n in equal parts of each label that occurs.

    The choice is by the SHA-256 of seed and id: the same on every machine and for every order of `rows`. It is also the
    examples' order here, label by label in turn if balanced, so that whoever stops early has a fair sample too, and
    a smaller `n` with the same seed gives the beginning of what a larger one gives. If n is no multiple of the number
    of labels, the first labels by the alphabet have one example more.

    Raises DataError where there are fewer examples than asked for.
    """
    if n < 1:
        raise DataError(f"a sample of {n} examples was asked for; ask for 1 or more")
    ordered = sorted(rows, key=lambda example: _key(seed, example.id))
    if n > len(ordered):
        raise DataError(f"a sample of {n} examples was asked for, and the data has {len(ordered)}; ask for no more")
    if not balance_by_label:
        return tuple(ordered[:n])

    by_label: dict[str, list[Example]] = {}
    for example in ordered:
        if example.label is None:
            raise DataError(f"{example.origin} has no label, so that labels cannot be balanced; sample without balance")
        by_label.setdefault(example.label, []).append(example)
    if len(by_label) < 2:
        raise DataError(
            f"labels cannot be balanced: all {len(ordered)} examples have the label {next(iter(by_label))}; "
            "sample without balance"
        )
    each, more = divmod(n, len(by_label))
    turns = [by_label[label] for label in sorted(by_label)]
    for index, of_label in enumerate(turns):
        wanted = each + (index < more)
        if wanted > len(of_label):
            raise DataError(
                f"a balanced sample of {n} examples needs {wanted} with the label {of_label[0].label}, and the data "
                f"has {len(of_label)}; ask for {len(turns) * min(map(len, turns))} at most, or sample without balance"
            )
    rounds = itertools.zip_longest(*(of_label[: each + (index < more)] for index, of_label in enumerate(turns)))
    return tuple(example for row in rounds for example in row if example is not None)


def digest(rows: Iterable[Example]) -> str:
    """Return a SHA-256 of all that is asked and held to be right, whatever its order: the data in a run's identity."""
    lines = sorted(json.dumps([row.id, row.messages, row.prompt, row.label, row.rationale]) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _key(seed: int, example_id: str) -> bytes:
    return hashlib.sha256(f"{seed}:{example_id}".encode(errors="surrogatepass")).digest()


# --- from a record to an example --------------------------------------------------------------------------------------


class _Unusable(Exception):  # noqa: N818  (no error: it becomes a BadRow)
    """Why a record makes no example."""


_Record = Mapping[str, object]


def _example(record: _Record, origin: str, preset: Preset, seen: dict[str, int], *, chat: bool) -> Example:
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


def _field(record: _Record, name: str, columns: Sequence[Column], preset: Preset) -> str:
    for column in columns:
        parts = (column,) if isinstance(column, str) else column
        if any(record.get(part) is None for part in parts):
            continue
        texts = [_text(part, record[part]) for part in parts]
        if isinstance(column, str) and (count := preset.sentences.get(column)):
            texts = [first_sentences(texts[0], count)]
        return " ".join(texts)
    raise _Unusable(f"has no {name}: it needs {_wanted(columns)}, and has {_listed(record)}")


def _text(column: str, value: object) -> str:
    if not isinstance(value, str):
        raise _Unusable(f"has a {column} that is no text: {shown(value)}")
    if not value.strip():
        raise _Unusable(f"has an empty {column}")
    _refuse_surrogates(column, value)
    return value


def _refuse_surrogates(column: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Unusable(f"has half a surrogate pair in its {column}, at character {error.start}") from None


def _label(record: _Record, preset: Preset) -> str | None:
    column, value = _first(record, preset.label_columns)
    if column is None:
        if preset.label_required:
            raise _Unusable(f"has no label: it needs {_wanted(preset.label_columns)}, and has {_listed(record)}")
        return None
    label = preset.label(value)
    if label is None:
        known = ", ".join(sorted(preset.labels))
        raise _Unusable(f"has the {column} {shown(value)}, which is no label; {preset.name} knows {known}")
    return label


def _first(record: _Record, columns: Iterable[str]) -> tuple[str | None, object]:
    """Return the first of the columns that holds something, with what it holds."""
    for column in columns:
        value = record.get(column)
        if value is not None and not (isinstance(value, str) and not value.strip()):  # CSV has no other nothing
            return column, value
    return None, None


def _id(record: _Record, values: Mapping[str, str], label: str | None) -> str:
    column, value = _first(record, ("id",))
    if column is None:
        content = json.dumps([sorted(values.items()), label])
        return hashlib.sha256(content.encode()).hexdigest()[:16]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Unusable(f"has an id that is neither a text nor an integer: {shown(value)}")
    _refuse_surrogates("id", str(value))
    return str(value)


def _unique(wanted: str, seen: dict[str, int]) -> str:
    """Return the id, with the first free number behind it where others have it. `seen` holds each id's last number."""
    found = wanted
    while found in seen:
        seen[wanted] += 1
        found = f"{wanted}#{seen[wanted]}"
    seen[found] = 1
    return found


def _rationale(
    record: _Record, preset: Preset, values: Mapping[str, str], rendered: Rendered
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
            raise _Unusable(f"has a {column} that is no JSON list: {shown(value)}") from None
    field = preset.rationale.field
    spans = _spans(column, value, preset.rationale.unit, values[field])
    return _merged((start + at, end + at) for at in rendered.starts[field] for start, end in spans)


def _spans(column: str, value: object, unit: RationaleUnit, text: str) -> list[Span]:
    """Return a rationale's stretches in code points of the text that it is about."""
    if not isinstance(value, list):
        raise _Unusable(f"has a {column} that is no list: {shown(value)}")
    units = [match.span() for match in re.finditer(r"\S+", text)] if unit == "words" else None
    limit = len(text) if units is None else len(units)
    form = "a pair [start, end)" if units is None else "a word's index or a pair [start, end)"
    spans = []
    for item in value:
        pair = [item, item + 1] if units is not None and type(item) is int else item
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(type(number) is int for number in pair)):
            raise _Unusable(f"has {shown(item)} in its {column}, which is not {form}")
        start, end = pair
        if not 0 <= start < end <= limit:
            raise _Unusable(f"has {shown(item)} in its {column}, outside its text of {limit} {unit}, or empty")
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


# --- where records come from ------------------------------------------------------------------------------------------


def _records(source: str, preset: Preset) -> Iterator[tuple[int, _Record | _Unusable]]:
    """Yield each record of the source with its line or row, or what is wrong with it."""
    if source.startswith(_HUB):
        return _hub(source, preset)
    read = _READERS.get(Path(source).suffix.lower())
    if read is None:
        raise DataError(
            f"{source} is of no kind that is read: name it .jsonl (one JSON object a line), .csv (with a header) or "
            f".parquet, by what it holds; or give a data set of the hub as {_HUB}ID:SPLIT"
        )
    return read(source, preset)


def _unit(source: str) -> str:
    return "row" if source.startswith(_HUB) or source.lower().endswith(".parquet") else "line"


def _jsonl(source: str, _: Preset) -> Iterator[tuple[int, _Record | _Unusable]]:
    offset = 0
    with _opened(source) as file:
        for line, raw in enumerate(file, 1):
            text = _decoded(raw, source, line, offset)
            offset += len(raw)
            if text.strip():
                yield line, _json_record(text)


def _json_record(text: str) -> _Record | _Unusable:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        return _Unusable(f"is no JSON: {error.msg} at column {error.colno}")
    except ValueError as error:  # a number with thousands of digits
        return _Unusable(f"is no JSON that can be read: {error}")
    except RecursionError:
        return _Unusable("is no JSON that can be read: it is nested too deeply")
    return (
        record if isinstance(record, dict) else _Unusable(f"is no JSON object with names and values: {shown(record)}")
    )


def _csv(source: str, preset: Preset) -> Iterator[tuple[int, _Record | _Unusable]]:
    with _opened(source) as file:
        raw = file.read()
    reader = csv.reader(io.StringIO(_decoded(raw, source, 1, 0), newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = _next_cells(reader)
        except csv.Error as error:
            if header is None:
                raise DataError(f"{source} has a header, at line {line}, that is no CSV: {error}") from error
            lines = f"lines {line} to {reader.line_num} are" if reader.line_num > line else "is"
            hint = "; a quotation mark that opens there is never closed" if "end of data" in str(error) else ""
            yield line, _Unusable(f"{lines} no CSV: {error}{hint}")
            continue
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = [name.strip() for name in cells]
            if twice := sorted(name for name, count in Counter(header).items() if count > 1):
                named = _listed(map(repr, twice))
                raise DataError(f"{source} has a header with two columns named {named}; rename one")
            _require_columns(header, source, preset)
        elif len(cells) != len(header):
            yield line, _Unusable(f"has {len(cells)} cells where the header has {len(header)}")
        else:
            yield line, dict(zip(header, cells, strict=True))


def _next_cells(reader: Iterator[list[str]]) -> list[str] | None:
    """Read a record of any length. The limit is the process's, so it is put back."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _parquet(source: str, preset: Preset) -> Iterator[tuple[int, _Record | _Unusable]]:
    with _opened(source):
        pass
    arrow, parquet = _data_package("pyarrow", source), _data_package("pyarrow.parquet", source)
    row = 0
    try:
        with parquet.ParquetFile(source) as file:
            names = list(file.schema_arrow.names)
            _require_columns(names, source, preset)
            wanted = [name for name in names if name in _columns_of(preset)]
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f" after row {row}" if row else ""
        raise DataError(f"{source} cannot be read as Parquet{where}: {error}") from error


def _hub(source: str, preset: Preset) -> Iterator[tuple[int, _Record | _Unusable]]:
    name, *rest = re.split(r":(?![^\[]*\])", source.removeprefix(_HUB))  # a split may be train[:100]
    if not name or len(rest) > 2:
        raise DataError(
            f"{source} is no name of a data set: write {_HUB}ID, {_HUB}ID:SPLIT or {_HUB}ID:CONFIG:SPLIT, "
            f"such as {_HUB}google/boolq:validation"
        )
    config, split = (None, *rest)[-2:] if rest else (None, None)
    datasets = _data_package("datasets", source)
    try:
        data = datasets.load_dataset(name, name=config or None, split=split or None)
    except Exception as error:  # whatever the network, the hub, the library and the data have to say
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{source} cannot be loaded: {said}; check the name, its configuration and split, and that the hub can be "
            "reached or the data set is in the cache"
        ) from error
    if isinstance(data, dict):
        if len(data) != 1:
            raise DataError(
                f"{source} has the splits {_listed(data)}; say which, as {source.rstrip(':')}:{next(iter(data))}"
            )
        data = next(iter(data.values()))
    _require_columns(data.column_names, source, preset)
    yield from enumerate(data.select_columns([name for name in data.column_names if name in _columns_of(preset)]), 1)


_READERS: dict[str, Callable[[str, Preset], Iterator[tuple[int, _Record | _Unusable]]]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _data_package(module: str, source: str) -> Any:  # noqa: ANN401  (a module without types)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(
            f"{source} is read with the package {package}, which this Python lacks ({error}): "
            "pip install 'gradellm[data]'"
        ) from error


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    try:
        file = open(source, "rb")  # noqa: SIM115  (closed below)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {source}; check the path, or give {_HUB}ID:SPLIT for the hub") from error
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    with file:
        yield file


def _decoded(raw: bytes, source: str, line: int, offset: int) -> str:
    """Decode what begins at that line and byte of the file. A byte order mark at the file's beginning is no text."""
    try:
        return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        start = error.start + (len(codecs.BOM_UTF8) if offset == 0 and raw.startswith(codecs.BOM_UTF8) else 0)
        line += raw.count(b"\n", 0, start)
        column = start - (raw.rfind(b"\n", 0, start) + 1)
        utf16 = offset == 0 and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise DataError(
            f"{source} is not UTF-8{' (it looks like UTF-16)' if utf16 else ''}: byte 0x{raw[start]:02x} at line "
            f"{line}, byte {column + 1} of it (byte {offset + start + 1} of the file); save it as UTF-8"
        ) from error


# --- columns ----------------------------------------------------------------------------------------------------------


def _columns_of(preset: Preset) -> set[str]:
    """All columns that the preset may read."""
    named = [column for columns in preset.columns.values() for column in columns]
    names = {name for column in named for name in ((column,) if isinstance(column, str) else column)}
    return names | {"id", *preset.label_columns, *(preset.rationale.columns if preset.rationale else ())}


def _require_columns(names: Sequence[str], source: str, preset: Preset) -> None:
    """Refuse a table that lacks a column without which no row can be used."""
    missing = [
        f"{field} ({_wanted(columns)})"
        for field, columns in preset.columns.items()
        if not any(
            {column} <= set(names) if isinstance(column, str) else set(column) <= set(names) for column in columns
        )
    ]
    if preset.label_required and not set(preset.label_columns) & set(names):
        missing.append(f"label ({_wanted(preset.label_columns)})")
    if missing:
        raise DataError(
            f"{source} lacks a column for {', '.join(missing)}; it has {_listed(names)}; say which columns are meant, "
            "or choose another preset"
        )


def _wanted(columns: Iterable[Column]) -> str:
    alternatives = [column if isinstance(column, str) else " and ".join(column) for column in columns]
    return (
        f"the column {' or '.join(alternatives)}" if len(alternatives) < 2 else f"a column {' or '.join(alternatives)}"
    )


def _listed(names: Iterable[str]) -> str:
    """Names as an error lists them: the first ones of many, each cut where it is long."""
    first = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in names]
    more = f" and {len(first) - _MOST_NAMES} more" if len(first) > _MOST_NAMES else ""
    return ", ".join(first[:_MOST_NAMES]) + more or "none"


_MOST_NAMES, _LONGEST_NAME = 20, 60
