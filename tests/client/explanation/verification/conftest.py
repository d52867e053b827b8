"""A complete explanation, as a server sends it, which equals its own replay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from client.explanation.conftest import explanation
from gradellm import Alternative, Attribution, AttributionSettings, Explanation, Finished, Timings, Usage

ROWS = ((0.0, 1.0, 0.0, 2.0, 1.0, 0.0), (4.0, 0.0, -1.0, 0.0, 1.0, 0.0), (0.5,) * 6, (0.0, 0.0, 0.0, 0.0, 0.0, 5.0))


def complete(*, finished: dict[str, Any] | None = None, **sampling: Any) -> Explanation:
    """Greedy decoding of " It purrs loud", every token with its two most probable and a score for each prompt token.

    `sampling` and `finished` are changes of the fields of those names.
    """
    partial = explanation()
    assert partial.provenance.sampling is not None
    tokens = tuple(
        replace(token, alternatives=(Alternative(token.id, token.text, -1.0), Alternative(7, " x", -2.0)))
        for token in partial.tokens
    )
    rows = tuple(Attribution(index, scores, (), 50 + index, None) for index, scores in enumerate(ROWS))
    settings = replace(partial.provenance.sampling, **{"max_new_tokens": 4, **sampling})
    end = Finished("max_new_tokens", "", Usage(6, 4, 4, 0), Timings(0.0, 0.1, 0.2, 0.3))
    provenance = replace(partial.provenance, sampling=settings)
    started = replace(partial.started, provenance=provenance)
    return Explanation(started, tokens, rows, replace(end, **(finished or {})))


def with_settings(loaded: Explanation, **changes: Any) -> Explanation:
    """The explanation with other attribution settings in its provenance."""
    return with_provenance(loaded, attribution=replace(settings_of(loaded), **changes))


def with_model(loaded: Explanation, **changes: Any) -> Explanation:
    """The explanation with another model in its provenance."""
    return with_provenance(loaded, model=replace(loaded.provenance.model, **changes))


def with_provenance(loaded: Explanation, **changes: Any) -> Explanation:
    """The explanation with another provenance."""
    return replace(loaded, started=replace(loaded.started, provenance=replace(loaded.provenance, **changes)))


def with_token(loaded: Explanation, index: int, **changes: Any) -> Explanation:
    """The explanation with one token changed."""
    tokens = list(loaded.tokens)
    tokens[index] = replace(tokens[index], **changes)
    return replace(loaded, tokens=tuple(tokens))


def with_row(loaded: Explanation, index: int, **changes: Any) -> Explanation:
    """The explanation with one attribution row changed."""
    rows = list(loaded.attributions)
    rows[index] = replace(rows[index], **changes)
    return replace(loaded, attributions=tuple(rows))


def settings_of(loaded: Explanation) -> AttributionSettings:
    """The attribution settings, which are there."""
    assert loaded.provenance.attribution is not None
    return loaded.provenance.attribution
