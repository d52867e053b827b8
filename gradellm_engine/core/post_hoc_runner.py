"""Runs attribution methods over whole completions, within a memory limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from torch import Tensor

from gradellm_engine.core.request_spec import normalisation_mask
from gradellm_engine.faithfulness.pass_budget import PassBudget
from gradellm_engine.faithfulness.settings import EvaluatedMethod
from gradellm_engine.methods.base import Method
from gradellm_engine.methods.cost_model import Estimate, ModelCost, check_memory, estimate, model_cost
from gradellm_engine.methods.post_hoc import CompletionContext, CompletionModel, ScoreStream, check_baseline
from gradellm_engine.methods.registry import method_named
from gradellm_engine.methods.selected_steps import post_hoc_scores, scores_at
from gradellm_engine.model.loader import LoadedModel
from gradellm_engine.params import Switches
from gradellm_engine.tokenization.prompt import Prompt
from gradellm_engine.tokenization.prompt_reader import check_token_ids

# Tokens of one pass of an evaluation, by device: enough for throughput, few enough to end soon.
MAX_EVALUATION_PASS_TOKENS = {"cpu": 4096, "cuda": 16384}


class PostHocRunner:
    """Runs methods over complete completions.

    Attributes:
        memory_bytes: memory that a pass may take in addition to weights and KV cache.
    """

    def __init__(self, model: LoadedModel, memory_bytes: int) -> None:
        self._model = model
        self.memory_bytes = memory_bytes

    @cached_property
    def model_cost(self) -> ModelCost:
        """Memory and time of this model's passes over whole sequences; measured at first use."""
        return model_cost(self._model.runner)

    def estimate(self, switches: Switches, num_prompt_tokens: int, num_new_tokens: int) -> Estimate:
        """Passes, seconds and bytes that explaining a completion would take."""
        method = method_named(switches.name)
        return estimate(method, switches, self.model_cost, num_prompt_tokens, num_new_tokens)

    def check(
        self,
        method: Method,
        switches: Switches,
        num_prompt_tokens: int,
        num_new_tokens: int,
        num_steps: int | None = None,
    ) -> None:
        """Refuse a post-hoc method whose baseline is invalid or whose passes would not fit the memory.

        `num_steps` of the new tokens are explained; None for all.

        Raises:
            InvalidRequestError: naming the field that is at fault.
        """
        baseline_ids = getattr(switches, "baseline_ids", ())
        check_token_ids("attribution.baseline_ids", baseline_ids, self._model.info.vocab_size)
        check_baseline(baseline_ids, num_prompt_tokens)
        check_memory(
            method,
            switches,
            self.model_cost,
            num_prompt_tokens,
            num_new_tokens,
            num_new_tokens if num_steps is None else num_steps,
            self.memory_bytes,
        )

    def explain(self, method: Method, switches: Switches, context: CompletionContext) -> ScoreStream:
        """The scores of the explained steps of a completion."""
        return post_hoc_scores(self._completion_model(context), method, switches)

    def scores_at(
        self, prompt: Prompt, evaluated: EvaluatedMethod, context: CompletionContext, steps: Sequence[int]
    ) -> Iterator[float | tuple[int, Tensor]]:
        """An evaluated method's scores at some steps; see `gradellm_engine.methods.selected_steps.scores_at`."""
        if evaluated.method is None:
            raise ValueError("scores of the caller's own are not computed by a method")
        mask = normalisation_mask(prompt, evaluated.method)
        method = method_named(evaluated.method.name)
        return scores_at(self._completion_model(context), method, evaluated.method, mask, steps)

    @staticmethod
    def num_tokens_read(
        evaluated: EvaluatedMethod, num_prompt_tokens: int, num_new_tokens: int, num_steps: int
    ) -> float:
        """About how many tokens a method reads to explain `num_steps` tokens; a backward pass counts as two forward."""
        if evaluated.method is None:
            return 0.0
        cost = method_named(evaluated.method.name).cost
        forward, backward = (
            passes.count(evaluated.method, num_prompt_tokens, num_steps) for passes in (cost.forward, cost.backward)
        )
        length = num_steps if cost.completion_only else num_prompt_tokens + num_new_tokens
        return (forward + 2 * backward) * length

    def pass_budget(self, num_tokens: int) -> PassBudget:
        """The size that an evaluation's passes over perturbed texts of up to `num_tokens` may have."""
        runner = self._model.runner
        fitting = self.memory_bytes // max(1, self.model_cost.bytes_of(num_tokens, 1, False))
        most = min(MAX_EVALUATION_PASS_TOKENS[runner.processor], fitting * num_tokens)
        # Each sequence: a copy of one layer's keys and values, and logits with their float32 intermediates.
        layer_bytes = max(shape.bytes_per_token for shape in runner.layer_shapes)
        sequence_bytes = 2 * num_tokens * layer_bytes + 8 * self.model_cost.logit_bytes
        return PassBudget(max(1, most), max(1, self.memory_bytes // sequence_bytes))

    def _completion_model(self, context: CompletionContext) -> CompletionModel:
        model = self._model
        return CompletionModel(model.runner, model.family, context, self.memory_bytes, self.model_cost.bytes_of)
