"""Any method's scores at some steps of a completion that a stream holds.

Each step is explained with the rotary factors of a sequence as long as its own prefix, as it was predicted; see
`gradellm_engine.layers.rotary_switch`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.methods.base import Method
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream, StepScores
from gradellm_engine.params import LayerSwitches, Switches
from gradellm_engine.passes.ragged import ExplainSpec, SequenceChunk

TOKENS_A_PASS = 64  # that are explained within one


def rows_of(model: CompletionModel, method: Method, switches: Switches) -> ScoreStream:
    """A method's work on a completion after the fact, whose passes go over the whole completion.

    One that becomes so long that its rotary factors are others is explained twice, as far as it is short and as a
    whole; of the latter, rows of steps whose prefix is short are not used.
    """
    if method.explain is None:
        raise ValueError(f"{method.name} explains tokens within their own passes")
    given, switch = model.given, model.runner.switch_tokens
    num_short = 0 if switch is None else max(0, switch + 1 - given.num_prompt_tokens)
    if not 0 < num_short < given.num_steps:
        yield from method.explain(model, switches)
        return
    for done, of, first in ((0.0, model.of_first(num_short), 0), (0.5, model, num_short)):
        for result in method.explain(of, switches):
            if not isinstance(result, StepScores):
                yield done + result / 2
            elif result.step >= first:
                yield result


def scores_at(
    model: CompletionModel, method: Method, switches: Switches, domain: Tensor | None, steps: Sequence[int]
) -> Iterator[float | tuple[int, Tensor]]:
    """Yields steps with scores of their whole prefix, and shares of the work; a pass or two between two of them.

    A method after the fact explains all steps, for they share passes; what was not asked for may come, too.

    Args:
        model: the model, with the completion and the slot that holds it.
        method: the method.
        switches: its switches, resolved.
        domain: see `ExplainSpec`.
        steps: which.
    """
    given = model.given
    if method.scores is not None:
        for step in steps:
            yield step, method.scores(switches, step, given.prefix(step))
    elif method.explain is not None:
        for result in rows_of(model, method, switches):
            yield (result.step, result.scores) if isinstance(result, StepScores) else result
    elif given.slot is not None and isinstance(switches, LayerSwitches):
        yield from _within(model, given.slot, ExplainSpec(switches, domain), steps)
    else:
        raise ValueError("a method within a pass needs the slot that holds the completion")


def _within(
    model: CompletionModel, slot: KVSlot, explain: ExplainSpec, steps: Sequence[int]
) -> Iterator[float | tuple[int, Tensor]]:
    """Of a method within a pass. Where steps need other rotary factors than the slot's keys have, it is read anew."""
    given, runner, done = model.given, model.runner, 0
    for is_long in (False, True):  # the slot, which holds the longest, is left so
        alike = [step for step in steps if runner.is_long(given.prefix(step)) == is_long]
        if alike and slot.is_long != is_long:
            for _ in runner.prefill_again(slot, given.ids[: given.prefix(max(alike))], is_long=is_long):
                yield done / len(steps)
        for begin in range(0, len(alike), TOKENS_A_PASS):
            chosen = alike[begin : begin + TOKENS_A_PASS]
            parts = [SequenceChunk.again(slot, given.prefix(step) - 1, given.prefix(step), explain) for step in chosen]
            rows = runner.replay(parts, [given.targets[step] for step in chosen])
            done += len(chosen)
            yield done / len(steps)
            for step, row in zip(chosen, rows, strict=True):
                yield step, row[0]
