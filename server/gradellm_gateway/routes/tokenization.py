"""`/tokenize` and `/detokenize`, with vLLM's requests and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gradellm import InvalidRequestError
from gradellm.models import PromptToken
from gradellm_gateway.fields import (
    FIELDS,
    Check,
    FieldNames,
    boolean,
    check_fields,
    integers,
    message_list,
    messages,
    only,
    text,
)
from gradellm_gateway.json_response import AsciiJSONResponse
from gradellm_gateway.request_body import converted, read_object
from gradellm_gateway.routes.backend import Backend
from gradellm_gateway.tools.forms import AnswerForms
from gradellm_gateway.tools.request import ToolRequest

__all__ = ["CHAT_FIELDS", "DETOKENIZE_FIELDS", "TEXT_FIELDS", "TokenizationRoutes"]

_TEMPLATE = ("chat_template_kwargs", "add_generation_prompt", "continue_final_message")
_COMMON: dict[str, Check] = {"model": text, "return_token_strs": boolean}
TEXT_FIELDS: dict[str, Check] = {**_COMMON, "prompt": text, "add_special_tokens": boolean}
"""Fields of `/tokenize` for a text."""
CHAT_FIELDS: dict[str, Check] = {
    **_COMMON,
    "messages": message_list,
    "add_special_tokens": only(boolean, False),
    **{name: FIELDS[name] for name in (*_TEMPLATE, "tools")},
}
"""Fields of `/tokenize` for a conversation."""
DETOKENIZE_FIELDS: dict[str, Check] = {"model": text, "tokens": integers}
"""Fields of `/detokenize`."""


class TokenizationRoutes:
    """Converts between texts and token ids."""

    def __init__(self, backend: Backend, forms: AnswerForms) -> None:
        self._backend, self._forms = backend, forms

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
        ]

    async def tokenize(self, request: Request) -> Response:
        """`POST /tokenize`: the ids of a text, or of a conversation with the model's chat template."""
        client, body = await self._backend.client_of(request), await read_object(request)
        keywords = await converted(lambda: _prompt(body))
        await self._backend.model_name(client, body.get("model"))
        if body.get("tools"):
            _, tools = await self._forms.of(client, ToolRequest.of({"tools": body["tools"], "tool_choice": "none"}))
            keywords |= tools
        info = await client.server_info(timeout=10)
        try:
            tokens = (await client.tokenize(**keywords)).tokens
        except InvalidRequestError as error:
            raise FieldNames(body).error(error) from error
        if body.get("add_special_tokens") is False:
            tokens = tuple(token for token in tokens if not _is_added(token))
        return AsciiJSONResponse(
            {
                "count": len(tokens),
                "max_model_len": info.model.context_tokens,
                "tokens": [token.id for token in tokens],
                "token_strs": [token.text for token in tokens] if body.get("return_token_strs") else None,
            }
        )

    async def detokenize(self, request: Request) -> Response:
        """`POST /detokenize`: the text of token ids."""
        client, body = await self._backend.client_of(request), await read_object(request)
        check_fields(body, DETOKENIZE_FIELDS)
        if body.get("tokens") is None:
            raise InvalidRequestError.of("tokens", "is missing: send the ids of a text's tokens")
        await self._backend.model_name(client, body.get("model"))
        if not body["tokens"]:
            return AsciiJSONResponse({"prompt": ""})
        try:
            prompt = await client.tokenize(prompt_ids=body["tokens"])
        except InvalidRequestError as error:
            raise FieldNames({"prompt_ids": True}, {"prompt_ids": "tokens"}).error(error) from error
        return AsciiJSONResponse({"prompt": prompt.prompt_text})


def _prompt(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the SDK's keywords of a request. Raises InvalidRequestError, which names the field."""
    is_chat = body.get("messages") is not None
    if is_chat and body.get("prompt") is not None:
        raise InvalidRequestError.of("prompt", "and messages exclude each other: send one of them")
    check_fields(body, CHAT_FIELDS if is_chat else TEXT_FIELDS)
    if is_chat:
        options = {name: body[name] for name in _TEMPLATE if body.get(name) is not None}
        return {"messages": messages(body["messages"]), **options}
    if body.get("prompt") is None:
        raise InvalidRequestError.of("prompt", "is missing: send a text, or messages")
    return {"prompt": body["prompt"]}


def _is_added(token: PromptToken) -> bool:
    """Whether a token has no place in the text: the tokenizer added it."""
    return token.special and token.start == token.end
