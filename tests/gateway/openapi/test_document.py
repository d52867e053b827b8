"""The OpenAPI document: one operation for each route, requests from the tables that check them."""

from __future__ import annotations

import re

import pytest
from starlette.routing import Route

from gradellm import AsyncClient
from gradellm_gateway.app import gateway
from gradellm_gateway.fields import FIELDS
from gradellm_gateway.openapi.document import OPERATIONS, openapi_document

UNDESCRIBED = {"/openapi.json", "/docs", "/shades.css"}


def test_every_route_is_described() -> None:
    routes = [route for route in gateway(AsyncClient("localhost:1")).routes if isinstance(route, Route)]
    served = {
        (method.lower(), re.sub(r":\w+}", "}", route.path))
        for route in routes
        for method in route.methods or ()
        if method != "HEAD" and route.path not in UNDESCRIBED
    }
    assert served == {(operation.method, operation.path) for operation in OPERATIONS}


def test_schemas_are_valid() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for operation in OPERATIONS:
        if operation.request is not None:
            jsonschema.Draft202012Validator.check_schema(operation.request)


def test_requests_are_those_of_the_tables() -> None:
    document = openapi_document()
    assert document["openapi"].startswith("3.1")
    chat = document["paths"]["/v1/chat/completions"]["post"]
    schema = chat["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"].keys() == FIELDS.keys()
    assert schema["required"] == ["messages"]
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(ids)) == len(ids)


def test_requests_of_keywords_have_one_input_and_typed_keywords() -> None:
    paths = openapi_document()["paths"]
    for path, count in (("/v1/gradellm/attribute", 6), ("/v1/gradellm/evaluate", 3)):
        forms = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
        assert len(forms) == count
        for form in forms:
            assert len(form["properties"].keys() & {"prompt", "messages", "prompt_ids"}) == 1
            assert form["properties"]["timeout"] == {"anyOf": [{"type": "number"}, {"type": "null"}]}


def test_an_empty_answer_has_no_content() -> None:
    assert openapi_document()["paths"]["/health"]["get"]["responses"]["200"]["content"] == {}
