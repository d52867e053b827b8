"""Builds requests: tokenises the prompt, resolves the settings, and refuses invalid requests before any pass runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

from gradellm_engine.core.completion_encoder import CompletionEncoder
from gradellm_engine.core.following.agreement import number_format
from gradellm_engine.core.following.given_tokens import Following, FollowSettings
from gradellm_engine.core.following.request import FollowedRequest
from gradellm_engine.core.post_hoc_runner import PostHocRunner
from gradellm_engine.core.request import Request
from gradellm_engine.core.request_limits import RequestLimits
from gradellm_engine.core.request_spec import ContrastTokens, RequestCall, RequestSpec
from gradellm_engine.core.settings_resolver import SettingsResolver
from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.faithfulness.evaluation import Evaluation
from gradellm_engine.faithfulness.settings import EvaluationSettings
from gradellm_engine.methods.registry import method_named
from gradellm_engine.model.loader import LoadedModel
from gradellm_engine.params import AttributionSettings, TokenSelection
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.structured.compiler import GrammarCompiler
from gradellm_engine.structured.settings import StructuredOutput
from gradellm_engine.tokenization.prompt import Prompt
from gradellm_engine.tokenization.prompt_input import PromptInput
from gradellm_engine.tokenization.prompt_reader import check_token_ids, read_prompt
from gradellm_engine.tokenization.token_selection import reachable_tokens, selected_tokens

AnyPrompt = PromptInput | str | Prompt


class RequestBuilder:
    """Builds the requests to one model.

    Every request carries the call that built it, with tokens instead of text and a seed in every case, so that
    `rebuild` gives the same request on another rank.

    Attributes:
        resolver: resolves the requests' settings.
        grammars: compiles what structured output allows.
    """

    def __init__(self, model: LoadedModel, limits: RequestLimits, post_hoc: PostHocRunner) -> None:
        self._model, self._limits, self._post_hoc = model, limits, post_hoc
        self._completions = CompletionEncoder(model.encoder, model.info.vocab_size, limits)
        self.resolver = SettingsResolver(model, limits, post_hoc)
        ranks = model.runner.ranks
        is_follower = ranks is not None and not ranks.is_rank0
        self.grammars = GrammarCompiler(model.encoder, model.info.vocab_size, model.end_ids, is_follower=is_follower)

    def rebuild(self, call: RequestCall) -> Request:
        """The request that this call built."""
        request: Request = getattr(self, call.method)(**call.arguments)
        return request

    def tokenize(self, prompt: AnyPrompt) -> Prompt:
        """A prompt's tokens; a `Prompt` is returned as it is.

        Raises:
            InvalidRequestError: naming the field that is at fault.
        """
        if isinstance(prompt, Prompt):
            return prompt
        if isinstance(prompt, str):
            prompt = PromptInput(prompt=prompt)
        return read_prompt(prompt, self._model.encoder, self._model.info.vocab_size, self._limits.prompt)

    def generation(
        self,
        prompt: AnyPrompt,
        sampling: Sampling = Sampling(),
        attribution: AttributionSettings | None = None,
        *,
        forced_ids: Sequence[int] = (),
        first_attribution: int | None = None,
        structured_output: StructuredOutput | None = None,
        tenant: str | None = None,
    ) -> Request:
        """A request to generate a completion; see `gradellm_engine.engine.Engine.generate`."""
        self._limits.check_token_count("forced_ids", len(forced_ids))
        prompt = self.tokenize(prompt)
        sampling = self.resolver.sampling(sampling, prompt)
        check_token_ids("forced_ids", forced_ids, self._model.info.vocab_size)
        if len(forced_ids) > (sampling.max_new_tokens or 0):
            raise InvalidRequestError(
                "forced_ids", f"are {len(forced_ids)} tokens; max_new_tokens allows {sampling.max_new_tokens} in all"
            )
        if first_attribution is not None and not 0 <= first_attribution <= len(forced_ids):
            raise InvalidRequestError(
                "first_attribution",
                f"must lie between 0 and the number of forced tokens, {len(forced_ids)}; was {first_attribution}",
            )
        arguments = {
            "prompt": prompt,
            "sampling": sampling,
            "attribution": attribution,
            "forced_ids": tuple(forced_ids),
            "first_attribution": first_attribution,
            "structured_output": structured_output,
            "tenant": tenant,
        }
        spec = RequestSpec(
            prompt=prompt,
            sampling=sampling,
            call=RequestCall("generation", arguments),
            forced_ids=tuple(forced_ids),
            first_step=len(forced_ids),
            tenant=tenant,
            structured_output=structured_output,
            grammar=None if structured_output is None else self.grammars.start(structured_output, forced_ids),
        )
        return self._explaining(spec, attribution, first_attribution)

    def attribution(
        self,
        prompt: AnyPrompt,
        completion: str | Sequence[int],
        attribution: AttributionSettings | None = None,
        *,
        num_alternatives: int = 0,
        tenant: str | None = None,
    ) -> Request:
        """A request to explain a given completion; see `gradellm_engine.engine.Engine.attribute`."""
        self._limits.check_completion(completion)
        prompt = self.tokenize(prompt)
        ids = tuple(self._completions.completion_ids(prompt, completion))
        if isinstance(completion, str) and attribution is not None and attribution.tokens is not None:
            self._completions.check_spans(attribution.tokens, ids)
        arguments = {
            "prompt": prompt,
            "completion": ids,
            "attribution": attribution,
            "num_alternatives": num_alternatives,
            "tenant": tenant,
        }
        spec = RequestSpec(
            prompt=prompt,
            sampling=Sampling(max_new_tokens=len(ids), seed=0, num_alternatives=num_alternatives),
            call=RequestCall("attribution", arguments),
            forced_ids=ids,
            is_completion=True,
            tenant=tenant,
        )
        return self._explaining(spec, attribution or AttributionSettings())

    def following(
        self,
        prompt: AnyPrompt,
        attribution: AttributionSettings | None = None,
        settings: FollowSettings = FollowSettings(),
        *,
        tenant: str | None = None,
    ) -> FollowedRequest:
        """A request to explain a completion that another engine writes; see `gradellm_engine.engine.Engine.follow`."""
        self._limits.check_token_count("completion_ids", len(settings.ids))
        prompt = self.tokenize(prompt)
        check_token_ids("completion_ids", settings.ids, self._model.info.vocab_size)
        room = self._limits.room(prompt)
        wanted = room if settings.max_new_tokens is None else settings.max_new_tokens
        sampling = self.resolver.sampling(
            Sampling(max_new_tokens=wanted, seed=0, num_alternatives=settings.num_alternatives), prompt
        )
        settings.check(wanted)
        arguments = {"prompt": prompt, "attribution": attribution, "settings": settings, "tenant": tenant}
        ours = number_format(self._model.info.dtype, self._model.info.quantization)
        spec = RequestSpec(
            prompt=prompt,
            sampling=sampling,
            call=RequestCall("following", arguments),
            forced_ids=settings.ids,
            first_step=len(settings.ids),
            is_completion=True,
            following=Following(settings.upstream_dtype, ours, settings.agreement),
            tenant=tenant,
        )
        request = self._explaining(spec, attribution or AttributionSettings(), kind=FollowedRequest)
        return cast("FollowedRequest", request)

    def evaluation(
        self,
        prompt: AnyPrompt,
        settings: EvaluationSettings,
        completion: str | Sequence[int] | None = None,
        sampling: Sampling = Sampling(),
        *,
        tenant: str | None = None,
    ) -> Request:
        """A request to evaluate explanations; see `gradellm_engine.engine.Engine.evaluate`."""
        if completion is not None and settings.labels:
            raise InvalidRequestError(
                "labels", "give either labels, of which the likeliest is explained, or a completion"
            )
        if completion is not None:
            self._limits.check_completion(completion)
        self._limits.completion.check_length("labels", sum(map(len, settings.labels)))
        prompt = self.tokenize(prompt)
        ids: tuple[int, ...] | None = None
        if settings.labels:
            sampling = Sampling(max_new_tokens=1, seed=0)
        elif completion is not None:
            ids = tuple(self._completions.completion_ids(prompt, completion))
            sampling = Sampling(max_new_tokens=len(ids), seed=0)
        elif any(evaluated.method is None for evaluated in settings.methods):
            raise InvalidRequestError("scores", "scores of your own need the completion whose tokens they explain")
        sampling = self.resolver.sampling(sampling, prompt)
        arguments = {
            "prompt": prompt,
            "settings": settings,
            "completion": ids,
            "sampling": sampling,
            "tenant": tenant,
        }
        spec = RequestSpec(
            prompt=prompt,
            sampling=sampling,
            call=RequestCall("evaluation", arguments),
            forced_ids=ids or (),
            is_completion=ids is not None,
            tenant=tenant,
        )
        return self._evaluating(spec, settings, num_new_tokens=sampling.max_new_tokens or 0)

    def _explaining(
        self,
        spec: RequestSpec,
        attribution: AttributionSettings | None,
        first_attribution: int | None = None,
        kind: type[Request] = Request,
    ) -> Request:
        """The request of a spec, with its tokens explained, from `first_attribution` on where it is given."""
        if attribution is None:
            return kind(self._model, spec)
        prompt = spec.prompt
        attribution = self.resolver.attribution(attribution, prompt, is_completion=spec.is_completion)
        if attribution.tokens is not None:
            attribution = replace(attribution, tokens=self._selected(attribution.tokens, spec))
        if first_attribution is not None:
            spec = replace(spec, first_step=attribution.first_explained(first_attribution, len(spec.forced_ids)))
        spec = replace(spec, attribution=attribution, contrast=self._contrast(attribution, prompt))
        switches = attribution.method
        method = method_named(switches.name)
        if method.explain is not None:
            selected = None if attribution.tokens is None else attribution.tokens.indexes

            def check(length: int) -> None:
                n = length if selected is None else min(length, selected[-1] + 1)
                num_steps = n if selected is None else sum(index < length for index in selected)
                self._post_hoc.check(method, switches, len(prompt.tokens), n, num_steps)

            check(max(1, len(spec.forced_ids)))
            spec = replace(spec, post_hoc=partial(self._post_hoc.explain, method, switches), check_post_hoc=check)
        if method.scores is not None:
            spec = replace(spec, model_free_scores=partial(method.scores, switches))
        return kind(self._model, spec)

    def _selected(self, selection: TokenSelection, spec: RequestSpec) -> TokenSelection:
        """The tokens that a request explains, as indexes; counts are checked before any is looked up."""
        self._limits.check_token_count("attribution.tokens.indexes", len(selection.indexes))
        self._limits.check_token_count("attribution.tokens.spans", len(selection.spans))
        if spec.following or not spec.is_completion:
            return reachable_tokens(selection, spec.sampling.max_new_tokens or 0)
        return selected_tokens(selection, self._completions.token_texts(spec.prompt, spec.forced_ids))

    def _contrast(self, attribution: AttributionSettings, prompt: Prompt) -> int | ContrastTokens | None:
        contrast = attribution.contrast
        if contrast is None or contrast.text is None:
            return None if contrast is None else contrast.token_id
        return self._completions.contrast_tokens(prompt, contrast.text)

    def _evaluating(self, spec: RequestSpec, settings: EvaluationSettings, num_new_tokens: int) -> Request:
        """The request of a spec, with explanations of its tokens evaluated."""
        prompt = spec.prompt
        settings = self.resolver.evaluation(settings, prompt, num_new_tokens)
        pass_budget = self._post_hoc.pass_budget(len(prompt.tokens) + num_new_tokens)
        evaluation = Evaluation(
            self._model.runner,
            prompt,
            settings,
            label_ids=self._completions.label_ids(prompt, settings.labels),
            pad_id=getattr(self._model.tokenizer, "pad_token_id", None),
            explain=partial(self._post_hoc.scores_at, prompt),
            explain_tokens=self._post_hoc.num_tokens_read,
            pass_budget=pass_budget,
        )
        evaluation.check_completion(num_new_tokens)
        spec = replace(spec, post_hoc=evaluation.run, evaluation=settings, pass_budget=pass_budget)
        return Request(self._model, spec)
