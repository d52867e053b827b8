"""What a method is to the engine: a row of data, and one function.

Costs count passes of the model over prompt and completion, m + n tokens; methods within a pass read the completion's n
tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor

from gradellm_engine.methods.post_hoc import CompletionModel, ScoreStream
from gradellm_engine.params import Switches

Unit = Literal["", "m", "n"]
Term = tuple[int | str, Unit]
"""A product: a number, or a switch's name; times the prompt's tokens, the completion's, or nothing."""


@dataclass(frozen=True)
class Passes:
    """How many, as a sum of products."""

    terms: tuple[Term, ...] = ()

    def count(self, switches: Switches, m: int, n: int) -> float:
        """For m tokens of a prompt and n of a completion."""
        units = {"": 1, "m": m, "n": n}
        return sum(
            (factor if isinstance(factor, int) else int(getattr(switches, factor))) * units[unit]
            for factor, unit in self.terms
        )

    def __str__(self) -> str:
        products = (
            " ".join(str(part) for part in (factor if unit == "" or factor != 1 else "", unit) if part != "")
            for factor, unit in self.terms
        )
        return " + ".join(products) or "0"


@dataclass(frozen=True)
class Cost:
    """What a method asks of the model.

    Attributes:
        forward: passes.
        backward: passes; a method that has some keeps a graph.
        of_completion_alone: whether they read the n tokens of the completion, not all m + n.
        keeps_attention: whether it keeps every layer's attention weights, as a graph does.
    """

    forward: Passes
    backward: Passes = Passes()
    of_completion_alone: bool = False
    keeps_attention: bool = False

    @property
    def needs_graph(self) -> bool:
        """Whether it needs the memory of a graph over the whole sequence."""
        return self.keeps_attention or (bool(self.backward.terms) and not self.of_completion_alone)


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        switches: what it can be told, and its name.
        description: what it computes, in a sentence.
        cost: what it asks of the model.
        explain: for a method after the fact.
        scores: for one that needs no model: from switches, step and length of the prefix.
        has_target: whether it explains a token's logit, so that a target or a contrast makes sense.
        error: what a row's error is; empty where it has none.
        needs_gates: whether it needs to know a family's gates.
    """

    switches: type[Switches]
    description: str
    cost: Cost
    explain: Callable[[CompletionModel, Any], ScoreStream] | None = None
    scores: Callable[[Any, int, int], Tensor] | None = None
    has_target: bool = True
    error: str = ""
    needs_gates: bool = False

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.switches.name

    @property
    def streams(self) -> bool:
        """Whether it explains token by token while text is generated."""
        return self.explain is None

    @property
    def switch_names(self) -> tuple[str, ...]:
        """Its own switches."""
        return tuple(switch.name for switch in fields(self.switches))
