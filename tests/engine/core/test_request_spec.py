"""What a resolved request computes in its passes: contrast tokens by the text in place, masks by role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gradellm_engine import (
    AttributionSettings,
    Engine,
    GradEllm,
    Message,
    NormaliseOver,
    PromptInput,
    Role,
    Sampling,
)
from gradellm_engine.attribution.grad_sam import GradSam
from gradellm_engine.core.request_spec import ContrastTokens, RequestSpec, normalisation_mask
from gradellm_engine.tokenization.prompt import Prompt


@pytest.fixture
def prompt(engine: Engine) -> Prompt:
    return engine.tokenize(PromptInput(messages=(Message("system", "Be nice."), Message("user", "a fox"))))


@pytest.mark.parametrize(
    ("text", "is_spaced"),
    [(" fox", True), ("fox", False), ("\n", True), ("\u3000fox", True), ("fox ", False), ("", False)],
)
def test_a_contrast_is_spaced_where_the_text_that_it_replaces_is(text: str, is_spaced: bool) -> None:
    assert ContrastTokens(plain=3, spaced=8).in_place_of(text) == (8 if is_spaced else 3)


def test_similarities_are_normalised_over_the_tokens_that_a_switch_names(prompt: Prompt) -> None:
    masks = {over: normalisation_mask(prompt, GradEllm(normalise_over=over)) for over in NormaliseOver}
    assert masks[NormaliseOver.VISIBLE] is None
    prompt_mask, user_mask = masks[NormaliseOver.PROMPT], masks[NormaliseOver.USER]
    assert prompt_mask is not None
    assert prompt_mask.tolist() == [True] * len(prompt.tokens)
    assert user_mask is not None
    chosen = "".join(token.text for token, is_user in zip(prompt.tokens, user_mask.tolist(), strict=True) if is_user)
    assert chosen == "a fox"
    assert normalisation_mask(prompt, GradSam()) is None


def test_only_in_pass_methods_are_explained_in_the_pass(prompt: Prompt) -> None:
    method = GradEllm(layers=(0, 1), normalise_over=NormaliseOver.USER)
    arguments: dict[str, Any] = {"prompt": prompt, "sampling": Sampling()}

    def post_hoc(context: Any) -> Iterator[Any]:
        yield from ()

    assert RequestSpec(**arguments).explain_in_pass is None
    arguments["attribution"] = AttributionSettings(method)
    assert RequestSpec(**arguments, post_hoc=post_hoc).explain_in_pass is None
    assert RequestSpec(**arguments, model_free_scores=lambda step, length: torch.zeros(length)).explain_in_pass is None
    explain = RequestSpec(**arguments).explain_in_pass
    assert explain is not None
    assert (explain.switches, explain.selected) == (method, (0, 1))
    assert explain.domain is not None
    assert explain.domain.tolist() == [token.role is Role.USER for token in prompt.tokens]
