"""The document as a page."""

from __future__ import annotations

from gradellm_gateway.openapi.document import OPERATIONS
from gradellm_gateway.openapi.page import docs_page


def test_the_page_has_every_operation_and_no_script() -> None:
    page = docs_page()
    for operation in OPERATIONS:
        assert f"{operation.method.upper()} {operation.path}<" in page
    assert "<script" not in page
    assert "http://" not in page
    assert "max_completion_tokens" in page
