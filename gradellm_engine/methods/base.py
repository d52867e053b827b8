"""A method's row in the registry: its switches, its cost and the function that explains.

m is the number of prompt tokens, n of completion tokens. Costs count model passes over m + n tokens; the passes of
in-pass methods read only the completion's n tokens.
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
"""A product: a number or the value of a switch, by name; times m, n or 1."""


@dataclass(frozen=True)
class Passes:
    """A number of passes, as a sum of products."""

    terms: tuple[Term, ...] = ()

    def count(self, switches: Switches, m: int, n: int) -> float:
        """The number of passes for m prompt tokens and n completion tokens."""
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
    """A method's cost in model passes, and what it keeps in memory.

    Attributes:
        forward: forward passes.
        backward: backward passes; a method that has any keeps an autograd graph.
        completion_only: whether passes read only the n tokens of the completion.
        keeps_attention: whether it keeps every layer's attention weights, as an autograd graph does.
    """

    forward: Passes
    backward: Passes = Passes()
    completion_only: bool = False
    keeps_attention: bool = False

    @property
    def needs_graph(self) -> bool:
        """Whether it needs the memory of an autograd graph over the whole sequence."""
        return self.keeps_attention or (bool(self.backward.terms) and not self.completion_only)


@dataclass(frozen=True)
class Method:
    """A method's row in the registry.

    Attributes:
        switches: the class of its switches, with its name.
        description: one sentence, shown to users.
        cost: its cost.
        explain: of a post-hoc method, scores a completion.
        scores: of a method without a model, scores a prefix: from switches, step and length of the prefix.
        has_target: whether it explains a token's logit, so that requests may set a target or a contrast.
        error: what the error of its scores measures, shown to users; empty where it has none.
        needs_gates: whether it needs the names of the family's gates.
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
        """Its name in requests."""
        return self.switches.name

    @property
    def streams(self) -> bool:
        """Whether it explains token by token while text is generated."""
        return self.explain is None

    @property
    def switch_names(self) -> tuple[str, ...]:
        """Names of its switches."""
        return tuple(switch.name for switch in fields(self.switches))
