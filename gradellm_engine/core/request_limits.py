"""Sizes of prompts and completions that the engine accepts, checked before any text is tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.sampling_params import Sampling
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.prompt import Prompt
from gradellm_engine.tokenization.prompt_limits import PromptLimits

DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one request.

    Attributes:
        context_tokens: tokens of prompt and completion together: the model's context, or what the KV cache holds.
        max_new_tokens: tokens of a completion.
        prompt: limits of an input.
        completion: limits of a completion's text.
        default_new_tokens: tokens of a completion where the request says nothing, as far as they fit.
    """

    context_tokens: int
    max_new_tokens: int
    prompt: PromptLimits
    completion: PromptLimits
    default_new_tokens: int = DEFAULT_NEW_TOKENS

    @classmethod
    def of(
        cls,
        encoder: TextEncoder,
        context_tokens: int,
        max_new_tokens: int,
        default_new_tokens: int | None = None,
    ) -> RequestLimits:
        """The limits of a context; a prompt leaves room for at least one new token."""
        max_prompt_tokens = context_tokens - 1
        max_new_tokens = min(max_new_tokens, max_prompt_tokens)
        prompt = PromptLimits.of(encoder, max_prompt_tokens)
        completion = replace(prompt, tokens=max_new_tokens, characters=max_new_tokens * encoder.longest_token)
        return cls(context_tokens, max_new_tokens, prompt, completion, default_new_tokens or DEFAULT_NEW_TOKENS)

    def check_completion(self, completion: str | Sequence[int]) -> None:
        """Refuse a given completion by the length of its text or the number of its tokens.

        Raises:
            InvalidRequestError: naming the field and the limit.
        """
        if isinstance(completion, str):
            self.completion.check_length("completion", len(completion))
        else:
            self.check_token_count("completion_ids", len(completion))

    def check_token_count(self, field: str, count: int) -> None:
        """Refuse a completion by the number of its tokens, before any of them is read.

        Raises:
            InvalidRequestError: naming the field and the limit.
        """
        if count > self.max_new_tokens:
            raise InvalidRequestError(
                field, f"{count:,} tokens; the limit of a completion is {self.max_new_tokens:,}: send fewer"
            )

    def room(self, prompt: Prompt) -> int:
        """How many tokens a completion after this prompt may have."""
        return min(self.max_new_tokens, self.context_tokens - len(prompt.tokens))

    def check_room(self, field: str, prompt: Prompt, num_new_tokens: int) -> None:
        """Refuse a completion that does not fit the context after this prompt.

        Raises:
            InvalidRequestError: naming the field and the limit.
        """
        room = self.room(prompt)
        if num_new_tokens > room:
            raise InvalidRequestError(
                field,
                f"{num_new_tokens} tokens after a prompt of {len(prompt.tokens)}; at most {room} are possible "
                f"(context {self.context_tokens}, completions up to {self.max_new_tokens})",
            )

    def resolve_max_new_tokens(self, sampling: Sampling, prompt: Prompt) -> int:
        """The length that a completion may have: as requested, or the default as far as it fits.

        Raises:
            InvalidRequestError: where the requested length does not fit.
        """
        if sampling.max_new_tokens is None:
            return min(self.default_new_tokens, self.room(prompt))
        self.check_room("max_new_tokens", prompt, sampling.max_new_tokens)
        return sampling.max_new_tokens
