"""What a request is to compute, after all settings have been resolved and checked against the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from gradellm_engine.core.following.given_tokens import Following
from gradellm_engine.core.sampler import Distribution
from gradellm_engine.faithfulness.pass_budget import PassBudget
from gradellm_engine.faithfulness.results import EvaluationEvent
from gradellm_engine.faithfulness.settings import EvaluationSettings
from gradellm_engine.methods.post_hoc import CompletionContext, StepScores
from gradellm_engine.params import AttributionSettings, GradEllm, LayerSwitches, NormaliseOver, Switches
from gradellm_engine.passes.base import ExplainSpec, Target
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.structured.settings import StructuredOutput
from gradellm_engine.structured.state import GrammarState
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.prompt import Prompt, Role

PostHocAnalysis = Callable[[CompletionContext], Iterator[StepScores | EvaluationEvent]]
"""Explains or evaluates a whole completion. Between two yields lie one or two passes of the model."""


@dataclass(frozen=True)
class ContrastTokens:
    """The two tokens of a contrast that was given as text.

    Attributes:
        plain: the token of the text itself.
        spaced: the token of the text after a space.
    """

    plain: int
    spaced: int

    def in_place_of(self, text: str) -> int:
        """The token that could replace one with this text: spaced where `text` begins with a space."""
        return self.spaced if text[:1].isspace() else self.plain


@dataclass(frozen=True)
class RequestCall:
    """A call of `RequestBuilder`, with which another rank builds the same request.

    Attributes:
        method: the builder's method.
        arguments: by name; the prompt and the completion as tokens, and the sampling with its seed and length.
    """

    method: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RequestSpec:
    """A request whose settings are all resolved.

    Attributes:
        prompt: the prompt's tokens.
        sampling: with `seed` and `max_new_tokens` set.
        call: how the request was built.
        attribution: what to explain; None for tokens alone.
        contrast: the contrast token, where the request names one by id or text.
        forced_ids: tokens that the completion begins with (teacher-forced), whatever the model would choose.
        first_step: the first token of the completion that is computed and reported; tokens before it are prefilled.
        is_completion: whether `forced_ids` are a completion to explain, rather than the beginning of one to resume.
        following: how the rest of the completion is followed, which another engine writes; None where all of it is
            known, or the model chooses it.
        post_hoc: explains or evaluates the completion once all its tokens are there; None for methods that explain
            tokens in passes of their own.
        check_post_hoc: (number of tokens) -> None; refuses a followed completion that is too long for `post_hoc`.
        model_free_scores: (step, number of tokens before it) -> scores, of a method that does not run the model.
        evaluation: the settings of the evaluation that `post_hoc` runs; None where it explains.
        pass_budget: the size of an evaluation's passes; None for all other requests.
        tenant: whose prefixes the request may reuse; only requests of the same tenant share them.
        structured_output: what the completion has to be; None for any text.
        grammar: how far the completion has come in it, `forced_ids` included; the request advances it.
    """

    prompt: Prompt
    sampling: Sampling
    call: RequestCall | None = None
    attribution: AttributionSettings | None = None
    contrast: int | ContrastTokens | None = None
    forced_ids: tuple[int, ...] = ()
    first_step: int = 0
    is_completion: bool = False
    following: Following | None = None
    post_hoc: PostHocAnalysis | None = None
    check_post_hoc: Callable[[int], None] | None = None
    model_free_scores: Callable[[int, int], Tensor] | None = None
    evaluation: EvaluationSettings | None = None
    pass_budget: PassBudget | None = None
    tenant: str | None = None
    structured_output: StructuredOutput | None = None
    grammar: GrammarState | None = None

    def explains(self, index: int) -> bool:
        """Whether a token of the completion has scores to compute, where any token has."""
        return self.attribution is None or self.attribution.explains(index)

    @property
    def explain_in_pass(self) -> ExplainSpec | None:
        """What the pass over a token computes to explain it; None where tokens are explained otherwise or not at all.

        Called once a request.
        """
        if self.attribution is None or self.post_hoc is not None or self.model_free_scores is not None:
            return None
        method = cast("LayerSwitches", self.attribution.method)
        return ExplainSpec(method, normalisation_mask(self.prompt, method))


def normalisation_mask(prompt: Prompt, method: Switches) -> Tensor | None:
    """The prompt tokens over which Grad-ELLM normalises similarities; None for all tokens a layer sees. [m], bool"""
    match method.normalise_over if isinstance(method, GradEllm) else NormaliseOver.VISIBLE:
        case NormaliseOver.VISIBLE:
            return None
        case NormaliseOver.PROMPT:
            return torch.ones(len(prompt.tokens), dtype=torch.bool)
        case NormaliseOver.USER:
            return torch.tensor([token.role is Role.USER for token in prompt.tokens])


class TargetChooser:
    """Chooses what the scores of each token of a request explain: a logit, or a difference of logits."""

    def __init__(self, encoder: TextEncoder, spec: RequestSpec) -> None:
        self._encoder, self._attribution, self._contrast = encoder, spec.attribution, spec.contrast

    def __call__(self, token_id: int, distribution: Distribution) -> Target:
        """The target of a token of the completion, with the distribution that it was drawn from."""
        attribution = self._attribution
        if attribution is None:
            return Target(token_id)
        target_id = token_id if attribution.target_token_id is None else attribution.target_token_id
        if attribution.contrast is not None and attribution.contrast.runner_up:
            return Target(target_id, distribution.runner_up(target_id))
        contrast = self._contrast
        if isinstance(contrast, ContrastTokens):
            contrast = contrast.in_place_of(self._encoder.decode_alone(target_id))
        return Target(target_id, contrast)
