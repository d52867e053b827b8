"""Log-probabilities in answers of OpenAI's API: of chats, and of the older completions."""

from __future__ import annotations

from typing import Any

__all__ = ["field_of", "told_logprobs"]

_UNKNOWN = -9999.0  # vLLM's for one that JSON cannot have


def told_logprobs(choice: Any, count: int) -> tuple[list[float | None], list[list[float]]]:  # noqa: ANN401
    """Return what a choice tells of its tokens: log-probabilities, and for each those of the most probable tokens.

    Both are of `count` tokens: None and empty where the choice tells nothing, or of another number of tokens.
    """
    told = field_of(choice, "logprobs")
    values, tops = field_of(told, "token_logprobs"), field_of(told, "top_logprobs")
    if values is None:
        content = field_of(told, "content")
        content = content if isinstance(content, list) else []
        values = [field_of(token, "logprob") for token in content]
        tops = [field_of(token, "top_logprobs") for token in content]
    if not isinstance(values, list) or len(values) != count:
        return [None] * count, [[] for _ in range(count)]
    tops = tops if isinstance(tops, list) and len(tops) == count else [None] * count
    return [_known(value) for value in values], [_top(top) for top in tops]


def field_of(value: Any, name: str) -> Any:  # noqa: ANN401
    """Return a field of a part of an answer, be it an object or a mapping; None where it is absent."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _top(told: Any) -> list[float]:  # noqa: ANN401 (a list of tokens, or log-probabilities by token)
    if isinstance(told, dict):
        values = list(told.values())
    else:
        values = [field_of(token, "logprob") for token in told] if isinstance(told, list) else []
    return [known for known in map(_known, values) if known is not None]


def _known(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return min(float(value), 0.0) if is_number and value > _UNKNOWN else None  # type: ignore[arg-type,operator]
