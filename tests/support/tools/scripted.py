"""A client whose answers are chosen, in place of an explanation server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from gradellm import Event, Explanation, PromptToken
from gradellm.models import Finished, ModelInfo, ServerInfo, Timings, TokenizedPrompt, Usage
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import responses
from gradellm.wire.requests import generate_request

FINISHED = Finished("end_of_text", "", Usage(6, 11, 11, 0), Timings(0.0, 0.0, 0.0, 0.0))


class ScriptedClient:
    """Answers every request with one explanation.

    Attributes:
        keywords: of the last generation.
        ids: of markers that are tokens of their own.
    """

    def __init__(self, answer: Explanation, **model: Any) -> None:
        self.answer = replace(answer, finished=answer.finished or FINISHED)
        self.keywords: dict[str, Any] = {}
        self.ids: dict[str, int] = {}
        self._info = responses.server_info(pb.GetServerInfoResponse())
        self.model = ModelInfo(**(_as_dict(self._info.model) | {"name": "scripted"} | model))

    async def server_info(self, **keywords: Any) -> ServerInfo:
        return replace(self._info, model=self.model)

    async def tokenize(self, prompt: str, **keywords: Any) -> TokenizedPrompt:
        start = PromptToken(1, "", 0, 0, "template", None, "", True)
        if prompt not in self.ids:
            return TokenizedPrompt(prompt, (start,))
        return TokenizedPrompt(
            prompt, (start, PromptToken(self.ids[prompt], prompt, 0, len(prompt), "template", None, "", True))
        )

    async def generate(self, **keywords: Any) -> AsyncGenerator[Event, None]:
        self._take(keywords)
        for event in self.answer.events():
            if event.attribution is None or keywords.get("attribution", True) is not None:
                yield event

    async def explain(self, **keywords: Any) -> Explanation:
        self._take(keywords)
        return self.answer

    def _take(self, keywords: dict[str, Any]) -> None:
        generate_request(None, keywords)  # type: ignore[arg-type]  # raises for what the SDK does not take
        self.keywords = keywords

    def with_metadata(self, metadata: Any) -> ScriptedClient:
        return self

    def with_token(self, token: str | None) -> ScriptedClient:
        return self

    async def close(self) -> None:
        pass


def _as_dict(model: ModelInfo) -> dict[str, Any]:
    return {name: getattr(model, name) for name in ModelInfo.__dataclass_fields__}
