"""A model with two implementations: the engine, and Transformers with eager attention, one prefix at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradellm_engine import AttributionSettings, Engine, Sources, Step, Switches
from gradellm_engine.methods.registry import METHODS

PROMPT = "A red fox."
COMPLETION = [70, 71, 72]


@dataclass
class Case:
    """One model in the engine and in Transformers.

    Attributes:
        engine: the engine.
        reference: Transformers' model in float64, with eager attention.
    """

    engine: Engine
    reference: Any

    @property
    def ids(self) -> list[int]:
        return self.engine.tokenize(PROMPT).ids

    def steps(self, switches: Switches, completion: Sequence[int] = COMPLETION, **options: Any) -> list[Step]:
        settings = AttributionSettings(method=switches, sources=Sources.PREFIX, **options)
        return list(self.engine.attribute(PROMPT, completion, settings))

    def rows(self, switches: Switches, completion: Sequence[int] = COMPLETION, **options: Any) -> list[Tensor]:
        """Scores over the whole prefix, one row for each step."""
        return [scores_of(step) for step in self.steps(switches, completion, **options)]

    def prefixes(self, completion: Sequence[int] = COMPLETION) -> list[tuple[list[int], int]]:
        """Each step's prefix and the token after it."""
        return [([*self.ids, *completion[:step]], token_id) for step, token_id in enumerate(completion)]

    def attentions(self, ids: Sequence[int]) -> list[Tensor]:
        """The reference's attention weights of every layer. [H, S, S] each"""
        with torch.no_grad():
            output = self.reference(torch.tensor([list(ids)]), output_attentions=True, use_cache=False)
        return [weights[0] for weights in output.attentions]

    def embed(self, ids: Sequence[int]) -> Tensor:
        """[S, h], float64"""
        embedded: Tensor = self.reference.get_input_embeddings()(torch.tensor(list(ids))).detach()
        return embedded

    def logits(self, embeddings: Tensor) -> Tensor:
        """Logits after the last token of each sequence. [B, S, h] -> [B, V]"""
        positions = torch.arange(embeddings.shape[1])[None].expand(embeddings.shape[:2])
        logits: Tensor = self.reference(inputs_embeds=embeddings, position_ids=positions, use_cache=False).logits
        return logits[:, -1]


def quick(name: str, **switches: int) -> Switches:
    """A method's settings, with those of `switches` that it has; small numbers make it quick."""
    method = METHODS[name]
    return method.switches(**{switch: value for switch, value in switches.items() if switch in method.switch_names})


def scores_of(step: Step) -> Tensor:
    assert step.attribution is not None
    return step.attribution.scores


def error_of(step: Step) -> float:
    assert step.attribution is not None
    assert step.attribution.error is not None
    return step.attribution.error
