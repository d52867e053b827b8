"""JSON responses of the gateway."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import JSONResponse

__all__ = ["AsciiJSONResponse"]


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII: it may quote a caller's lone surrogates, which UTF-8 cannot encode."""

    def render(self, content: Any) -> bytes:  # noqa: ANN401 (Starlette's)
        """See Starlette's."""
        return json.dumps(content, separators=(",", ":")).encode()
