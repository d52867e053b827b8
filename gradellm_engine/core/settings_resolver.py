"""Resolves a request's settings against the model: explicit layers, seeds, lengths.

Refuses what the model, its family or the prompt does not have.
"""

from __future__ import annotations

from dataclasses import replace

from gradellm_engine.core.post_hoc_runner import PostHocRunner
from gradellm_engine.core.request_limits import RequestLimits
from gradellm_engine.core.sampler import random_seed
from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.faithfulness.settings import (
    MAX_EVALUATION_SEQUENCES,
    MAX_EVALUATION_STEP_TOKENS,
    EvaluatedMethod,
    EvaluationSettings,
)
from gradellm_engine.methods.base import Method
from gradellm_engine.methods.registry import METHODS, method_named
from gradellm_engine.model.loader import LoadedModel
from gradellm_engine.params import AttributionSettings, GradEllm, NormaliseOver, Rotary, Switches
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.tokenization.prompt import Prompt


class SettingsResolver:
    """Resolves the settings of requests to one model."""

    def __init__(self, model: LoadedModel, limits: RequestLimits, post_hoc: PostHocRunner) -> None:
        self._family, self._info, self._end_ids = model.family, model.info, model.end_ids
        self._limits, self._post_hoc = limits, post_hoc

    def sampling(self, sampling: Sampling, prompt: Prompt) -> Sampling:
        """Sampling with `seed` and `max_new_tokens` set.

        Raises:
            InvalidRequestError: where the requested length does not fit the context, or a token is not in the
                vocabulary.
        """
        for index, token_id in enumerate(sampling.stop_token_ids):
            self._check_token_id(f"stop_token_ids[{index}]", token_id)
        for token_id, _ in sampling.logit_bias:
            self._check_token_id(f"logit_bias[{token_id}]", token_id)
        max_new_tokens = self._limits.resolve_max_new_tokens(sampling, prompt)
        if sampling.min_new_tokens > max_new_tokens:
            raise InvalidRequestError(
                "min_new_tokens",
                f"is {sampling.min_new_tokens:,}; the completion has at most {max_new_tokens:,} tokens",
            )
        if sampling.min_new_tokens and len({*sampling.stop_token_ids, *self._end_ids}) >= self._info.vocab_size:
            raise InvalidRequestError("stop_token_ids", "hold every token; min_new_tokens leaves none to sample")
        seed = random_seed() if sampling.seed is None else sampling.seed
        return replace(sampling, max_new_tokens=max_new_tokens, seed=seed)

    def attribution(
        self, attribution: AttributionSettings, prompt: Prompt, *, is_completion: bool
    ) -> AttributionSettings:
        """Attribution with explicit layers.

        Args:
            attribution: as requested.
            prompt: the request's prompt.
            is_completion: whether the completion is given, rather than generated.

        Raises:
            InvalidRequestError: where method, target or contrast is not defined for this model or this request.
        """
        method = method_named(attribution.method.name)
        self._check_method(method, attribution, is_completion=is_completion)
        resolved = replace(attribution, method=self._switches(attribution.method, prompt))
        if resolved.target_token_id is not None:
            self._check_token_id("attribution.target_token_id", resolved.target_token_id)
        if resolved.contrast is not None and resolved.contrast.token_id is not None:
            self._check_token_id("attribution.contrast.token_id", resolved.contrast.token_id)
        return resolved

    def evaluation(self, settings: EvaluationSettings, prompt: Prompt, num_new_tokens: int) -> EvaluationSettings:
        """Evaluation settings with every method's switches resolved.

        Raises:
            InvalidRequestError: where the evaluation is too large, or a method is not defined for this model.
        """
        self._check_evaluation_size(settings, len(prompt.tokens), num_new_tokens)
        methods = tuple(self._evaluated_method(method, prompt, num_new_tokens) for method in settings.methods)
        return replace(settings, methods=methods)

    def refusal(self, method: Method) -> str:
        """Why the model's family cannot be explained by a method; empty where it can."""
        return self._refusal_without_gates(method.name) if method.needs_gates else ""

    def _refusal_without_gates(self, name: str) -> str:
        """Why something that needs the family's gates is not defined; empty where it is."""
        if self._family.gates is not None:
            return ""
        return f"{name} is not defined for the family {self._info.family}: the gates of its experts cannot be read"

    def _check_method(self, method: Method, attribution: AttributionSettings, *, is_completion: bool) -> None:
        if not (is_completion or method.streams):
            streaming = ", ".join(name for name, row in METHODS.items() if row.streams)
            raise InvalidRequestError(
                "attribution.method",
                f"{method.name} explains a completion that exists: use Attribute (`gradellm attribute`). "
                f"While text is generated, {streaming} explain it",
            )
        if refusal := self.refusal(method):
            raise InvalidRequestError("attribution.method", refusal)
        if not method.has_target:
            for field in ("target_token_id", "contrast"):
                if getattr(attribution, field) is not None:
                    raise InvalidRequestError(f"attribution.{field}", f"has no meaning for {method.name}")

    def _switches(self, switches: Switches, prompt: Prompt) -> Switches:
        """Switches with layers as explicit indexes; refuses what model or prompt does not have."""
        if isinstance(switches, GradEllm) and switches.normalise_over is NormaliseOver.USER:
            prompt.check_user_text("attribution.normalise_over")
        if isinstance(switches, GradEllm) and switches.rotary is Rotary.UNROTATED and not self._family.rotary:
            raise InvalidRequestError(
                "attribution.rotary",
                f"unrotated is not defined for the family {self._info.family}: "
                "not all of its layers have a rotary embedding",
            )
        if switches.propagates_relevance and (refusal := self._refusal_without_gates("relevance")):
            raise InvalidRequestError("attribution.gradient", f"{refusal}; use true")
        return switches.resolved(self._info.num_layers)

    def _check_token_id(self, field: str, token_id: int) -> None:
        if not 0 <= token_id < self._info.vocab_size:
            raise InvalidRequestError(
                field, f"{token_id} is not a token id; the vocabulary has ids 0 to {self._info.vocab_size - 1}"
            )

    @staticmethod
    def _check_evaluation_size(settings: EvaluationSettings, num_prompt_tokens: int, num_new_tokens: int) -> None:
        count = settings.texts_per_step * len(settings.steps(num_new_tokens))
        if count > MAX_EVALUATION_SEQUENCES:
            raise InvalidRequestError(
                "samples",
                f"up to {count:,} perturbed texts would be run; the limit is {MAX_EVALUATION_SEQUENCES:,}: ask for "
                "fewer methods, pis or samples, or for a larger stride",
            )
        tokens = settings.texts_per_step * (num_prompt_tokens + num_new_tokens)
        if tokens > MAX_EVALUATION_STEP_TOKENS:
            raise InvalidRequestError(
                "samples",
                f"a step's perturbed texts would have {tokens:,} tokens; the limit is {MAX_EVALUATION_STEP_TOKENS:,}: "
                "ask for fewer methods, pis or samples",
            )

    def _evaluated_method(self, evaluated: EvaluatedMethod, prompt: Prompt, num_new_tokens: int) -> EvaluatedMethod:
        """An evaluated method with its switches resolved; scores of the caller's own as they are."""
        if evaluated.method is None:
            return evaluated
        method = method_named(evaluated.method.name)
        if refusal := self.refusal(method):
            raise InvalidRequestError("attribution.method", refusal)
        switches = self._switches(evaluated.method, prompt)
        if method.explain is not None:
            self._post_hoc.check(method, switches, len(prompt.tokens), num_new_tokens)
        return replace(evaluated, method=switches)
