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
    """A post-hoc method's scores of the explained steps of a completion.

    Where they lie on both sides of the length at which rotary factors change, the steps with short prefixes are
    explained first, and then the steps with long ones.
    """
    if method.explain is None:
        raise ValueError(f"{method.name} is an in-pass method")
    completion, switch = model.completion, model.runner.switch_tokens
    short = [step for step in completion.steps if switch is None or completion.prefix_length(step) <= switch]
    groups = [steps for steps in (short, completion.steps[len(short) :]) if steps]
    for done, steps in enumerate(groups):
        for result in method.explain(model.restricted(steps), switches):
            yield result if isinstance(result, StepScores) else (done + result) / len(groups)


def scores_at(
    model: CompletionModel, method: Method, switches: Switches, domain: Tensor | None, steps: Sequence[int]
) -> Iterator[float | tuple[int, Tensor]]:
    """Steps with the scores of their whole prefix [m + t], and shares of the work; at most two passes between results.

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
        for result in post_hoc_scores(model.restricted(steps), method, switches):
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
            rows = runner.replay(chunks, completion.restricted(chosen).targets)
            done += len(chosen)
            yield done / len(steps)
            for step, row in zip(chosen, rows, strict=True):
                yield step, row[0]
