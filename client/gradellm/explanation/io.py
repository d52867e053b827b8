"""Reads and writes files of explanations, in a format chosen by the suffix."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gradellm.errors import InvalidExplanationError, InvalidRequestError
from gradellm.explanation.explanation import Explanation
from gradellm.serialization import from_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["as_bytes", "check", "load", "read_jsonl", "save", "write_jsonl"]


def save(explanation: Explanation, path: str | os.PathLike[str]) -> None:
    """Write an explanation atomically, in the format of the file's suffix.

    Raises InvalidRequestError for an unknown suffix, a missing package, or a file that cannot be written.
    """
    path = Path(path)
    check(path)
    data = as_bytes(explanation, path.suffix.lower())
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InvalidRequestError.of("path", f"{path} cannot be written: {error.strerror}") from error


def check(path: str | os.PathLike[str]) -> None:
    """Raise InvalidRequestError if `save` could not write such a file."""
    path = Path(path)
    file_format = _FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise InvalidRequestError.of("path", f"{path} must end in one of {', '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise InvalidRequestError.of("path", f"{path} cannot be written: there is no folder {path.parent}")
    _check_needs(path, file_format)


def _check_needs(path: Path, file_format: _Format) -> None:
    if missing := [name for name in file_format.needs if importlib.util.find_spec(name) is None]:
        extra = "plots" if "matplotlib" in missing else "data"
        raise InvalidRequestError.of("path", f"{path.suffix} files need {missing[0]}: pip install 'gradellm[{extra}]'")


def as_bytes(explanation: Explanation, suffix: str) -> bytes:
    """Return the contents of a file with this suffix."""
    return _FORMATS[suffix].write(explanation)


def load(path: str | os.PathLike[str]) -> Explanation:
    """Read a .json or .safetensors file.

    Raises InvalidExplanationError, with the file's name, if it is unreadable or not an explanation.
    """
    path = Path(path)
    try:
        if path.suffix.lower() not in (".json", ".safetensors"):
            raise InvalidExplanationError("only .json and .safetensors files can be read")
        return _from_safetensors(path) if path.suffix.lower() == ".safetensors" else _from_json(path)
    except OSError as error:
        raise InvalidExplanationError(f"{path} cannot be read: {error.strerror or error}") from error
    except InvalidExplanationError as error:
        raise InvalidExplanationError(f"{path}: {error}") from error


def write_jsonl(explanations: Iterable[Explanation], path: str | os.PathLike[str]) -> int:
    """Write explanations as JSON Lines. Return their number."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for explanation in explanations:
            file.write(explanation.to_json() + "\n")
            count += 1
    return count


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[Explanation]:
    """Yield the explanations of a JSON Lines file. Raises InvalidExplanationError with the line's number."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield Explanation.from_json(line)
                except InvalidExplanationError as error:
                    raise InvalidExplanationError(f"{path}:{number}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidExplanationError(f"{path} cannot be read: {why}") from error


def _from_json(path: Path) -> Explanation:
    try:
        return Explanation.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidExplanationError("it is not UTF-8") from error


# --- safetensors: ids and scores as tensors, the rest as JSON in the metadata -----------------------------------------

_METADATA = "gradellm.explanation"


def _to_safetensors(explanation: Explanation) -> bytes:
    import numpy as np
    from safetensors.numpy import save as saved

    rows = explanation.attributions
    scores = np.array([score for row in rows for score in row.scores], np.float64)
    narrow = scores.astype(np.float32)  # the wire's type
    columns = [column for row in rows for column in row.source_indexes or range(len(row.scores))]
    tensors = {
        "prompt_ids": np.array([token.id for token in explanation.prompt_tokens], np.int64),
        "token_ids": np.array([token.id for token in explanation.tokens], np.int64),
        "token_indexes": np.array([row.token_index for row in rows], np.int64),
        "row_ends": np.cumsum([len(row.scores) for row in rows], dtype=np.int64),
        "scores": narrow if np.array_equal(narrow, scores, equal_nan=True) else scores,
        "columns": np.array(columns, np.int64),
    }
    bare = replace(explanation, attributions=tuple(replace(row, scores=(), source_indexes=()) for row in rows))
    has_columns = json.dumps([bool(row.source_indexes) for row in rows])
    data: bytes = saved(tensors, {_METADATA: bare.to_json(), "has_columns": has_columns})
    return data


def _from_safetensors(path: Path) -> Explanation:
    _check_needs(path, _FORMATS[".safetensors"])
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if _METADATA not in metadata:
                raise InvalidExplanationError("this is not an explanation")
            tensors = {name: _numbers(file.get_tensor(name), name, dtypes) for name, dtypes in _TENSOR_DTYPES.items()}
        bare = Explanation.from_json(metadata[_METADATA])
        has_columns = from_json(metadata["has_columns"])
    except InvalidExplanationError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, EOFError) as error:
        raise InvalidExplanationError(f"it is damaged: {error}") from error
    rows = bare.attributions
    _check_tensors(tensors, bare, has_columns)
    scores, columns = tensors["scores"], tensors["columns"]
    return replace(
        bare,
        attributions=tuple(
            replace(row, scores=tuple(scores[start:end]), source_indexes=tuple(columns[start:end]) if has else ())
            for row, start, end, has in zip(
                rows, [0, *tensors["row_ends"]], tensors["row_ends"], has_columns, strict=False
            )
        ),
    )


_TENSOR_DTYPES = {
    "prompt_ids": ("int64",),
    "token_ids": ("int64",),
    "token_indexes": ("int64",),
    "row_ends": ("int64",),
    "scores": ("float32", "float64"),
    "columns": ("int64",),
}


def _numbers(tensor: Any, name: str, dtypes: Sequence[str]) -> list[Any]:  # noqa: ANN401  (a numpy array)
    if tensor.ndim != 1 or tensor.dtype.name not in dtypes:
        raise InvalidExplanationError(
            f"its tensor {name} is {tensor.dtype.name} with {tensor.ndim} dimensions, not "
            f"{' or '.join(dtypes)} with one"
        )
    numbers: list[Any] = tensor.tolist()
    return numbers


def _check_tensors(tensors: dict[str, list[Any]], bare: Explanation, has_columns: object) -> None:
    """Raise InvalidExplanationError for tensors that contradict the metadata."""
    rows = bare.attributions
    expected = {
        "prompt_ids": [token.id for token in bare.prompt_tokens],
        "token_ids": [token.id for token in bare.tokens],
        "token_indexes": [row.token_index for row in rows],
    }
    for name, numbers in expected.items():
        if tensors[name] != numbers:
            raise InvalidExplanationError(f"its tensor {name} contradicts its metadata")
    ends, count = tensors["row_ends"], len(tensors["scores"])
    if len(ends) != len(rows) or any(b < a for a, b in pairwise([0, *ends])) or (ends[-1] if ends else 0) != count:
        raise InvalidExplanationError(f"its tensor row_ends does not split {count} scores into {len(rows)} rows")
    if len(tensors["columns"]) != count:
        raise InvalidExplanationError(f"its tensor columns has {len(tensors['columns'])} numbers for {count} scores")
    if any(row.scores or row.source_indexes for row in rows):
        raise InvalidExplanationError("its metadata has scores in addition to its tensors")
    is_list = isinstance(has_columns, list) and all(isinstance(item, bool) for item in has_columns)
    if not (is_list and len(cast("list[bool]", has_columns)) == len(rows)):
        raise InvalidExplanationError(f"its has_columns must be a list of {len(rows)} booleans")


# --- formats ----------------------------------------------------------------------------------------------------------


def _to_plot(explanation: Explanation, form: str) -> bytes:
    from gradellm.explanation.plot import plot

    return plot(explanation, form)


@dataclass(frozen=True)
class _Format:
    """A file format."""

    write: Callable[[Explanation], bytes]
    needs: tuple[str, ...] = ()
    """Packages beyond the base install."""


_FORMATS = {
    ".json": _Format(lambda explanation: f"{explanation.to_json()}\n".encode()),
    ".safetensors": _Format(_to_safetensors, ("numpy", "safetensors")),
    ".html": _Format(lambda explanation: explanation.to_html().encode()),
    ".png": _Format(partial(_to_plot, form="png"), ("matplotlib",)),
    ".svg": _Format(partial(_to_plot, form="svg"), ("matplotlib",)),
    ".txt": _Format(lambda explanation: explanation.to_ansi(color="never", width=100).encode()),
}
