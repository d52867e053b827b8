"""The OpenAPI 3.1 document: an operation for each route, its request from the table that checks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from gradellm import __version__
from gradellm.wire.keywords import AttributeKeywords, EvaluateKeywords
from gradellm_gateway.chat import GRADELLM_FIELDS
from gradellm_gateway.completions.request import COMPLETION_FIELDS
from gradellm_gateway.event_objects import Extras
from gradellm_gateway.fields import FIELDS, message_list
from gradellm_gateway.openapi.schemas import Schema, keyword_schema, object_schema, schema_of
from gradellm_gateway.picture_request import PICTURE_FIELDS
from gradellm_gateway.responses.request import RESPONSE_FIELDS
from gradellm_gateway.routes.backend import ALIAS
from gradellm_gateway.routes.tokenization import CHAT_FIELDS, DETOKENIZE_FIELDS, TEXT_FIELDS

__all__ = ["OPERATIONS", "Operation", "openapi_document"]

EVENTS, JSON, TEXT = "text/event-stream", "application/json", "text/plain"


@dataclass(frozen=True)
class Operation:
    """One route.

    Attributes:
        method: get or post.
        path: in OpenAPI's form.
        summary: what it does.
        request: schema of its JSON body.
        response: content types of its answer; none where it is empty.
        is_open: whether it needs no key.
    """

    method: str
    path: str
    summary: str
    request: Schema | None = None
    response: tuple[str, ...] = (JSON,)
    is_open: bool = False


_INPUTS: dict[str, Schema] = {
    "prompt": {"type": "string", "minLength": 1},
    "messages": schema_of(message_list),
    "prompt_ids": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
}
_COMPLETIONS = ("completion", "completion_ids")


def _keywords(annotations: type, completions: Sequence[str], others: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of a request of SDK keywords: a form for each kind of input and of completion."""
    names = annotations.__annotations__.keys() - {"explanation", "message_spans", *_INPUTS, *_COMPLETIONS}
    common = {name: keyword_schema(annotations.__annotations__[name].__forward_arg__) for name in sorted(names)}
    common |= others or {}
    forms = []
    for given, schema in _INPUTS.items():
        for completion in completions or ("",):
            form = {given: schema, **common}
            if given == "prompt_ids":
                form["message_spans"] = {}
            if completion:
                form[completion] = keyword_schema("str" if completion == "completion" else "Sequence[int]")
            required = [given, *([completion] if completion else [])]
            forms.append({"type": "object", "properties": form, "required": required, "additionalProperties": False})
    return {"oneOf": forms}


_GENERATED = (JSON, EVENTS)
_ATTRIBUTE = _keywords(AttributeKeywords, _COMPLETIONS, {name: {"type": "boolean"} for name in Extras.__annotations__})
OPERATIONS = (
    Operation(
        "post", "/v1/chat/completions", "Answer a conversation.", object_schema(FIELDS, ["messages"]), _GENERATED
    ),
    Operation("post", "/v1/completions", "Complete texts.", object_schema(COMPLETION_FIELDS, ["prompt"]), _GENERATED),
    Operation("post", "/v1/responses", "Create a response.", object_schema(RESPONSE_FIELDS, ["input"]), _GENERATED),
    Operation("get", "/v1/models", "List the model's names."),
    Operation("get", "/v1/models/{name}", "Describe the model by one of its names."),
    Operation("get", "/v1/gradellm/info", "Describe model, methods and limits."),
    Operation("post", "/v1/gradellm/attribute", "Explain a given completion.", _ATTRIBUTE, (EVENTS,)),
    Operation("post", "/v1/gradellm/evaluate", "Evaluate attributions.", _keywords(EvaluateKeywords, ()), (EVENTS,)),
    Operation(
        "post",
        "/v1/gradellm/pictures",
        "Make the picture of a part of an answer.",
        object_schema(PICTURE_FIELDS, ["explanation"]),
    ),
    Operation(
        "post",
        "/tokenize",
        "Return the token ids of a text or a conversation.",
        {"oneOf": [object_schema(TEXT_FIELDS, ["prompt"]), object_schema(CHAT_FIELDS, ["messages"])]},
        is_open=True,
    ),
    Operation(
        "post",
        "/detokenize",
        "Return the text of token ids.",
        object_schema(DETOKENIZE_FIELDS, ["tokens"]),
        is_open=True,
    ),
    Operation("get", "/health", "Tell whether the explanation server responds.", response=(), is_open=True),
    Operation("get", "/healthz", "The same, as JSON.", is_open=True),
    Operation("get", "/metrics", "Prometheus metrics.", response=(TEXT,), is_open=True),
    Operation("get", "/version", "Tell the gateway's version.", is_open=True),
)

_ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_ATTRIBUTION: Schema = {
    "type": "object",
    "properties": {name: {} for name in sorted(GRADELLM_FIELDS)},
    "additionalProperties": False,
}


@cache
def openapi_document() -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gradellm gateway",
            "version": __version__,
            "description": "OpenAI's API with attribution. Fields that are not listed are refused by name.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR, "Attribution": _ATTRIBUTION},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": f"{operation.method}{operation.path.translate({ord(c): '_' for c in '/{}'})}".rstrip("_"),
        "summary": operation.summary,
        "responses": {
            "200": {"description": "The answer.", "content": {kind: {"schema": {}} for kind in operation.response}},
            "default": {
                "description": "What was wrong.",
                "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if "{name}" in operation.path:
        name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "example": ALIAS}
        described["parameters"] = [name]
    if operation.request is not None:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": operation.request}}}
    if not operation.is_open:
        described["security"] = [{"key": []}, {}]
    return described
