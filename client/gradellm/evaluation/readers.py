"""Reads records of data files (JSON Lines, CSV, Parquet) and of data sets of the Hugging Face hub.

Parquet files and the hub need packages that the client does without: pip install 'gradellm[data]'.
"""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gradellm.evaluation.examples import DataError
from gradellm.serialization import short_repr

if TYPE_CHECKING:
    from gradellm.evaluation.presets import Column, Preset

__all__ = ["Record", "UnusableRecord", "columns_text", "position_unit", "read_records", "truncated_list"]

Record = Mapping[str, object]
"""Values by column name."""

_HUB = "hub:"
_MAX_NAMES, _MAX_NAME_LENGTH = 20, 60


class UnusableRecord(Exception):  # noqa: N818  (not an error: it becomes a BadRow)
    """Why a record makes no example, as a predicate: "has an empty text"."""


def read_records(source: str, preset: Preset) -> Iterator[tuple[int, Record | UnusableRecord]]:
    """Yield each record of a source with its line or row number, or why it is unusable.

    Raises DataError if the source cannot be read, or lacks a column that every row needs.
    """
    if source.startswith(_HUB):
        return _hub(source, preset)
    read = _READERS.get(Path(source).suffix.lower())
    if read is None:
        raise DataError(
            f"{source} has an unsupported file type; supported are .jsonl (one JSON object per line), .csv (with a "
            f"header), .parquet, and data sets of the hub as {_HUB}ID:SPLIT"
        )
    return read(source, preset)


def position_unit(source: str) -> str:
    """Return what positions in a source count: "line" or "row"."""
    return "row" if source.startswith(_HUB) or source.lower().endswith(".parquet") else "line"


def _jsonl(source: str, _: Preset) -> Iterator[tuple[int, Record | UnusableRecord]]:
    offset = 0
    with _opened(source) as file:
        for line, raw in enumerate(file, 1):
            text = _decoded(raw, source, line, offset)
            offset += len(raw)
            if text.strip():
                yield line, _json_record(text)


def _json_record(text: str) -> Record | UnusableRecord:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        return UnusableRecord(f"is not JSON: {error.msg} at column {error.colno}")
    except ValueError as error:  # an integer with thousands of digits
        return UnusableRecord(f"is not readable JSON: {error}")
    except RecursionError:
        return UnusableRecord("is not readable JSON: it is nested too deeply")
    return record if isinstance(record, dict) else UnusableRecord(f"is not a JSON object: {short_repr(record)}")


def _csv(source: str, preset: Preset) -> Iterator[tuple[int, Record | UnusableRecord]]:
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
                raise DataError(f"{source} has a malformed CSV header at line {line}: {error}") from error
            lines = f"lines {line} to {reader.line_num} are" if reader.line_num > line else "is"
            hint = "; a quotation mark opened there is never closed" if "end of data" in str(error) else ""
            yield line, UnusableRecord(f"{lines} malformed CSV: {error}{hint}")
            continue
        if cells is None:
            return
        if not cells:
            continue
        if header is None:
            header = [name.strip() for name in cells]
            if duplicates := sorted(name for name, count in Counter(header).items() if count > 1):
                named = truncated_list(map(repr, duplicates))
                raise DataError(f"{source} has two columns named {named}; rename one")
            _require_columns(header, source, preset)
        elif len(cells) != len(header):
            yield line, UnusableRecord(f"has {len(cells)} cells where the header has {len(header)}")
        else:
            yield line, dict(zip(header, cells, strict=True))


def _next_cells(reader: Iterator[list[str]]) -> list[str] | None:
    """Read a record of any length; the field size limit is process-wide, so it is restored."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _parquet(source: str, preset: Preset) -> Iterator[tuple[int, Record | UnusableRecord]]:
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


def _hub(source: str, preset: Preset) -> Iterator[tuple[int, Record | UnusableRecord]]:
    name, *rest = re.split(r":(?![^\[]*\])", source.removeprefix(_HUB))  # a split may be train[:100]
    if not name or len(rest) > 2:
        raise DataError(
            f"{source} is not a data set name: write {_HUB}ID, {_HUB}ID:SPLIT or {_HUB}ID:CONFIG:SPLIT, "
            f"such as {_HUB}google/boolq:validation"
        )
    config, split = (None, *rest)[-2:] if rest else (None, None)
    datasets = _data_package("datasets", source)
    try:
        data = datasets.load_dataset(name, name=config or None, split=split or None)
    except Exception as error:  # of the network, the hub, the library or the data
        message = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{source} cannot be loaded: {message}; check its name, configuration and split, and that the hub is "
            "reachable or the data set is cached"
        ) from error
    if isinstance(data, dict):
        if len(data) != 1:
            raise DataError(
                f"{source} has the splits {truncated_list(data)}; choose one: {source.rstrip(':')}:{next(iter(data))}"
            )
        data = next(iter(data.values()))
    _require_columns(data.column_names, source, preset)
    yield from enumerate(data.select_columns([name for name in data.column_names if name in _columns_of(preset)]), 1)


_READERS: dict[str, Callable[[str, Preset], Iterator[tuple[int, Record | UnusableRecord]]]] = {
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
            f"reading {source} needs the package {package}, which is not installed ({error}): "
            "pip install 'gradellm[data]'"
        ) from error


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    try:
        file = open(source, "rb")  # noqa: SIM115  (closed below)
    except FileNotFoundError as error:
        raise DataError(
            f"there is no file {source}; check the path, or write {_HUB}ID:SPLIT for a data set of the hub"
        ) from error
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    with file:
        yield file


def _decoded(raw: bytes, source: str, line: int, offset: int) -> str:
    """Decode bytes that begin at this line and byte offset of the file. A leading byte order mark is dropped."""
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


def _columns_of(preset: Preset) -> set[str]:
    """Return all columns that the preset may read."""
    named = [column for columns in preset.columns.values() for column in columns]
    names = {name for column in named for name in ((column,) if isinstance(column, str) else column)}
    return names | {"id", *preset.label_columns, *(preset.rationale.columns if preset.rationale else ())}


def _require_columns(names: Sequence[str], source: str, preset: Preset) -> None:
    """Raise DataError if a table lacks a column that every row needs."""
    missing = [
        f"{field} ({columns_text(columns)})"
        for field, columns in preset.columns.items()
        if not any(
            {column} <= set(names) if isinstance(column, str) else set(column) <= set(names) for column in columns
        )
    ]
    if preset.label_required and not set(preset.label_columns) & set(names):
        missing.append(f"label ({columns_text(preset.label_columns)})")
    if missing:
        raise DataError(
            f"{source} lacks a column for {', '.join(missing)}; it has {truncated_list(names)}; map the columns, or "
            "choose another preset"
        )


def columns_text(columns: Iterable[Column]) -> str:
    """Return alternatives of columns in prose: "a column text or passage and question"."""
    alternatives = [column if isinstance(column, str) else " and ".join(column) for column in columns]
    return (
        f"the column {' or '.join(alternatives)}" if len(alternatives) < 2 else f"a column {' or '.join(alternatives)}"
    )


def truncated_list(names: Iterable[str]) -> str:
    """Return the first 20 names separated by commas, long ones truncated."""
    first = [name if len(name) <= _MAX_NAME_LENGTH else f"{name[:_MAX_NAME_LENGTH]}..." for name in names]
    more = f" and {len(first) - _MAX_NAMES} more" if len(first) > _MAX_NAMES else ""
    return ", ".join(first[:_MAX_NAMES]) + more or "none"
