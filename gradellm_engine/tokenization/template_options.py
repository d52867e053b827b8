"""What a request passes to the chat template beside its messages. It validates itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.utils.bounded_json import read_json

MAX_KWARGS_CHARACTERS = 10_000  # as JSON
# What Transformers' apply_chat_template and its renderer take themselves: other fields, or none, of a request set them.
RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)

_KWARGS = "input.chat_template_kwargs"


@dataclass(frozen=True)
class TemplateOptions:
    """Options of the chat template.

    Attributes:
        kwargs: its variables, such as enable_thinking; JSON values. Those that it does not read have no effect.
        add_generation_prompt: whether the prompt ends with the header of the assistant's turn; None for yes, unless
            the last message is continued.
        continue_final_message: whether the completion continues the last message, whose turn is left open.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    def __post_init__(self) -> None:
        for name in self.kwargs:
            if name in RESERVED:
                raise InvalidRequestError(
                    f"{_KWARGS}.{name}", "is no variable of the template's own; it has a field of its own, or none"
                )
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidRequestError(
                "input.continue_final_message",
                "has no meaning with add_generation_prompt, which begins a message of its own: give one of them",
            )

    @property
    def set_fields(self) -> list[str]:
        """The wire's names of the options that are set."""
        values = {
            "chat_template_kwargs": bool(self.kwargs),
            "add_generation_prompt": self.add_generation_prompt is not None,
            "continue_final_message": self.continue_final_message,
        }
        return [name for name, is_set in values.items() if is_set]

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `apply_chat_template`."""
        begins_turn = self.add_generation_prompt
        return {
            **self.kwargs,
            "add_generation_prompt": not self.continue_final_message if begins_turn is None else begins_turn,
            "continue_final_message": self.continue_final_message,
        }

    @staticmethod
    def parsed_kwargs(text: str) -> dict[str, Any]:
        """The variables of a JSON object.

        Raises:
            InvalidRequestError: where it is longer than MAX_KWARGS_CHARACTERS, or not such an object.
        """
        parsed = read_json(_KWARGS, text, max_characters=MAX_KWARGS_CHARACTERS)
        if not isinstance(parsed, dict):
            raise InvalidRequestError(_KWARGS, f"must be a JSON object, was {type(parsed).__name__}")
        return parsed
