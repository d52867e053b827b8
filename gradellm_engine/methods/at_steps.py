"""Any method's scores at some steps of a completion that a stream holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from gradellm_engine.methods.afterwards import Row, WholeModel
from gradellm_engine.methods.method import Method
from gradellm_engine.passes import Explain, Part
from gradellm_engine.settings import LayerSwitches, Switches

TOKENS_A_PASS = 64  # that are explained within one


def scores_at(
    model: WholeModel, method: Method, switches: Switches, domain: Tensor | None, steps: Sequence[int]
) -> Iterator[float | tuple[int, Tensor]]:
    """Yields steps with scores of their whole prefix, and shares of the work; a pass or two between two of them.

    A method after the fact explains all steps, for they share passes; what was not asked for may come, too.

    Args:
        model: the model, with the completion and the slot that holds it.
        method: the method.
        switches: its switches, resolved.
        domain: see `Explain`.
        steps: which.
    """
    given = model.given
    if method.scores is not None:
        for step in steps:
            yield step, method.scores(switches, step, given.prefix(step))
    elif method.explain is not None:
        for result in method.explain(model, switches):
            yield (result.step, result.scores) if isinstance(result, Row) else result
    elif given.slot is not None and isinstance(switches, LayerSwitches):
        explain = Explain(switches, domain)
        for begin in range(0, len(steps), TOKENS_A_PASS):
            chosen = steps[begin : begin + TOKENS_A_PASS]
            parts = [Part.again(given.slot, given.prefix(step) - 1, given.prefix(step), explain) for step in chosen]
            rows = model.decoder.replay(parts, [given.targets[step] for step in chosen])
            yield (begin + len(chosen)) / len(steps)
            for step, row in zip(chosen, rows, strict=True):
                yield step, row[0]
    else:
        raise ValueError("a method within a pass needs the slot that holds the completion")
