"""JSON that quotes what UTF-8 cannot encode."""

from __future__ import annotations

from gradellm_gateway.json_response import AsciiJSONResponse


def test_a_lone_surrogate_is_escaped() -> None:
    assert AsciiJSONResponse({"a": "\ud800"}).body == rb'{"a":"\ud800"}'
