"""The chat page's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from gradellm.explanation.html import shades

__all__ = ["PAGE_HEADERS", "Page", "shades_css"]

# Browsers run only the page's own scripts, and no site may frame it.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Page(StaticFiles):
    """The chat page's files, below the folder page."""

    def __init__(self) -> None:
        super().__init__(directory=Path(__file__).parents[1] / "page", html=True)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401 (Starlette's)
        """See Starlette's."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(PAGE_HEADERS)
        return response


async def shades_css(request: Request) -> Response:
    """`GET /shades.css`: the shades of pictures as CSS classes."""
    return Response(shades(), media_type="text/css", headers=PAGE_HEADERS)
