"""Any method's scores at selected steps of a completion, which a KV slot holds.

Each step is explained with the rotary factors that it was predicted with, those of a sequence as long as its prefix:
see `gradellm_engine.layers.rotary_switch`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from gradellm_engine.kv_cache.pool import KVSlot
from gradellm_engine.methods.base import Method
from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream, StepScores
from gradellm_engine.params import LayerSwitches, Switches
from gradellm_engine.passes.base import ExplainSpec, SequenceChunk

TOKENS_PER_PASS = 64  # explained in one pass of an in-pass method


def post_hoc_scores(model: CompletionModel, method: Method, switches: Switches) -> ScoreStream:
    """A post-hoc method's scores of all steps of a completion.

    Where the completion crosses the length at which rotary factors change, it is explained twice: truncated to the
    steps with short prefixes, and as a whole, of which only the steps with long prefixes are used.
    """
    if method.explain is None:
        raise ValueError(f"{method.name} is an in-pass method")
    completion, switch = model.completion, model.runner.switch_tokens
    num_short = 0 if switch is None else max(0, switch + 1 - completion.num_prompt_tokens)
    if not 0 < num_short < completion.num_steps:
        yield from method.explain(model, switches)
        return
    for done, truncated, first in ((0.0, model.truncated(num_short), 0), (0.5, model, num_short)):
        for result in method.explain(truncated, switches):
            if not isinstance(result, StepScores):
                yield done + result / 2
            elif result.step >= first:
                yield result


def scores_at(
    model: CompletionModel, method: Method, switches: Switches, domain: Tensor | None, steps: Sequence[int]
) -> Iterator[float | tuple[int, Tensor]]:
    """Steps with the scores of their whole prefix [m + t], and shares of the work; at most two passes between results.

    A post-hoc method explains all steps, which share passes; steps that are not selected may come too.

    Args:
        model: the model for the completion, whose slot holds it.
        method: the method.
        switches: its switches, resolved.
        domain: see `ExplainSpec`.
        steps: the selected steps.
    """
    completion = model.completion
    if method.scores is not None:
        for step in steps:
            yield step, method.scores(switches, step, completion.prefix_length(step))
    elif method.explain is not None:
        for result in post_hoc_scores(model, method, switches):
            yield (result.step, result.scores) if isinstance(result, StepScores) else result
    elif completion.slot is not None and isinstance(switches, LayerSwitches):
        yield from _in_pass_scores(model, completion.slot, ExplainSpec(switches, domain), steps)
    else:
        raise ValueError("an in-pass method needs the KV slot of the completion")


def _in_pass_scores(
    model: CompletionModel, slot: KVSlot, explain: ExplainSpec, steps: Sequence[int]
) -> Iterator[float | tuple[int, Tensor]]:
    """An in-pass method's scores; the slot is refilled where its keys have other rotary factors than steps need."""
    completion, runner, done = model.completion, model.runner, 0
    for is_long in (False, True):  # long prefixes last: the slot then keeps the rotary factors of its full length
        alike = [step for step in steps if runner.is_long(completion.prefix_length(step)) == is_long]
        if alike and slot.is_long != is_long:
            for _ in runner.prefill_again(
                slot, completion.ids[: completion.prefix_length(max(alike))], is_long=is_long
            ):
                yield done / len(steps)
        for begin in range(0, len(alike), TOKENS_PER_PASS):
            chosen = alike[begin : begin + TOKENS_PER_PASS]
            chunks = [
                SequenceChunk.replay(slot, completion.prefix_length(step) - 1, completion.prefix_length(step), explain)
                for step in chosen
            ]
            rows = runner.replay(chunks, [completion.targets[step] for step in chosen])
            done += len(chosen)
            yield done / len(steps)
            for step, row in zip(chosen, rows, strict=True):
                yield step, row[0]
