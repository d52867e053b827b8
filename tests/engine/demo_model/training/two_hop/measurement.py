"""Measures traces on held-out questions of the two-hop task: does the fact behind a generated name come first?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gradellm import Client, Explanation
from gradellm_engine.demo_model.training.two_hop.task import FIRST_HOP, SECOND_HOP, TwoHopExample

SETTINGS: dict[str, dict[str, str]] = {
    "step_relevance": {"attribution": "step_relevance"},
    "paper": {"attribution": "paper"},
    "knockout, no sink": {"attribution": "knockout", "sink": "exclude"},
    "knockout, no sink, per head": {"attribution": "knockout", "sink": "exclude", "rectify": "per_head"},
    "head_abs, no sink": {"loosening": "none", "rectify": "none", "magnitude": "head_abs", "sink": "exclude"},
    "value_zeroing": {"method": "value_zeroing"},
    "relevance": {"method": "relevance"},
}


@dataclass
class Outcome:
    """Counts over the questions that the model answers rightly."""

    asked: int = 0
    answered: int = 0
    traced_hop: int = 0
    """Questions whose first-hop fact has the largest share of all first-hop facts."""
    traced_pair: int = 0
    """Questions whose two facts have the two largest shares of all facts."""
    direct_hop: int = 0
    """The same, by the untraced row."""
    direct_pair: int = 0
    direct_second: int = 0
    """Questions whose second-hop fact has the largest share of its kind, by the untraced row."""
    unexplained: float = 0.0
    """Largest unexplained share."""

    def __str__(self) -> str:
        shares = (
            f"{name} {getattr(self, name) / max(1, self.answered):.3f}"
            for name in ("traced_hop", "traced_pair", "direct_hop", "direct_pair", "direct_second")
        )
        return f"{self.answered} of {self.asked} right: {', '.join(shares)}, unexplained <= {self.unexplained:.3f}"


def measure(client: Client, examples: Iterable[TwoHopExample], keywords: dict[str, str]) -> Outcome:
    """Answer and trace questions: the colour's shares of the eight facts, traced and in one step."""
    outcome = Outcome()
    for example in examples:
        outcome.asked += 1
        if client.explain(messages=messages(example), max_new_tokens=16, attribution=None).text != example.answer:
            continue
        outcome.answered += 1
        trace = explained(client, example, keywords).trace(example.colour, by="segment")
        outcome.unexplained = max(outcome.unexplained, trace.unexplained)
        traced = {part.label: part.share for part in trace.parts}
        direct = {part.label: part.direct for part in trace.parts}
        outcome.traced_hop += comes_first(example, traced)
        outcome.traced_pair += are_first(example, traced)
        outcome.direct_hop += comes_first(example, direct)
        outcome.direct_pair += are_first(example, direct)
        outcome.direct_second += comes_first(example, direct, SECOND_HOP)
    return outcome


def explained(client: Client, example: TwoHopExample, keywords: dict[str, str]) -> Explanation:
    """The answer, with the whole prefix as sources, and each fact as a segment of its own text."""
    content = example.user_content
    segments = {content[span.start : span.end]: (0, span.start, span.end) for span in example.facts}
    attribute: Callable[..., Explanation] = client.attribute
    answer = example.answer
    return attribute(messages=messages(example), completion=answer, segments=segments, sources="prefix", **keywords)


def messages(example: TwoHopExample) -> list[dict[str, str]]:
    return [{"role": "user", "content": example.user_content}]


def comes_first(example: TwoHopExample, shares: dict[str, float], kind: str = FIRST_HOP) -> bool:
    """Whether the answer's fact of a kind has the largest share of the facts of that kind."""
    of_kind = {text_of(example, span.start, span.end) for span in example.facts if span.kind == kind}
    return max(of_kind, key=shares.__getitem__) in evidence(example)


def are_first(example: TwoHopExample, shares: dict[str, float]) -> bool:
    """Whether the answer's two facts have the two largest shares of all facts."""
    facts = {text_of(example, span.start, span.end) for span in example.facts}
    return set(sorted(facts, key=shares.__getitem__)[-2:]) == evidence(example)


def evidence(example: TwoHopExample) -> set[str]:
    return {text_of(example, span.start, span.end) for span in example.evidence}


def text_of(example: TwoHopExample, start: int, end: int) -> str:
    return example.user_content[start:end]
