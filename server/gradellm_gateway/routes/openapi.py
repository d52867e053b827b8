"""`/openapi.json` and `/docs`: the gateway's OpenAPI document, as JSON and as a page."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from gradellm_gateway.openapi.document import openapi_document
from gradellm_gateway.openapi.page import docs_page
from gradellm_gateway.routes.page import PAGE_HEADERS

__all__ = ["openapi_routes"]


def openapi_routes() -> list[Route]:
    """The routes."""
    return [Route("/openapi.json", _document, methods=["GET"]), Route("/docs", _page, methods=["GET"])]


async def _document(request: Request) -> Response:
    return JSONResponse(openapi_document())


async def _page(request: Request) -> Response:
    return HTMLResponse(docs_page(), headers=PAGE_HEADERS)
