"""A vLLM that a gradellm server with a tiny model generates for: the fields and forms of vLLM 0.32's answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from gradellm import AsyncClient, GradellmError, Token
from support.http.server import HttpServer, Received, Reply

MODEL = "models/tiny"
CREATED = 1_796_100_209
KEY = "sk-the-callers-key"  # pragma: allowlist secret (of a test)


class FakeVllm(HttpServer):
    """Serves /v1/models, /v1/chat/completions, /v1/echo and /tokenize.

    Attributes:
        tells_ids: whether it knows `return_token_ids`.
        has_tokenize: whether it has /tokenize.
        is_strict: whether it refuses fields that it does not know, as some engines do.
        needs_key: whether requests below /v1 need `KEY`.
        shift: added to the ids of prompts, as of another vocabulary.
        prompt_suffix: appended to the prompt, as by another template.
        logprob_shift: added to log-probabilities, as of other weights.
        max_logprobs: the most `top_logprobs` that it allows.
        pause_seconds: before each token.
        break_after: tokens after which the connection breaks off.
    """

    def __init__(self, target: str, port: int = 0) -> None:
        self.tells_ids = self.has_tokenize = True
        self.is_strict = self.needs_key = False
        self.shift = 0
        self.prompt_suffix = ""
        self.logprob_shift = 0.0
        self.max_logprobs = 20
        self.pause_seconds = 0.0
        self.break_after: int | None = None
        super().__init__(self._handle, port)
        self._run(self._connect(target))

    async def _connect(self, target: str) -> None:
        self._client = AsyncClient(target)

    @property
    def chats(self) -> list[Any]:
        """Bodies of the chat completion requests."""
        return [each.json for each in self.received if each.target.startswith("/v1/chat/completions")]

    async def _handle(self, request: Received, reply: Reply) -> None:
        path = request.target.partition("?")[0]
        if self.needs_key and path.startswith("/v1/") and request.header("authorization") != f"Bearer {KEY}":
            await reply.json({"error": "Unauthorized"}, 401)
        elif path == "/v1/models":
            await reply.json({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        elif path == "/tokenize" and self.has_tokenize:
            await self._tokenize(request.json, reply)
        elif path == "/v1/chat/completions":
            await self._chat(request.json, reply)
        elif path == "/v1/echo":
            await reply.json({"method": request.method, "body": request.body.decode()}, 418, {"X-Own": "yes"})
        else:
            await reply.json({"detail": "Not Found"}, 404)

    async def _tokenize(self, body: Any, reply: Reply) -> None:
        found = await self._client.tokenize(body.get("prompt"), messages=body.get("messages"))
        ids = [token.id + self.shift for token in found.tokens]
        await reply.json({"count": len(ids), "max_model_len": 2048, "tokens": ids, "token_strs": None})

    # --- chats -------------------------------------------------------------------------------------------------------

    async def _chat(self, body: Any, reply: Reply) -> None:
        unknown = body.keys() - {"model", "messages", "max_tokens", "temperature", "seed", "stop", "stream", "n"}
        if self.is_strict and unknown:
            await reply.json({"detail": f"Unexpected fields in the request: {sorted(unknown)}"}, 422)
            return
        if body.get("top_logprobs") and not body.get("logprobs"):
            message = "when using `top_logprobs`, `logprobs` must be set to true."
            await reply.json({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)
            return
        if (body.get("top_logprobs") or 0) > self.max_logprobs:
            message = f"Requested sample logprobs of {body['top_logprobs']}, which is greater than max allowed"
            await reply.json({"error": {"message": message, "type": "BadRequestError", "code": 400}}, 400)
            return
        try:
            prompt = await self._client.tokenize(messages=_texts(body["messages"]))
            ids = [token.id for token in prompt.tokens]
            if self.prompt_suffix:
                other = await self._client.tokenize(prompt.prompt_text + self.prompt_suffix)
                ids = [token.id for token in other.tokens]
            choices = [await self._tokens(body, ids, index) for index in range(body.get("n") or 1)]
        except GradellmError as error:
            await reply.json({"error": {"message": str(error), "type": "BadRequestError", "code": 400}}, 400)
            return
        await (
            self._stream(body, ids, choices, reply) if body.get("stream") else self._whole(body, ids, choices, reply)
        )

    async def _tokens(self, body: Any, ids: list[int], index: int) -> list[Token]:
        settings = {name: body[name] for name in ("temperature", "stop") if body.get(name) is not None}
        settings |= {"max_new_tokens": body.get("max_tokens") or 8, "seed": (body.get("seed") or 0) + index}
        settings["num_alternatives"] = body.get("top_logprobs") or 0
        events = self._client.generate(prompt_ids=ids, attribution=None, **settings)
        return [event.token async for event in events if event.token is not None]

    def _choice(self, body: Any, tokens: list[Token]) -> dict[str, Any]:
        asked = body.get("return_token_ids") and self.tells_ids
        logprobs = [self._logprob(token) for token in tokens]
        made: dict[str, Any] = {"logprobs": {"content": logprobs} if body.get("logprobs") else None}
        return made | ({"token_ids": [token.id for token in tokens] if asked else None} if self.tells_ids else {})

    def _logprob(self, token: Token) -> dict[str, Any]:
        logprob = (token.logprob or 0.0) + self.logprob_shift
        told = {"token": token.text, "logprob": logprob, "bytes": list(token.text.encode())}
        others = [each for each in token.alternatives if each.id != token.id]
        chosen = [told] if token.alternatives else []  # vLLM lists it first, wherever it ranks
        top = [{"token": each.text, "logprob": each.logprob, "bytes": list(each.text.encode())} for each in others]
        return {**told, "top_logprobs": [*chosen, *top][: len(token.alternatives)]}

    def _prompt(self, body: Any, ids: list[int]) -> dict[str, Any]:
        if not self.tells_ids:
            return {}
        ids = [each + self.shift for each in ids]
        return {"prompt_token_ids": ids if body.get("return_token_ids") else None, "prompt_text": None}

    async def _whole(self, body: Any, ids: list[int], choices: list[list[Token]], reply: Reply) -> None:
        made = [
            {
                "index": index,
                "message": {"role": "assistant", "content": _text(tokens), "refusal": None, "annotations": None},
                "finish_reason": _reason(body, tokens),
                "stop_reason": None,
                **self._choice(body, tokens),
            }
            for index, tokens in enumerate(choices)
        ]
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": CREATED, "model": MODEL}
        await reply.json({**head, "choices": made, "usage": _usage(ids, choices), **self._prompt(body, ids)})

    async def _stream(self, body: Any, ids: list[int], choices: list[list[Token]], reply: Reply) -> None:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": CREATED, "model": MODEL}
        await reply.events()
        for index in range(len(choices)):
            delta = {"role": "assistant", "content": ""}
            first = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            await reply.event({**head, "choices": [first], **self._prompt(body, ids)})
        for place in range(max(map(len, choices))):
            for index, tokens in enumerate(choices):
                if place >= len(tokens):
                    continue
                await asyncio.sleep(self.pause_seconds)
                is_last = place == len(tokens) - 1
                choice = {"index": index, "delta": {"content": tokens[place].text}}
                choice["finish_reason"] = _reason(body, tokens) if is_last else None
                choice |= self._choice(body, tokens[place : place + 1]) | ({"stop_reason": None} if is_last else {})
                await reply.event({**head, "choices": [choice]})
            if self.break_after == place + 1:
                reply.break_off()
                return
        if (body.get("stream_options") or {}).get("include_usage"):
            await reply.event({**head, "choices": [], "usage": _usage(ids, choices)})
        await reply.done()


def _texts(messages: list[Any]) -> list[dict[str, str]]:
    """Messages as this server renders them: parts of text one below the other, as vLLM has them."""
    made = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "\n".join(part["text"] for part in content)
        made.append({"role": message["role"], "content": content})
    return made


def _reason(body: Any, tokens: list[Token]) -> str:
    return "length" if len(tokens) == (body.get("max_tokens") or 8) else "stop"


def _text(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


def _usage(ids: list[int], choices: list[list[Token]]) -> dict[str, int]:
    count = sum(map(len, choices))
    return {"prompt_tokens": len(ids), "total_tokens": len(ids) + count, "completion_tokens": count}


def data_lines(said: str) -> list[Any]:
    """The data of a stream's events: JSON values, and texts that are none."""
    lines = [line.removeprefix("data: ") for line in said.split("\n") if line.startswith("data: ")]
    return [json.loads(line) if line.startswith("{") else line for line in lines]
