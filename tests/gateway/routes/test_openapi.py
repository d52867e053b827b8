"""The document and its page over HTTP."""

from __future__ import annotations

from support.http.calls import send


def test_document_and_page(url: str) -> None:
    status, _, document = send(url, "GET", "/openapi.json")
    assert (status, document["openapi"]) == (200, "3.1.0")
    status, headers, page = send(url, "GET", "/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert "/v1/responses" in page
    assert send(url, "GET", "/docs.css")[0] == 200
