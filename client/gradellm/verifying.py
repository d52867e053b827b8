"""For the auditor: computes a stored explanation again, and tells what differs.

What was stored says what to send: its token ids, and its settings as they were resolved. Scores are asked for one a
token, whatever was asked for then: a word's or a segment's is the sum of its tokens'.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from gradellm.errors import InvalidExplanationError
from gradellm.views import selected
from gradellm.words import Word

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradellm.explanation import Explanation
    from gradellm.requests import AttributeKeywords
    from gradellm.results import Attribution, AttributionSettings, Provenance, Source

__all__ = ["Mismatch", "Verdict", "compared", "contrast_keywords", "explained_row", "replay_keywords"]

_TOLERANCE = 1e-3  # of a row's largest score: other kernels, threads and batches round differently
_MODEL = ("weights_sha256", "tokenizer_sha256", "chat_template_sha256", "dtype", "quantization", "attention_kernel",
          "family", "num_layers")  # fmt: skip
_FORM = ("sources", "resolution", "top_k_sources", "delivery", "chunk_size", "preset", "target_token_id", "seed")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something that was otherwise when the explanation was made."""

    what: str
    """Which part of the provenance, such as model.weights_sha256 or versions.torch."""
    then: str
    now: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of computing it again."""

    rows: int
    """Tokens whose scores were compared."""
    largest_difference: float
    """Of a score, relative to the largest of its row."""
    worst_token: int | None
    """In whose row that is; None where there are none."""
    largest_logprob_difference: float
    mismatches: tuple[Mismatch, ...]
    """Of the provenance."""
    problems: tuple[str, ...] = ()
    """What is amiss beside numbers: rows, scores or texts that are missing or others."""
    tolerance: float = _TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether the same came again, scores within the tolerance. Mismatches alone do not decide it."""
        return self.rows > 0 and not self.problems and self.largest_difference <= self.tolerance  # NaN is not

    def to_plain(self) -> dict[str, Any]:
        """Return it in what JSON can hold."""
        return {"holds": self.holds, **asdict(self)}


def replay_keywords(explanation: Explanation) -> AttributeKeywords:
    """Return the keywords of `attribute` that compute it again.

    Raises InvalidExplanationError where what was stored does not say enough.
    """
    settings = explanation.provenance.attribution
    if settings is None or not explanation.attributions:
        raise InvalidExplanationError("nothing was explained, so there is nothing to verify")
    if not explanation.tokens or explanation.tokens[0].index != 0:
        raise InvalidExplanationError("the completion began with forced tokens, whose ids are not stored")
    if settings.normalise_over == "user" and any(token.role != "user" for token in explanation.prompt_tokens):
        raise InvalidExplanationError("normalise_over='user' cannot be replayed from token ids, which have no roles")
    keywords: dict[str, Any] = {
        field.name: value
        for field in fields(settings)
        if field.name not in _FORM and (value := getattr(settings, field.name)) not in (None, ())
    }
    if settings.seed is not None:
        keywords["attribution_seed"] = settings.seed
    if settings.target_token_id is not None:
        keywords["target"] = settings.target_token_id
    keywords["sources"] = settings.sources or "prompt"
    keywords["prompt_ids"] = [token.id for token in explanation.prompt_tokens]
    keywords["completion_ids"] = [token.id for token in explanation.tokens]
    return keywords  # type: ignore[return-value]


def contrast_keywords(explanation: Explanation, place: Word | int, instead: str | int) -> tuple[int, AttributeKeywords]:
    """Return which token is explained, and the keywords of `attribute` that tell why it came and not another.

    Raises InvalidExplanationError where the explanation has no such token, or does not say enough.
    """
    index = place.token_indexes[0] if isinstance(place, Word) else place
    (index,) = selected(explanation, index)
    keywords: dict[str, Any] = dict(replay_keywords(explanation))
    keywords["completion_ids"] = keywords["completion_ids"][: index + 1]
    keywords["contrast"] = instead
    return index, keywords  # type: ignore[return-value]


def explained_row(explanation: Explanation, index: int) -> Attribution:
    """Return a token's attribution. Raises InvalidExplanationError where the server has not explained it."""
    row = explanation.row(index)
    if row is None:
        raise InvalidExplanationError(f"the server did not explain token {index}")
    return row


def compared(stored: Explanation, again: Explanation, tolerance: float = _TOLERANCE) -> Verdict:
    """Compare a stored explanation with the same one, computed again at one score a token."""
    worst, worst_token = 0.0, None
    problems: list[str] = []
    explained = {row.token_index for row in stored.attributions}
    problems += [f"token {token.index} has no scores" for token in stored.tokens if token.index not in explained]
    for row in stored.attributions:
        other = explained_row(again, row.token_index)
        expected = _coarsened(stored, other.scores, row.token_index)
        problems += _problems(stored, row, other, expected)
        difference = _difference(row.by_column(), expected)
        if worst_token is None or not difference <= worst:  # also where it is NaN
            worst, worst_token = difference, row.token_index
        if math.isnan(worst):
            break
    logprobs = [abs(a.logprob - b.logprob) for a, b in zip(stored.tokens, again.tokens, strict=False)]
    mismatches = _mismatches(stored.provenance, again.provenance)
    problems += _other_texts(stored, again)
    return Verdict(
        len(stored.attributions),
        worst,
        worst_token,
        max(logprobs, default=0.0),
        mismatches,
        tuple(problems),
        tolerance,
    )


def _problems(stored: Explanation, row: Attribution, other: Attribution, expected: Sequence[float]) -> Iterator[str]:
    """What is amiss with a row beside its numbers."""
    where = f"token {row.token_index}"
    for what in ("target_token_id", "contrast_token_id"):
        if getattr(row, what) != getattr(other, what):
            yield f"{where}: its {what} is {getattr(row, what)}, not {getattr(other, what)}"
    settings = stored.provenance.attribution
    limit = None if settings is None else settings.top_k_sources
    count = len(expected) if limit is None else min(limit, len(expected))
    if len(row.scores) != count:
        yield f"{where} has {len(row.scores)} scores, not {count}"
    elif limit is not None:
        left_out = [abs(score) for column, score in enumerate(expected) if column not in row.source_indexes]
        kept = min((abs(expected[column]) for column in row.source_indexes), default=0.0)
        if max(left_out, default=0.0) > kept + _TOLERANCE * max(map(abs, expected), default=0.0):
            yield f"{where} leaves out a larger score than it has"


def _other_texts(stored: Explanation, again: Explanation) -> Iterator[str]:
    """Texts that are not those of the ids beside them; what a stop text cut off may be empty."""
    for ours, theirs in zip(stored.tokens, again.tokens, strict=False):
        if ours.id != theirs.id or (ours.text != theirs.text and not theirs.text.startswith(ours.text)):
            yield f"token {ours.index} is {ours.text!r}, not {theirs.text!r}"
    for index, (mine, its) in enumerate(zip(stored.prompt_tokens, again.prompt_tokens, strict=False)):
        if not (mine.special or its.special) and mine.text.strip() != its.text.strip():
            yield f"token {index} of the prompt is {mine.text!r}, not {its.text!r}"
    placed = "".join(
        stored.prompt_text[max(token.start, before) : token.end]
        for before, token in zip(
            [0, *(token.end for token in stored.prompt_tokens)], stored.prompt_tokens, strict=False
        )
    )
    if placed != stored.prompt_text:
        yield "the prompt's text is not that of its tokens"


def _difference(found: dict[int, float], expected: Sequence[float]) -> float:
    peak = max((abs(score) for score in expected), default=0.0)
    differences = [
        abs(score - expected[column]) if column < len(expected) else math.inf for column, score in found.items()
    ]
    if any(map(math.isnan, differences)):
        return math.nan
    largest = max(differences, default=0.0)
    return largest / peak if peak else (0.0 if largest == 0 else math.inf)


def _coarsened(stored: Explanation, scores: Sequence[float], index: int) -> Sequence[float]:
    """Scores of single tokens, added up to the columns that the stored explanation has for this token."""
    sources: Sequence[Source] = stored.sources
    if not stored.started.sources:
        return scores
    num_prompt_tokens = len(stored.prompt_tokens)
    sums = []
    for source in sources:
        if not source.token_indexes and min(source.completion_indexes, default=index) >= index:
            break  # what lies behind the token
        its = [scores[i] for i in source.token_indexes]
        its += [
            scores[num_prompt_tokens + i]
            for i in source.completion_indexes
            if i < index and num_prompt_tokens + i < len(scores)
        ]
        sums.append(math.fsum(its))
    return sums


def _mismatches(then: Provenance, now: Provenance) -> tuple[Mismatch, ...]:
    pairs = [(f"model.{name}", getattr(then.model, name), getattr(now.model, name)) for name in _MODEL]
    packages = sorted(then.versions.keys() | now.versions.keys())
    pairs += [(f"versions.{name}", then.versions.get(name, ""), now.versions.get(name, "")) for name in packages]
    if then.attribution is not None and now.attribution is not None:
        pairs += [(f"attribution.{name}", *both) for name, both in _settings(then.attribution, now.attribution).items()]
    return tuple(Mismatch(what, str(was), str(is_now)) for what, was, is_now in pairs if was != is_now)


def _settings(then: AttributionSettings, now: AttributionSettings) -> dict[str, tuple[object, object]]:
    return {
        field.name: (getattr(then, field.name), getattr(now, field.name))
        for field in fields(then)
        if field.name not in _FORM
    }
