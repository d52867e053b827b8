"""The chat page's files."""

from __future__ import annotations

from support.http.calls import send


def test_the_page_and_its_shades_run_no_foreign_scripts(url: str) -> None:
    for path in ("/", "/chat.js", "/shades.css"):
        status, headers, said = send(url, "GET", path)
        assert (status, bool(said)) == (200, True)
        assert headers["Content-Security-Policy"].startswith("default-src 'self'")
