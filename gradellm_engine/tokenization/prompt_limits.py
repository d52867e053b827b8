"""Limits of an input that are checked by counts and lengths, before anything is rendered or tokenised."""

from __future__ import annotations

from dataclasses import dataclass

from gradellm_engine.errors import InvalidRequestError, TokenizerError
from gradellm_engine.tokenization import chat_template
from gradellm_engine.tokenization.chat_template import Message
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.prompt_input import PromptInput


@dataclass(frozen=True)
class PromptLimits:
    """The largest input that can fit a prompt of `tokens`.

    Attributes:
        tokens: tokens of a prompt.
        characters: code points of a prompt's text, chat template included: `tokens` tokens of the longest kind.
        messages: messages of a conversation: the chat template writes some tokens for each.
    """

    tokens: int
    characters: int
    messages: int

    @classmethod
    def of(cls, encoder: TextEncoder, max_tokens: int) -> PromptLimits:
        """The limits of prompts of at most `max_tokens`."""
        return cls(max_tokens, max_tokens * encoder.longest_token, max(1, max_tokens // tokens_per_message(encoder)))

    @property
    def segments(self) -> int:
        """Segments: one a token."""
        return self.tokens

    def check_counts(
        self, *, num_ids: int = 0, num_messages: int = 0, num_segments: int = 0, num_message_spans: int = 0
    ) -> None:
        """Refuse an input by its counts.

        Raises:
            InvalidRequestError: naming the field, the count and the limit.
        """
        self._check_count("input.prompt_ids", num_ids, self.tokens, "token ids")
        self._check_count("input.messages", num_messages, self.messages, "messages")
        self._check_count("input.segments", num_segments, self.segments, "segments")
        self._check_count("input.message_spans", num_message_spans, self.segments, "spans")

    def check(self, prompt_input: PromptInput) -> None:
        """Refuse an input by its counts and lengths.

        Raises:
            InvalidRequestError: naming the field and the limit.
        """
        self.check_counts(
            num_ids=len(prompt_input.prompt_ids),
            num_messages=len(prompt_input.messages),
            num_segments=len(prompt_input.segments),
            num_message_spans=len(prompt_input.message_spans),
        )
        if prompt_input.prompt is not None:
            self.check_length("input.prompt", len(prompt_input.prompt))
        self.check_length("input.messages", sum(_num_characters(message) for message in prompt_input.messages))
        self.check_length("input.tools", len(prompt_input.tools))
        self.check_length("input.message_spans", sum(len(span.role) for span in prompt_input.message_spans))
        self.check_length("input.segments", sum(len(segment.name) for segment in prompt_input.segments))

    def check_length(self, field: str, num_characters: int) -> None:
        """Refuse text that is longer than `tokens` tokens of the longest kind, before it is tokenised.

        Raises:
            InvalidRequestError: naming the limit.
        """
        if num_characters > self.characters:
            raise InvalidRequestError(
                field,
                f"{num_characters:,} characters; the limit is {self.characters:,}, which is {self.tokens:,} tokens of "
                "the longest token's characters each: shorten the text",
            )

    def _check_count(self, field: str, count: int, limit: int, what: str) -> None:
        if count > limit:
            raise InvalidRequestError(
                field, f"{count:,} {what}; the limit is {limit:,}, as a prompt has at most {self.tokens:,} tokens"
            )


def _num_characters(message: Message) -> int:
    calls = sum(len(call.id) + len(call.name) + len(call.arguments) for call in message.tool_calls)
    texts = (message.role, message.content, message.tool_call_id, message.name, message.reasoning)
    return sum(map(len, texts)) + calls


def tokens_per_message(encoder: TextEncoder) -> int:
    """Tokens that the chat template makes of a message of one letter, at least 1."""

    def count(num_turns: int) -> int:
        turns = [Message(role, "a") for _ in range(num_turns) for role in ("user", "assistant")]
        return len(encoder.encode(chat_template.render(turns, encoder.tokenizer), add_special_tokens=False).ids)

    if not encoder.tokenizer.chat_template:
        return 1
    try:
        return max(1, (count(4) - count(1)) // 6)
    except (InvalidRequestError, TokenizerError):
        return 1
