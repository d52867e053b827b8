"""A gateway in front of a client whose answers are chosen."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import uvicorn

from gradellm_gateway.app import gateway as make_app
from gradellm_gateway.connections import uvicorn_config
from gradellm_gateway.tools.forms import AnswerForms


@contextmanager
def serving(client: Any, forms: AnswerForms | None = None) -> Iterator[openai.OpenAI]:
    """OpenAI's client of a gateway in front of a scripted server."""
    process = uvicorn.Server(uvicorn_config(make_app(client, forms=forms), port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=process.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not process.started and time.monotonic() < until:
        time.sleep(0.01)
    port = process.servers[0].sockets[0].getsockname()[1]
    try:
        key = "none"  # pragma: allowlist secret (none)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)
    finally:
        process.should_exit = True
        thread.join(10)
