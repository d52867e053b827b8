"""A server without a model: `python -m trials.load.fake_server ADDRESS TOKENS SCORES PAUSE`.

Every Generate call gets the same TOKENS tokens, each with SCORES scores, PAUSE seconds apart.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from gradellm.v1 import explainer_pb2 as pb
from gradellm.v1 import explainer_pb2_grpc


class FakeServicer(explainer_pb2_grpc.ExplainerServiceServicer):
    """Sends every caller the same stream."""

    def __init__(self, count: int, num_scores: int, pause: float) -> None:
        scores = [i / num_scores for i in range(num_scores)]
        self._pause = pause
        prompt = [
            pb.PromptToken(id=i, text=" a", start=2 * i, end=2 * i + 2, role=pb.ROLE_USER) for i in range(num_scores)
        ]
        provenance = pb.Provenance(model=pb.ModelInfo(name="none"), sampling=pb.Sampling(max_new_tokens=count))
        self._first = pb.GenerateResponse(
            started=pb.Started(prompt_text=" a" * num_scores, prompt_tokens=prompt, provenance=provenance)
        )
        self._events = [
            (
                pb.GenerateResponse(token=pb.Token(index=i, id=5, text=" a", start=2 * i, end=2 * i + 2, logprob=-1)),
                pb.GenerateResponse(attribution=pb.Attribution(token_index=i, scores=scores, target_token_id=5)),
            )
            for i in range(count)
        ]
        self._last = pb.GenerateResponse(finished=pb.Finished(reason=pb.FINISH_REASON_MAX_NEW_TOKENS))

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield self._first
        for token, attribution in self._events:
            yield token
            yield attribution
            if self._pause:
                await asyncio.sleep(self._pause)
        yield self._last


async def main(address: str, count: int, num_scores: int, pause: float) -> None:
    server = grpc.aio.server()
    explainer_pb2_grpc.add_ExplainerServiceServicer_to_server(FakeServicer(count, num_scores, pause), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
