"""The OpenAPI document as a page, without scripts."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from gradellm_gateway.openapi.document import openapi_document

__all__ = ["docs_page"]

_STYLE = "<link rel=stylesheet href=/docs.css>"


def docs_page() -> str:
    """Return the page: a section for each operation, with a table of its request's fields."""
    document = openapi_document()
    operations = [
        _section(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    info = document["info"]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>{_STYLE}"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['description'])} "
        f"<a href=/openapi.json>openapi.json</a></p>{''.join(operations)}</html>"
    )


def _section(method: str, path: str, operation: dict[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    tables = "".join(_table(schema) for schema in body.get("oneOf", [body] if body else []))
    title = f"{method.upper()} {path}"
    return f"<section><h2><code>{escape(title)}</code></h2><p>{escape(operation['summary'])}</p>{tables}</section>"


def _table(schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}</td>"
        f"<td><code>{escape(json.dumps(field)) if field else 'any'}</code></td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"<table><tr><th>field</th><th>values</th></tr>{rows}</table>"
