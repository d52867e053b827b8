"""U, the tokens of a prompt that an evaluation may perturb, and the human rationale among them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.faithfulness.perturbed_text import StepText
from gradellm_engine.faithfulness.settings import EvaluationSettings, Perturb
from gradellm_engine.methods.post_hoc import CompletionContext
from gradellm_engine.tokenization.prompt import Prompt, Role


class PerturbableTokens:
    """U of one prompt, and of each step's prefix where generated tokens may be perturbed too.

    Attributes:
        positions: U in the prompt, ascending. [m_U]
    """

    def __init__(self, prompt: Prompt, settings: EvaluationSettings) -> None:
        """Find U by `settings.perturb` or `settings.positions`.

        Raises:
            InvalidRequestError: where U is undefined or empty, or the rationale holds none or all of it.
        """
        self._includes_generated = settings.perturb is Perturb.PREFIX
        self.positions = np.array(_positions(prompt, settings), dtype=np.intp)
        segments = [prompt.tokens[position].segment for position in self.positions]
        self._is_rationale = np.array([segment in settings.rationale for segment in segments])
        if settings.rationale:
            self._check_rationale(prompt, settings)

    @property
    def prefix_length(self) -> int:
        """Length of the prefix that all perturbed texts share.

        It ends one token before U begins: deletion of all of U then leaves a token.
        """
        return max(0, int(self.positions[0]) - 1)

    def step_text(self, completion: CompletionContext, step: int) -> StepText:
        """The text that `step` is predicted from, without the shared prefix."""
        end, first, positions = completion.prefix_length(step), self.prefix_length, self.positions
        if self._includes_generated:
            generated = np.arange(completion.num_prompt_tokens, end, dtype=np.intp)
            positions = np.concatenate([positions, generated])
        return StepText(step, tuple(completion.ids[first:end]), positions - first, positions)

    def rationale(self, num_tokens: int) -> NDArray[np.bool_]:
        """Which tokens of U the rationale holds; never a generated token. [num_tokens]

        Args:
            num_tokens: size of U at the step.
        """
        mask = np.zeros(num_tokens, dtype=np.bool_)
        mask[: len(self._is_rationale)] = self._is_rationale
        return mask

    def _check_rationale(self, prompt: Prompt, settings: EvaluationSettings) -> None:
        names = {token.segment for token in prompt.tokens if token.segment}
        for name in settings.rationale:
            if name not in names:
                raise InvalidRequestError(
                    "rationale",
                    f"{name!r} is not a segment of the input that holds a token; segments with tokens: "
                    f"{', '.join(sorted(names)) or 'none'}",
                )
        num_tokens = len(self.positions)
        if not 0 < self._is_rationale.sum() < num_tokens:
            raise InvalidRequestError(
                "rationale", f"must hold some of the {num_tokens} perturbable tokens, and not all of them"
            )


def _positions(prompt: Prompt, settings: EvaluationSettings) -> list[int]:
    """U; without the attention sink for all methods, where one of them does not score it."""
    chosen = _chosen_positions(prompt, settings)
    if not settings.excludes_sink:
        return chosen
    if chosen == [0]:
        raise InvalidRequestError("perturb", "holds the first token alone, which sink=exclude leaves out")
    return [position for position in chosen if position > 0]


def _chosen_positions(prompt: Prompt, settings: EvaluationSettings) -> list[int]:
    tokens, positions = prompt.tokens, settings.positions
    if positions:
        if len(set(positions)) < len(positions) or not all(0 <= position < len(tokens) for position in positions):
            raise InvalidRequestError(
                "perturb_positions",
                f"must be positions in the prompt of {len(tokens)} tokens, counted from 0, each once",
            )
        return sorted(positions)
    if settings.perturb is not Perturb.USER:
        return list(range(len(tokens)))
    prompt.check_user_text("perturb")
    return [i for i, token in enumerate(tokens) if token.role is Role.USER and not token.special]
