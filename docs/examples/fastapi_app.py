"""FastAPI: a route that streams an answer with its attributions, as server-sent events.

pip install fastapi uvicorn gradellm
gradellm serve &
GRADELLM_TARGET=localhost:50051 uvicorn fastapi_app:app
curl -N localhost:8000/ask -H 'Content-Type: application/json' -d '{"question": "Is the sky green?"}'
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from gradellm import AsyncClient, GradellmError

client = AsyncClient(os.environ.get("GRADELLM_TARGET", "localhost:50051"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await client.close()


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    question: str


@app.post("/ask")
async def ask(question: Question) -> StreamingResponse:
    return StreamingResponse(lines(question.question), media_type="text/event-stream")


async def lines(question: str) -> AsyncIterator[str]:
    """One line an event. Where the caller leaves, so does this generator, which cancels the call."""
    try:
        async for event in client.generate(messages=[("user", question)], max_new_tokens=128):
            if event.token:
                yield sse(token=event.token.text, index=event.token.index)
            if event.attribution:
                yield sse(explains=event.attribution.token_index, scores=event.attribution.scores)
    except GradellmError as error:
        yield sse(error=str(error))


def sse(**fields: object) -> str:
    return f"data: {json.dumps(fields)}\n\n"
