"""Unknown paths and methods."""

from __future__ import annotations

import openai
import pytest

from support.http.calls import send


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1", 404, None),
        ("GET", "/v1/", 404, None),
        ("GET", "/v1/engines", 404, None),
        ("POST", "/v1/embeddings", 404, None),
        ("GET", "/v1/responses/resp_1", 404, None),
        ("DELETE", "/v1/files/x", 404, None),
        ("OPTIONS", "/v1/nothing", 404, None),
        ("POST", "/v1/" + "x" * 3000, 404, None),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("PUT", "/v1/chat/completions", 405, "POST"),
        ("GET", "/v1/completions", 405, "POST"),
        ("GET", "/v1/responses", 405, "POST"),
        ("GET", "/tokenize", 405, "POST"),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("DELETE", "/v1/models/x", 405, "GET, HEAD"),
        ("POST", "/v1/gradellm/info", 405, "GET, HEAD"),
        ("GET", "/v1/gradellm/evaluate", 405, "POST"),
        ("POST", "/healthz", 405, "GET, HEAD"),
        ("DELETE", "/shades.css", 405, "GET, HEAD"),
        ("POST", "/", 405, "GET, HEAD"),
        ("GET", "/nothing", 404, None),
    ],
)
def test_unknown_routes_return_an_openai_error(
    url: str, method: str, path: str, status: int, allow: str | None
) -> None:
    found, headers, said = send(url, method, path)
    assert found == status
    assert headers["Allow"] == allow
    error = said["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 200


def test_the_openai_client_raises_not_found_for_unknown_routes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"there is no .*/v1/embeddings"):
        client.embeddings.create(model="gradellm", input="a")
