"""From a stored explanation to the keywords of `attribute` that replay it, teacher-forced."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gradellm.errors import InvalidExplanationError
from gradellm.explanation.queries import selected_tokens
from gradellm.explanation.words import Word

if TYPE_CHECKING:
    from gradellm.explanation.explanation import Explanation
    from gradellm.models import Attribution, AttributionSettings
    from gradellm.wire.keywords import AttributeKeywords

__all__ = [
    "attribution_row",
    "attribution_settings",
    "check_normalisation",
    "check_replayable",
    "completion_keywords",
    "contrast_keywords",
    "replay_keywords",
]

_MAX_ALTERNATIVES = 20  # the most that a server sends
# Settings that are not replayed as keywords of the same name: they only shape the output, or have another name.
_NOT_REPLAYED = (
    "sources", "resolution", "top_k_sources", "delivery", "chunk_size", "preset", "target_token_id", "seed",
)  # fmt: skip


def replay_keywords(explanation: Explanation) -> AttributeKeywords:
    """Return the keywords of `attribute` that replay an explanation by its token ids, with one score per token.

    Raises InvalidExplanationError if the explanation lacks information that is needed.
    """
    keywords = completion_keywords(explanation)
    check_normalisation(explanation)
    return keywords


def check_replayable(explanation: Explanation) -> None:
    """Raise InvalidExplanationError if the explanation lacks information that a replay needs."""
    completion_keywords(explanation)


def attribution_settings(explanation: Explanation) -> AttributionSettings:
    """Return the resolved settings. Raises InvalidExplanationError for an explanation without attribution."""
    settings = explanation.provenance.attribution
    if settings is None or not explanation.attributions:
        raise InvalidExplanationError("nothing was explained: there is no attribution to verify")
    return settings


def check_normalisation(explanation: Explanation) -> None:
    """Raise InvalidExplanationError for normalise_over="user", which needs roles that token ids do not carry."""
    settings = attribution_settings(explanation)
    if settings.normalise_over == "user" and any(token.role != "user" for token in explanation.prompt_tokens):
        raise InvalidExplanationError("normalise_over='user' cannot be replayed from token ids, which have no roles")


def completion_keywords(explanation: Explanation) -> AttributeKeywords:
    """Return the keywords that replay the completion after the prompt's token ids.

    Raises InvalidExplanationError if the explanation has no attribution or begins with forced tokens.
    """
    settings = attribution_settings(explanation)
    if not explanation.tokens or explanation.tokens[0].index != 0:
        raise InvalidExplanationError("the completion began with forced tokens, whose ids are not stored")
    keywords: dict[str, Any] = {
        field.name: value
        for field in fields(settings)
        if field.name not in _NOT_REPLAYED and (value := getattr(settings, field.name)) not in (None, ())
    }
    if settings.seed is not None:
        keywords["attribution_seed"] = settings.seed
    if settings.target_token_id is not None:
        keywords["target"] = settings.target_token_id
    if settings.tokens:  # some may be beyond the end that the completion has
        keywords["tokens"] = [index for index in settings.tokens if index < len(explanation.tokens)]
    keywords["sources"] = settings.sources or "prompt"
    keywords["prompt_ids"] = [token.id for token in explanation.prompt_tokens]
    keywords["completion_ids"] = [token.id for token in explanation.tokens]
    has_alternatives = any(token.alternatives for token in explanation.tokens)
    keywords["num_alternatives"] = _MAX_ALTERNATIVES if has_alternatives else 1
    return keywords  # type: ignore[return-value]


def contrast_keywords(explanation: Explanation, place: Word | int, instead: str | int) -> tuple[int, AttributeKeywords]:
    """Return the index of the explained token, and the keywords of `attribute` for `Client.contrast`.

    Raises InvalidExplanationError if the explanation has no such token or lacks information that is needed.
    """
    index = place.token_indexes[0] if isinstance(place, Word) else place
    (index,) = selected_tokens(explanation, index)
    keywords: dict[str, Any] = dict(replay_keywords(explanation))
    keywords["completion_ids"] = keywords["completion_ids"][: index + 1]
    keywords["contrast"], keywords["tokens"] = instead, index
    return index, keywords  # type: ignore[return-value]


def attribution_row(explanation: Explanation, index: int) -> Attribution:
    """Return a token's attribution row. Raises InvalidExplanationError if it has none."""
    row = explanation.row(index)
    if row is None:
        raise InvalidExplanationError(f"the server did not explain token {index}")
    return row
