"""What a request of OpenAI's API says of the completion that answers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradellm.errors import InvalidRequestError

__all__ = ["OF_THE_TEMPLATE", "TEMPLATE_OPTIONS", "constrains_sampling", "prompt_keywords"]

_FREE_FORMATS = (None, "text")
_CONSTRAINTS = ("structured_outputs", "allowed_token_ids", "bad_words", "logit_bias")
TEMPLATE_OPTIONS = ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
"""Keywords of the SDK, and fields of a request, that the chat template reads besides the messages."""
_UNKNOWN_TO_SERVER = ("functions", "documents", "chat_template", "reasoning_effort")
OF_THE_TEMPLATE = (*_UNKNOWN_TO_SERVER, "tools", "chat_template_kwargs", "continue_final_message")
"""Fields that an engine's chat template reads, besides the messages; `add_generation_prompt` is true by default."""
_NOT_RENDERED = (*_UNKNOWN_TO_SERVER, "echo", "suffix", "truncate_prompt_tokens", "prompt_embeds")
_NEEDS_IDS = 'and the answer has no ids of the prompt: ask the engine for "return_token_ids": true'
_TEXTS = ("name", "tool_call_id", "reasoning_content", "reasoning")
_MESSAGE = ("role", "content", "tool_calls", *_TEXTS)


def constrains_sampling(request: Mapping[str, Any]) -> bool:
    """Return whether tokens are drawn from a part of the vocabulary, as for a JSON schema.

    vLLM's log-probabilities are then those among this part: they say nothing about the model.
    """
    response_format = request.get("response_format")
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    has_tools = bool(request.get("tools")) and request.get("tool_choice") != "none"
    others = any(request.get(name) for name in _CONSTRAINTS)
    return kind not in _FREE_FORMATS or has_tools or others or any(name.startswith("guided_") for name in request)


def prompt_keywords(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of `Client.attribute` with which the server makes the prompt of a request again.

    Raises InvalidRequestError for a prompt that it cannot make again. The error names the field.
    """
    messages, prompt = request.get("messages"), request.get("prompt")
    for name in (name for name in _NOT_RENDERED if request.get(name)):
        raise _not_rendered(name, "is not rendered again")
    adds_tokens = request.get("add_special_tokens")
    if adds_tokens is not None and bool(adds_tokens) != (messages is None):
        raise _not_rendered("add_special_tokens", f"is {str(adds_tokens).lower()}, which is not done again")
    if messages is None:
        if isinstance(prompt, str):
            return {"prompt": prompt}
        if isinstance(prompt, list) and prompt and all(type(each) is int for each in prompt):
            return {"prompt_ids": prompt}
        if prompt is None:
            raise _not_rendered("messages", "are missing, and so is prompt,")
        raise _not_rendered("prompt", "is neither one text nor one list of token ids,")
    if not isinstance(messages, list) or not messages:
        raise _not_rendered("messages", "must be a list of at least one message,")
    options = {name: request[name] for name in TEMPLATE_OPTIONS if request.get(name) is not None}
    return {"messages": [_message(f"messages[{index}]", each) for index, each in enumerate(messages)], **options}


def _message(path: str, message: object) -> dict[str, Any]:
    """Return a message as the SDK takes it, without empty fields, which clients send back."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise _not_rendered(path, "is no object with a role,")
    found = {name: value for name, value in message.items() if value is not None and value != []}
    for name in (name for name in found if name not in _MESSAGE):
        raise _not_rendered(f"{path}.{name}", "is not rendered again")
    content = message.get("content")
    return {**found, "content": "" if content is None else _text(f"{path}.content", content)}


def _text(path: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _not_rendered(path, "is neither a text nor a list of parts,")
    texts = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise _not_rendered(f"{path}[{index}]", "is no part with a text, and only these are rendered again")
        texts.append(text)
    return "".join(texts)


def _not_rendered(path: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError.of(f"request.{path}", f"{problem} {_NEEDS_IDS}")
