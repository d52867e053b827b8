"""From the keywords of sampling and of the chat template to fields of the wire."""

from __future__ import annotations

import json
from typing import Any

from gradellm.errors import InvalidRequestError
from gradellm.wire import validation
from gradellm.wire.keywords import InputKeywords, SamplingKeywords

__all__ = ["sampling_fields", "template_fields"]


def sampling_fields(keywords: SamplingKeywords) -> dict[str, Any]:
    """Return the fields of a GenerateRequest that say how tokens are sampled; None for those that are absent."""
    return {
        "max_new_tokens": validation.optional(validation.int32, "max_new_tokens", keywords),
        "temperature": validation.optional(validation.number, "temperature", keywords),
        "top_k": validation.optional(validation.int32, "top_k", keywords),
        "top_p": validation.optional(validation.number, "top_p", keywords),
        "seed": validation.optional(validation.int64, "seed", keywords),
        "stop": validation.stop_texts(keywords.get("stop")),
        "min_p": validation.optional(validation.number, "min_p", keywords),
        "repetition_penalty": validation.optional(validation.number, "repetition_penalty", keywords),
        "frequency_penalty": validation.optional(validation.number, "frequency_penalty", keywords),
        "presence_penalty": validation.optional(validation.number, "presence_penalty", keywords),
        "logit_bias": validation.optional(_logit_bias, "logit_bias", keywords),
        "min_new_tokens": validation.optional(validation.int32, "min_new_tokens", keywords),
        "ignore_eos": validation.optional(validation.boolean, "ignore_eos", keywords),
        "stop_token_ids": validation.optional(validation.int32s, "stop_token_ids", keywords),
        "skip_special_tokens": validation.optional(validation.boolean, "skip_special_tokens", keywords),
    }


def template_fields(keywords: InputKeywords) -> dict[str, Any]:
    """Return the fields of an Input that are options of the chat template; None for those that are absent.

    Raises InvalidRequestError for options without messages.
    """
    fields = {
        "chat_template_kwargs": validation.optional(_json_object, "chat_template_kwargs", keywords),
        "add_generation_prompt": validation.optional(validation.boolean, "add_generation_prompt", keywords),
        "continue_final_message": validation.optional(validation.boolean, "continue_final_message", keywords),
    }
    if keywords.get("messages") is None:
        for name in (name for name, value in fields.items() if value is not None):
            raise InvalidRequestError.of(name, "is for messages, which the chat template renders")
    return fields


def _logit_bias(name: str, value: object) -> dict[int, float]:
    """Return biases by token id; ids may be texts, as JSON has them."""
    biases: dict[int, float] = {}
    for key, bias in validation.mapping(name, value).items():
        where = f"{name}[{validation.short_repr(key)}]"
        is_text = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= len(str(2**31))
        token_id = validation.int32(where, int(key) if is_text else key)
        if token_id in biases:
            raise InvalidRequestError.of(where, f"is token {token_id} for a second time")
        biases[token_id] = validation.number(where, bias)
    return biases


def _json_object(name: str, value: object) -> str:
    """Return a mapping as JSON."""
    try:
        return json.dumps(validation.mapping(name, value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError.of(name, f"must be an object that JSON can hold: {error}") from None
