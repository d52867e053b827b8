"""`gradellm verify`: every field of a stored explanation is compared, or named as not checked."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import pytest

from gradellm import Client, Explanation, InvalidExplanationError
from gradellm.errors import InvalidRequestError
from gradellm.explanation.verification import Verdict, verified
from server.conftest import RunningServer


class CachingClient:
    """A client that makes each call once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._results: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**keywords: Any) -> Any:
            key = f"{name} {keywords!r}"
            if key not in self._results:
                try:
                    self._results[key] = getattr(self._client, name)(**keywords)
                except InvalidRequestError as error:
                    self._results[key] = error
            if isinstance(self._results[key], InvalidRequestError):
                raise self._results[key]
            return self._results[key]

        return call


FieldPath = tuple[str | int, ...]


def changes(kind: Any, plain: Any, path: FieldPath = ()) -> Iterator[tuple[FieldPath, Any]]:
    """Each value of a file, and each list's length, with another one of its type: path and new value."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        arms = [arm for arm in get_args(kind) if arm is not type(None)]
        if plain is None:
            for arm in arms:
                yield from ((path, value) for value in other_values(arm, None))
            return
        kind = next((arm for arm in arms if fits(arm, plain)), arms[0])
        origin = get_origin(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        for field in fields(kind):
            yield from changes(hints[field.name], plain[field.name], (*path, field.name))
    elif isinstance(plain, dict):
        for name, value in plain.items():
            yield (*path, name), f"{value}x"
    elif isinstance(plain, list):
        if plain:
            yield path, plain[:-1]
        for index, item in enumerate(plain):
            yield from changes(get_args(kind)[0], item, (*path, index))
        if not plain:
            yield from ((path, [value]) for value in other_values(get_args(kind)[0], None))
    else:
        yield from ((path, value) for value in other_values(kind, plain))


def fits(kind: Any, plain: Any) -> bool:
    if get_origin(kind) is Literal:
        return plain in get_args(kind)
    if is_dataclass(kind):
        return isinstance(plain, dict)
    return isinstance(plain, list) if get_origin(kind) is tuple else type(plain) is kind


def other_values(kind: Any, plain: Any) -> Iterator[Any]:
    if get_origin(kind) is Literal:
        yield from (arm for arm in get_args(kind) if arm != plain)
    elif kind is bool:
        yield not plain
    elif kind is int:
        yield (plain or 0) + 1
    elif kind is float:
        yield (plain if isinstance(plain, float) else 0.0) + 1.0
    elif kind is str:
        yield f"{plain or ''}x"


def with_change(plain: Any, path: FieldPath, value: Any) -> str:
    changed = copy.deepcopy(plain)
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return json.dumps(changed)


def is_named(verdict: Verdict, path: FieldPath) -> bool:
    """Whether the verdict names the field, as changed or as not checked."""
    names = [step for step in path if isinstance(step, str)]
    full_name = ".".join(names)
    named = [mismatch.what for mismatch in verdict.mismatches]
    named += [item.what for item in verdict.not_checked]
    bare = full_name.removeprefix("started.")
    return any(
        name in (full_name, bare, bare.removeprefix("provenance."))
        or bare.startswith(f"{name}.")
        or full_name.startswith(f"{name}.")
        for name in named
    )


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": "Once upon a", "max_new_tokens": 3, "num_alternatives": 2},
    "segments": {
        "prompt": "Once upon a time",
        "max_new_tokens": 3,
        "segments": {"upon": (5, 9)},
        "resolution": "segment",
        "sources": "prefix",
    },
    "words": {
        "prompt": "Once upon a time",
        "max_new_tokens": 3,
        "resolution": "word",
        "top_k_sources": 2,
        "stop": "zzz",
    },
    "chat": {
        "messages": [("system", "Be kind."), ("user", "Hi, fox")],
        "max_new_tokens": 3,
        "temperature": 1.0,
        "seed": 5,
        "contrast": "runner_up",
        "normalise_over": "user",
    },
    "ids": {"prompt_ids": [70, 71, 72], "max_new_tokens": 3, "attribution": "knockout", "layers": 1},
}


@pytest.mark.parametrize("regenerate", [False, True])
@pytest.mark.parametrize("how", REQUESTS)
def test_every_field_is_compared_or_named(demo: RunningServer, how: str, regenerate: bool) -> None:
    with Client(demo.address) as client:
        caching = cast("Client", CachingClient(client))
        stored = client.explain(**REQUESTS[how])
        full = verified(caching, stored, regenerate=regenerate)
        assert full.holds_strictly, full
        plain = json.loads(stored.to_json())
        unnoticed = []
        for path, value in changes(Explanation, plain):
            try:
                changed = Explanation.from_json(with_change(plain, path, value))
                verdict = verified(caching, changed, regenerate=regenerate)
            except InvalidExplanationError:
                continue
            if verdict.holds and not is_named(verdict, path):
                unnoticed.append((path, value))
        assert unnoticed == []
