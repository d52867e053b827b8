"""Compares what generated the completion: sampling settings, and why and where it ended."""

from __future__ import annotations

import itertools
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gradellm.explanation.verification.fields import abbreviated, field_problems
from gradellm.models import Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gradellm.explanation.explanation import Explanation
    from gradellm.explanation.verification.verdict import Findings
    from gradellm.models import Finished

__all__ = ["compare_finish", "compare_sampling", "regenerated"]

_BY_EFFECT = "only by its effect: the same tokens are generated"


def regenerated(
    explain: Callable[[dict[str, Any]], Explanation], stored: Explanation, prompt: dict[str, Any]
) -> Explanation | None:
    """Generate the completion again with the stored sampling settings; None if it was given (teacher-forced).

    `explain` is `Client.explain` without attribution, `prompt` the keywords of the prompt.
    """
    sampling = stored.provenance.sampling
    if sampling is None or (stored.finished is not None and stored.finished.reason == "end_of_completion"):
        return None
    stored_settings = {field.name: getattr(sampling, field.name) for field in fields(Sampling)}
    settings = {name: value for name, value in stored_settings.items() if value is not None}
    settings["max_new_tokens"] = sampling.max_new_tokens or None
    if stored.finished is None:  # the stream was interrupted
        settings["max_new_tokens"] = len(stored.tokens)
    return explain({**prompt, **settings})


def compare_sampling(
    stored: Explanation, replayed: Explanation, redrawn: Explanation | None, tolerance: float, findings: Findings
) -> None:
    """Compare the tokens with those that the sampling settings generate."""
    sampling, finished = stored.provenance.sampling, stored.finished
    names = [f"provenance.sampling.{field.name}" for field in fields(Sampling)]
    if sampling is None:
        return
    if finished is not None and finished.reason == "end_of_completion":  # a given completion has default settings
        for field in fields(Sampling):
            was, now = getattr(sampling, field.name), getattr(replayed.provenance.sampling, field.name, None)
            if was is not None and was != now:
                findings.problems.append(f"the completion was given, but sampling.{field.name} is {abbreviated(was)}")
        return
    if sampling.max_new_tokens and len(stored.tokens) > sampling.max_new_tokens:
        findings.problems.append(
            f"it has {len(stored.tokens)} tokens, more than max_new_tokens={sampling.max_new_tokens}"
        )
    is_greedy = sampling.temperature == 0 and not sampling.changes_logits
    if is_greedy:
        findings.problems += _greedy_problems(stored, replayed, tolerance)
    if redrawn is not None:
        findings.problems += _redrawn_problems(stored, redrawn)
        findings.skip(_BY_EFFECT, *names)
    elif is_greedy:
        findings.skip(_BY_EFFECT, names[1])
        findings.skip("no effect on greedy decoding; --regenerate compares them", *names[:1], *names[2:])
    else:
        how = "sampled" if sampling.temperature else "chosen by changed logits"
        findings.skip(f"tokens were {how}; --regenerate samples them again", *names)


def _greedy_problems(stored: Explanation, replayed: Explanation, tolerance: float) -> Iterator[str]:
    for stored_token, replayed_token in zip(stored.tokens, replayed.tokens, strict=False):
        best = replayed_token.alternatives[0] if replayed_token.alternatives else None
        if best is not None and replayed_token.logprob < best.logprob - tolerance * max(1.0, abs(best.logprob)):
            where = f"token {stored_token.index}"
            yield f"{where} is {abbreviated(stored_token.text)}, greedy decoding gives {abbreviated(best.text)}"


def _redrawn_problems(stored: Explanation, redrawn: Explanation) -> Iterator[str]:
    """Yield the first difference from the regenerated completion: later tokens depend on it."""
    for stored_token, generated_token in itertools.zip_longest(stored.tokens, redrawn.tokens):
        if stored_token is None or generated_token is None:
            yield f"it has {len(stored.tokens)} tokens, its sampling settings generate {len(redrawn.tokens)}"
            return
        if stored_token.id != generated_token.id:
            yield (
                f"token {stored_token.index} is {abbreviated(stored_token.text)}, its sampling settings generate "
                f"{abbreviated(generated_token.text)}; later tokens were not compared"
            )
            return
        yield from field_problems(
            stored_token, generated_token, f"token {stored_token.index}", ("text", "start", "end", "special")
        )


def compare_finish(stored: Explanation, redrawn: Explanation | None, findings: Findings) -> None:
    """Check whether the finish reason and the token counts are consistent with the completion."""
    finished, sampling = stored.finished, stored.provenance.sampling
    if finished is None:
        findings.skip("the stream was interrupted before it", "finished")
        return
    findings.problems += _end_problems(stored, finished, sampling)
    if redrawn is not None and redrawn.finished is not None:
        findings.problems += field_problems(finished, redrawn.finished, "finished", ("reason", "stop"))
    usage = finished.usage
    counts = {
        "prompt_tokens": len(stored.prompt_tokens),
        "completion_tokens": len(stored.tokens),
        "attributed_tokens": len(stored.attributions),
    }
    for name, count in counts.items():
        if getattr(usage, name) != count:
            findings.problems.append(f"finished.usage.{name} is {getattr(usage, name)}, not {count}")
    findings.skip(
        "a measurement of that run",
        *(f"finished.usage.{field.name}" for field in fields(usage) if field.name not in counts),
        *(f"finished.timings.{field.name}" for field in fields(finished.timings)),
    )


def _end_problems(stored: Explanation, finished: Finished, sampling: Sampling | None) -> Iterator[str]:
    count, last = len(stored.tokens), stored.tokens[-1]
    reason = finished.reason
    if reason is None:
        yield "finished.reason is not known to this version"
    if finished.stop and reason != "stop_text":
        yield f"finished.stop is {abbreviated(finished.stop)}, but finished.reason is {reason}"
    if reason == "end_of_completion" or sampling is None:
        if reason != "end_of_completion":
            yield f"finished.reason is {reason}, but nothing was generated"
        return
    if reason == "stop_text" and finished.stop not in sampling.stop:
        yield f"finished.stop is {abbreviated(finished.stop)}, which is not in sampling.stop"
    if reason == "stop_token" and last.id not in sampling.stop_token_ids:
        yield f"finished.reason is stop_token, but token {last.id} is not in sampling.stop_token_ids"
    if reason == "end_of_text" and not last.special:
        yield f"finished.reason is end_of_text, but the last token is {abbreviated(last.text)}"
    if reason == "max_new_tokens" and sampling.max_new_tokens and count != sampling.max_new_tokens:
        yield f"finished.reason is max_new_tokens={sampling.max_new_tokens}, but there are {count} tokens"
    if reason != "stop_text" and not sampling.min_new_tokens:  # within the first tokens, stop texts are none
        yield from (
            f"the completion contains the stop text {abbreviated(stop)}, but finished.reason is {reason}"
            for stop in sampling.stop
            if stop and stop in stored.text
        )
