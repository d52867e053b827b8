"""The schema of results files that tables are made of: JSON shapes, checked on reading."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradellm.evaluation.names import EXPECTED_TOKENS
from gradellm.evaluation.results_file import ResultsFileError
from gradellm.serialization import short_repr

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_record", "check_settings"]

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX = 1e9  # of a metric's value, and of a count


@dataclass(frozen=True)
class _Each:
    """The schema of all values of an object with arbitrary names, or of all items of a list."""

    of: Any
    kind: type = dict


_NUMBER, _COUNT, _TEXT, _SEED = float, int, str, "seed"
_RECORD = {
    "label": (_TEXT, None),
    "predicted": (_TEXT, None),
    "outside_labels": bool,
    "steps": _COUNT,
    "skipped_steps": _COUNT,
    "metrics": _Each(_Each(_Each((_NUMBER, _Each(_NUMBER, list))))),
    "by": {
        "name": _TEXT,
        "revision": _TEXT,
        "attention_kernel": _TEXT,
        "device": _TEXT,
        "versions": _Each(_TEXT),
    },
}
_SETTINGS = {
    "preset": _TEXT,
    "prompt": {"form": _TEXT},
    "labels": _Each(_TEXT, list),
    "data": {"sha256": _TEXT, "examples": _COUNT, "sample": (_COUNT, None), "balance": bool},
    "methods": _Each(dict),
    "metrics": _Each(_TEXT, list),
    "pis": _Each(_NUMBER, list),
    "samples": _COUNT,
    "stride": _COUNT,
    "offset": _COUNT,
    "seed": _SEED,
    "perturb": _TEXT,
    "removal": _TEXT,
    "raw_scores": bool,
    "max_new_tokens": (_COUNT, None),
    "model": {"weights_sha256": _TEXT, "dtype": _TEXT, "quantization": _TEXT},
}
_WANTED: dict[Any, str] = {
    _NUMBER: f"a number up to {_MAX:g}",
    _COUNT: f"a count up to {_MAX:g}",
    _TEXT: "a text without lone surrogates",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    None: "null",
    _SEED: "an integer from 0 to 2^63 - 1",
}


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raise ResultsFileError, with the path, if the settings of a run do not have the schema."""
    _check(settings, _SETTINGS, where)


def check_record(record: Mapping[str, Any], num_pis: int, where: str) -> None:
    """Raise ResultsFileError, with the path, if the record of an example does not have the schema."""
    _check(record, _RECORD, where)
    _check_curves(record, num_pis, where)


def _check(value: Any, shape: Any, where: str) -> None:  # noqa: ANN401  (a JSON value, and a schema as above)
    """Raise ResultsFileError, with the path, if a value does not have a shape. Additional names are allowed."""
    if isinstance(shape, dict):
        _check(value, dict, where)
        for name, inner in shape.items():
            if name not in value:
                raise ResultsFileError(f"{where}.{name} is missing; the file was not written by `gradellm evaluate`")
            _check(value[name], inner, f"{where}.{name}")
    elif isinstance(shape, _Each):
        _check(value, shape.kind, where)
        for name, inner in value.items() if shape.kind is dict else enumerate(value):
            _check(name, int if shape.kind is list else _TEXT, where)
            _check(inner, shape.of, f"{where}.{str(name)[:60]}")
    elif isinstance(shape, tuple):
        kinds = [arm.kind if isinstance(arm, _Each) else arm for arm in shape]
        if not any(_is_of(value, kind) for kind in kinds):
            wanted = " or ".join(_WANTED[kind] for kind in kinds)
            raise ResultsFileError(f"{where} must be {wanted}, not {short_repr(value)}")
        for arm in shape:
            if isinstance(arm, _Each) and isinstance(value, arm.kind):
                _check(value, arm, where)
    elif not _is_of(value, shape):
        raise ResultsFileError(f"{where} must be {_WANTED[shape]}, not {short_repr(value)}")


def _is_of(value: object, shape: Any) -> bool:  # noqa: ANN401
    if shape is None:
        return value is None
    if shape == _SEED:
        return type(value) is int and 0 <= value < 2**63
    if shape is _NUMBER:
        return type(value) in (int, float) and abs(value) <= _MAX  # type: ignore[arg-type]  # checked by its type
    if shape is _TEXT:
        return isinstance(value, str) and not _LONE_SURROGATE.search(value)
    if shape is _COUNT:
        return type(value) is int and 0 <= value <= _MAX
    return type(value) is shape


def _check_curves(record: Mapping[str, Any], num_pis: int, where: str) -> None:
    for metric, methods in record["metrics"].items():
        for name, values in methods.items():
            for key in ("value", EXPECTED_TOKENS):
                if isinstance(values.get(key), list):
                    raise ResultsFileError(f"{where}.metrics.{metric}.{name}.{key} must be a number")
            curve = values.get("curve", [0.0] * num_pis)
            if not isinstance(curve, list) or len(curve) != num_pis:
                raise ResultsFileError(
                    f"{where}.metrics.{metric}.{name}.curve must have {num_pis} numbers, one for each pi"
                )
