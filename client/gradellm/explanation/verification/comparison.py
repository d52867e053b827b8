"""Compares a stored explanation with its replay: prompt, tokens, log-probabilities and scores."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING

from gradellm.explanation.queries import total_of
from gradellm.explanation.verification.fields import abbreviated, distance, field_problems, is_close, is_unset
from gradellm.explanation.verification.generation import compare_finish, compare_sampling
from gradellm.explanation.verification.provenance import mismatches
from gradellm.explanation.verification.replay import attribution_settings
from gradellm.explanation.verification.verdict import TOLERANCE, Findings, Verdict
from gradellm.models import Started

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gradellm.explanation.explanation import Explanation
    from gradellm.explanation.verification.prompt import PromptReplay
    from gradellm.models import Attribution, Token

__all__ = ["compared"]

_OF_TEXT = {"text", "start", "end", "word", "source_index"}  # of a token, as far as special tokens have text


def compared(
    stored: Explanation,
    again: Explanation,
    tolerance: float = TOLERANCE,
    *,
    prompt: PromptReplay | None = None,
    redrawn: Explanation | None = None,
) -> Verdict:
    """Compare a stored explanation with `again`, its replay by `replay_keywords`.

    Roles and segments are compared only with `prompt`, the result of `replay_prompt`. Sampling settings and the finish
    reason are compared fully only with `redrawn`, the same completion generated again; otherwise as far as the tokens
    determine them.
    """
    findings = Findings()
    _compare_prompt(stored, again, prompt, findings)
    _compare_tokens(stored, again, tolerance, findings)
    worst, worst_token = _compare_rows(stored, again, tolerance, findings)
    compare_sampling(stored, again, redrawn, tolerance, findings)
    compare_finish(stored, redrawn, findings)
    logprob_differences = [
        distance(stored_token.logprob, replayed_token.logprob)
        for stored_token, replayed_token in zip(stored.tokens, again.tokens, strict=False)
    ]
    return Verdict(
        rows=len(stored.attributions),
        largest_difference=worst,
        worst_token=worst_token,
        largest_logprob_difference=max(logprob_differences, default=0.0),
        mismatches=mismatches(stored.provenance, again.provenance, findings),
        problems=tuple(findings.problems),
        tolerance=tolerance,
        not_checked=tuple(findings.not_checked),
    )


# --- prompt -----------------------------------------------------------------------------------------------------------


def _compare_prompt(
    stored: Explanation, replayed: Explanation, prompt: PromptReplay | None, findings: Findings
) -> None:
    if prompt is None:
        findings.problems += _text_problems(stored, replayed)
        findings.skip("needs the prompt to be tokenized again", "started.prompt_tokens.role, .message and .segment")
    else:
        findings.problems += prompt.problems
        findings.not_checked += prompt.not_checked
    is_exact = prompt is not None and prompt.is_exact
    sink, unscored = attribution_settings(stored).sink, stored.started.unscored_tokens
    if (sink == "exclude") != bool(unscored):
        findings.problems.append(f"sink is {sink}, but the tokens without scores are {list(unscored)}")
    _compare_sources(stored, replayed, is_exact, findings)
    for field in fields(Started):  # fields of later versions
        was, now = getattr(stored.started, field.name), getattr(replayed.started, field.name)
        if field.name in ("prompt_text", "prompt_tokens", "sources", "provenance") or was == now:
            continue
        if is_exact and not is_unset(field, was):
            findings.problems.append(f"{field.name} is {abbreviated(was)}, replay gives {abbreviated(now)}")
        else:
            findings.skip(
                "the file does not have it, or the prompt was replayed in another form", f"started.{field.name}"
            )


def _compare_sources(stored: Explanation, replayed: Explanation, is_exact: bool, findings: Findings) -> None:
    sources = stored.started.sources
    by_token = stored.provenance.attribution is None or stored.provenance.attribution.resolution in (None, "token")
    if by_token == bool(sources):
        findings.problems.append(
            f"resolution is {attribution_settings(stored).resolution}, but there are {len(sources)} sources"
        )
    if is_exact:
        if len(sources) != len(replayed.started.sources):
            findings.problems.append(f"it has {len(sources)} sources, replay gives {len(replayed.started.sources)}")
        for index, (then, now) in enumerate(zip(sources, replayed.started.sources, strict=False)):
            findings.problems += field_problems(then, now, f"source {index}")
    elif sources:
        findings.skip(
            "token scores are summed by them, as stored", "started.sources", "provenance.attribution.resolution"
        )


def _text_problems(stored: Explanation, replayed: Explanation) -> Iterator[str]:
    """Yield prompt texts that contradict the token ids, as far as ids alone determine them."""
    for index, (stored_token, replayed_token) in enumerate(
        zip(stored.prompt_tokens, replayed.prompt_tokens, strict=False)
    ):
        if (
            not (stored_token.special or replayed_token.special)
            and stored_token.text.strip() != replayed_token.text.strip()
        ):
            yield f"token {index} of the prompt is {stored_token.text!r}, not {replayed_token.text!r}"
    ends = [0, *(token.end for token in stored.prompt_tokens)]
    pairs = zip(ends, stored.prompt_tokens, strict=False)
    covered = "".join(stored.prompt_text[max(token.start, before) : token.end] for before, token in pairs)
    if covered != stored.prompt_text:
        yield "the prompt's text is not that of its tokens"
    for index, token in enumerate(stored.prompt_tokens):
        if token.text != stored.prompt_text[token.start : token.end]:
            yield f"token {index} of the prompt is {token.text!r}, which is not the text at its offsets"


# --- tokens -----------------------------------------------------------------------------------------------------------


def _compare_tokens(stored: Explanation, replayed: Explanation, tolerance: float, findings: Findings) -> None:
    if len(stored.tokens) != len(replayed.tokens):
        findings.problems.append(f"it has {len(stored.tokens)} tokens, replay gives {len(replayed.tokens)}")
    text_end = _stop_offset(stored, replayed, findings)
    same_columns = bool(stored.started.sources) == bool(replayed.started.sources)
    handled = {"text", "start", "end", "logprob", "alternatives", *(() if same_columns else ("source_index",))}
    has_special_text = any(token.special and token.text for token in stored.tokens)
    if has_special_text:
        findings.skip(
            "a replay skips special tokens, which this text has", *(f"tokens.{name}" for name in sorted(_OF_TEXT))
        )
        handled |= _OF_TEXT
    names = [field.name for field in fields(replayed.tokens[0]) if field.name not in handled] if replayed.tokens else []
    num_alternatives = max((len(token.alternatives) for token in stored.tokens), default=0)
    for stored_token, replayed_token in zip(stored.tokens, replayed.tokens, strict=False):
        where = f"token {stored_token.index}"
        expected = replace(
            replayed_token,
            text=replayed_token.text[: max(0, text_end - replayed_token.start)],
            start=min(replayed_token.start, text_end),
            end=min(replayed_token.end, text_end),
        )
        is_cut = expected.text != replayed_token.text  # its word and column may differ
        compared_names = ("index", "id", "special") if is_cut else names
        texts = () if has_special_text else ("text", "start", "end")
        findings.problems += field_problems(stored_token, expected, where, (*compared_names, *texts))
        if not is_close(stored_token.logprob, replayed_token.logprob, tolerance):
            findings.problems.append(
                f"{where}: logprob is {stored_token.logprob:.6g}, replay gives {replayed_token.logprob:.6g}"
            )
        if len(stored_token.alternatives) != num_alternatives:
            findings.problems.append(
                f"{where} has {len(stored_token.alternatives)} alternatives, other tokens have {num_alternatives}"
            )
        findings.problems += _alternative_problems(stored_token, replayed_token, tolerance)
    if not same_columns and any(token.source_index is not None for token in stored.tokens):
        findings.skip("the replay has one score per token", "tokens.source_index")


def _stop_offset(stored: Explanation, replayed: Explanation, findings: Findings) -> int:
    """Return the offset at which a stop text ends the completion's text; the text's length without a stop text."""
    text, finished = replayed.text, stored.finished
    if finished is not None and finished.reason == "stop_token":  # which has no text
        return len(stored.text)
    if finished is None or finished.reason != "stop_text":
        return len(text)
    offset = text.find(finished.stop) if finished.stop else -1
    if offset < 0:
        if not any(token.special for token in replayed.tokens):
            findings.problems.append(f"finished.stop: the completion does not contain {abbreviated(finished.stop)}")
        else:
            findings.skip("it may contain special tokens, which have no text", "finished.stop")
        return len(stored.text) if text.startswith(stored.text) else len(text)
    return offset


def _alternative_problems(stored_token: Token, replayed_token: Token, tolerance: float) -> Iterator[str]:
    where = f"token {stored_token.index}"
    if not stored_token.alternatives:
        return
    by_id = {alternative.id: alternative for alternative in replayed_token.alternatives}
    if len({alternative.id for alternative in stored_token.alternatives}) < len(stored_token.alternatives):
        yield f"{where}: an alternative occurs twice"
    for rank, then in enumerate(stored_token.alternatives):
        now = by_id.get(then.id)
        at_rank = replayed_token.alternatives[rank] if rank < len(replayed_token.alternatives) else None
        # Tokens of almost equal probability may change ranks.
        if now is None or at_rank is None or not is_close(then.logprob, at_rank.logprob, tolerance):
            yield f"{where}: alternative {rank} is {abbreviated(then)}, replay gives {abbreviated(at_rank)}"
            continue
        if not is_close(then.logprob, now.logprob, tolerance):
            yield f"{where}: logprob of alternative {rank} is {then.logprob:.6g}, replay gives {now.logprob:.6g}"
        yield from field_problems(then, replace(now, logprob=then.logprob), f"{where}: alternative {rank}")


# --- scores -----------------------------------------------------------------------------------------------------------


def _compare_rows(
    stored: Explanation, replayed: Explanation, tolerance: float, findings: Findings
) -> tuple[float, int | None]:
    """Compare all rows. Return the largest relative difference of a score, and its token."""
    worst, worst_token = 0.0, None
    explained, settings = {row.token_index for row in stored.attributions}, attribution_settings(stored)
    findings.problems += [
        f"token {token.index} has no scores"
        for token in stored.tokens
        if token.index not in explained and settings.explains(token.index)
    ]
    for row in stored.attributions:
        other = replayed.row(row.token_index)
        if other is None:
            findings.problems.append(f"token {row.token_index} has scores, replay gives none")
            continue
        expected = _summed_by_source(stored, replayed, other.scores, row.token_index)
        findings.problems += _row_problems(stored, row, other, expected, tolerance)
        difference = _relative_difference(row.by_column(), expected)
        if worst_token is None or not difference <= worst:  # true for NaN
            worst, worst_token = difference, row.token_index
        if math.isnan(worst):
            break
    limit = settings.top_k_sources
    if limit is not None and all(limit >= len(row.scores) and not row.source_indexes for row in stored.attributions):
        findings.skip("no token has that many sources", "provenance.attribution.top_k_sources")
    return worst, worst_token


def _row_problems(
    stored: Explanation, row: Attribution, other: Attribution, expected: Sequence[float], tolerance: float
) -> Iterator[str]:
    """Yield differences of a row apart from the values of its scores."""
    where = f"token {row.token_index}"
    handled = ("token_index", "scores", "source_indexes", "error")
    yield from field_problems(row, other, where, [field.name for field in fields(row) if field.name not in handled])
    if row.error != other.error and not (
        row.error is not None and other.error is not None and is_close(row.error, other.error, tolerance)
    ):
        yield f"{where}: error is {row.error}, replay gives {other.error}"
    limit = attribution_settings(stored).top_k_sources
    count = len(expected) if limit is None else min(limit, len(expected))
    if len(row.scores) != count:
        yield f"{where} has {len(row.scores)} scores, not {count}"
    elif limit is not None:
        kept_columns = set(row.source_indexes)
        dropped = [abs(score) for column, score in enumerate(expected) if column not in kept_columns]
        kept = min((abs(expected[column]) for column in row.source_indexes if column < len(expected)), default=0.0)
        margin = tolerance * max(map(abs, expected), default=0.0)
        if row.source_indexes and max(dropped, default=0.0) > kept + margin:
            yield f"{where} leaves out a larger score than it has"
        sizes = [abs(score) for score in row.scores]
        if row.source_indexes and any(later > before + margin for before, later in itertools.pairwise(sizes)):
            yield f"{where}: its scores are not sorted by magnitude"


def _relative_difference(scores: dict[int, float], expected: Sequence[float]) -> float:
    peak = max((abs(score) for score in expected), default=0.0)
    differences = [
        abs(score - expected[column]) if column < len(expected) else math.inf for column, score in scores.items()
    ]
    if any(map(math.isnan, differences)):
        return math.nan
    largest = max(differences, default=0.0)
    return largest / peak if peak else (0.0 if largest == 0 else math.inf)


def _summed_by_source(
    stored: Explanation, replayed: Explanation, scores: Sequence[float], index: int
) -> Sequence[float]:
    """Sum a row's token scores to the columns of the stored explanation: words or segments."""
    if replayed.started.sources or not stored.started.sources:
        return scores
    num_prompt_tokens = len(stored.prompt_tokens)
    sums = []
    for source in stored.sources:
        if not source.token_indexes and min(source.completion_indexes, default=index) >= index:
            break  # sources after the token
        parts = [scores[i] for i in source.token_indexes]
        parts += [
            scores[num_prompt_tokens + i]
            for i in source.completion_indexes
            if i < index and num_prompt_tokens + i < len(scores)
        ]
        sums.append(total_of(parts))
    return sums
