"""What a request of OpenAI's API says of the completion that answers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["OF_THE_TEMPLATE", "constrains_sampling", "plain_messages"]

_FREE_FORMATS = (None, "text")
_CONSTRAINTS = ("structured_outputs", "allowed_token_ids", "bad_words", "logit_bias")
OF_THE_TEMPLATE = (
    "tools",
    "functions",
    "documents",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "reasoning_effort",
)
"""Fields that an engine's chat template reads, besides the messages."""


def constrains_sampling(request: Mapping[str, Any]) -> bool:
    """Return whether tokens are drawn from a part of the vocabulary, as for a JSON schema.

    vLLM's log-probabilities are then those among this part: they say nothing about the model.
    """
    response_format = request.get("response_format")
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    has_tools = bool(request.get("tools")) and request.get("tool_choice") != "none"
    others = any(request.get(name) for name in _CONSTRAINTS)
    return kind not in _FREE_FORMATS or has_tools or others or any(name.startswith("guided_") for name in request)


def plain_messages(request: Mapping[str, Any]) -> list[tuple[str, str]] | None:
    """Return the messages of a chat as (role, text); None where the model read more than these, or something else."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or any(request.get(name) for name in OF_THE_TEMPLATE):
        return None
    if request.get("add_generation_prompt") is False:
        return None
    plain = []
    for message in messages:
        if not isinstance(message, Mapping) or message.keys() - {"role", "content", "name"}:
            return None
        text = _text(message.get("content"))
        if text is None or not isinstance(message.get("role"), str):
            return None
        plain.append((message["role"], text))
    return plain


def _text(content: object) -> str | None:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in parts]
    return "".join(text for text in texts if text) if all(isinstance(text, str) for text in texts) else None
