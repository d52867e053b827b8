"""Whether the upstream has the explainer's model, as far as its tokenizer tells: compared when the gateway starts.

| compared | by | where it differs |
| --- | --- | --- |
| the tokenizer, on a few texts | POST /tokenize beside /v1, which vLLM has | the gateway ends |
| the chat template, on one chat | `return_token_ids` of a chat of one token | answers are explained by their ids |

An upstream with neither tells no ids: its answers' texts are tokenised again. Log-probabilities, which tell weights
apart, are compared while answers are explained.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gradellm import AsyncClient, GradellmError
from gradellm_gateway.upstream.answer_fields import NUM_TOP_LOGPROBS
from gradellm_gateway.upstream.connection import Upstream, UpstreamError
from gradellm_gateway.upstream.provenance import Compared

__all__ = ["Comparison", "ModelComparison", "OtherModelError"]

_log = logging.getLogger("uvicorn.error")
RETRY_SECONDS = 2.0
_NOT_READY = (502, 503, 504)  # of servers that load their model, and of proxies before them
TEXTS = (
    "The quick brown fox jumps over 13 lazy dogs; isn't that 3.14159 times as many?",
    "def f(x):\n\treturn {'a': x ** 2}  # indented\n\n\n    <b>&amp;</b>",
    "Überraschung: naïve façade, Ελληνικά, русский, 日本語のテキスト, العربية, 👩‍🚀🚀 ½€",
)
CHAT = ({"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Which colour has the sky?"})


class OtherModelError(Exception):
    """The upstream has another model than the explainer."""


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        model: the upstream's name of its model; empty if it does not say.
        tokenizer: whether it is the explainer's.
        template: whether the chat template is.
        tells_ids: whether the upstream returns token ids of its answers.
        tells_top: whether also log-probabilities of the most probable tokens: vLLM's `--max-logprobs` limits them.
    """

    model: str
    tokenizer: Compared
    template: Compared
    tells_ids: bool
    tells_top: bool


class ModelComparison:
    """Compares once both are up, and tries again until then.

    Args:
        upstream: the server that generates.
        explainer: the client of the server that explains.
        on_other_model: is called with the message if the models differ.
    """

    def __init__(self, upstream: Upstream, explainer: AsyncClient, on_other_model: Callable[[str], object]) -> None:
        self._upstream, self._explainer, self._on_other_model = upstream, explainer, on_other_model
        self.found: Comparison | None = None
        self.missing = "the upstream's model has not been compared with the explainer's yet"

    async def run(self) -> None:
        """Compare, and return when it is done."""
        while self.found is None:
            try:
                self.found = await self._compare()
            except OtherModelError as error:
                self.missing = str(error)
                self._on_other_model(str(error))
                return
            except (UpstreamError, GradellmError) as error:
                self._wait_for(str(error))
                await asyncio.sleep(RETRY_SECONDS)
        found = self.found
        _log.info(
            "Compared the upstream %s with the explainer: tokenizer %s, chat template %s; %s",
            self._upstream.address,
            found.tokenizer,
            found.template,
            "it tells token ids" if found.tells_ids else "it tells no token ids: answers are tokenised again",
        )

    def _wait_for(self, reason: str) -> None:
        if reason != self.missing:
            _log.warning("Chats are not explained yet, and passed on only: %s", reason)
        self.missing = reason

    async def _compare(self) -> Comparison:
        model = await self._model()
        info = await self._explainer.server_info(timeout=10)
        tokenizer: Compared = "not proved"
        template: Compared = "not proved"
        for text in TEXTS:
            found = await self._tokenize(model, prompt=text)
            if found is None:
                break
            own = [token.id for token in (await self._explainer.tokenize(text)).tokens]
            if found != own:
                differ = f"their tokenizers differ ({len(found)} and {len(own)} tokens for {text[:20]!r}...)"
                raise self._other_model(model, info.model.name, differ)
            tokenizer = "same"
        with_top = await self._prompt_of_a_chat(model, top_logprobs=NUM_TOP_LOGPROBS)
        probe = with_top or await self._prompt_of_a_chat(model)
        chat = probe or await self._tokenize(model, messages=CHAT, add_generation_prompt=True)
        if chat is not None and info.model.has_chat_template:
            own = [token.id for token in (await self._explainer.tokenize(messages=CHAT)).tokens]
            template = "same" if chat == own else "different"
            if chat == own:
                tokenizer = "same"
            elif tokenizer == "not proved":
                await self._check_decoded(chat, model, info.model.name)
        return Comparison(model, tokenizer, template, tells_ids=probe is not None, tells_top=with_top is not None)

    async def _model(self) -> str:
        """Return the upstream's model. Raises UpstreamError while it is not ready."""
        status, answer = await self._upstream.call("GET", "/models")
        if status in _NOT_READY:
            raise UpstreamError(f"the upstream at {self._upstream.address} answers {status}", 503, "upstream_not_ready")
        models = answer.get("data") if isinstance(answer, Mapping) else None
        first = models[0] if isinstance(models, list) and models else None
        name = first.get("id") if isinstance(first, Mapping) else None
        return name if isinstance(name, str) else ""

    async def _tokenize(self, model: str, **what: Any) -> list[int] | None:  # noqa: ANN401 (fields of the request)
        """Return the ids of vLLM's /tokenize; None for an upstream without it."""
        status, answer = await self._upstream.beside().call("POST", "/tokenize", {**_named(model), **what})
        return _ids(answer, "tokens") if status == 200 else None

    async def _prompt_of_a_chat(self, model: str, **more: int) -> list[int] | None:
        """Return the ids of a chat's prompt; None for an upstream that tells no ids, or refuses what is asked."""
        asked = {"return_token_ids": True, "logprobs": True, "max_tokens": 1, "temperature": 0, **more}
        body = {**_named(model), "messages": CHAT, **asked}
        status, answer = await self._upstream.call("POST", "/chat/completions", body)
        return _ids(answer, "prompt_token_ids") if status == 200 else None

    async def _check_decoded(self, ids: list[int], theirs: str, own: str) -> None:
        """Raise OtherModelError if ids of the upstream are no chat in the explainer's vocabulary."""
        try:
            text = (await self._explainer.tokenize(prompt_ids=ids)).prompt_text
        except GradellmError as error:
            text = f"({error})"
        if not all(message["content"] in text for message in CHAT):
            raise self._other_model(theirs, own, f"the upstream's token ids of a chat are {text[:60]!r} there")

    def _other_model(self, theirs: str, own: str, reason: str) -> OtherModelError:
        theirs = theirs or self._upstream.address
        return OtherModelError(
            f"the upstream's model {theirs} is not the explainer's, {own}: {reason}; start the explainer with the "
            "upstream's model"
        )


def _named(model: str) -> dict[str, str]:
    return {"model": model} if model else {}


def _ids(answer: object, name: str) -> list[int] | None:
    ids = answer.get(name) if isinstance(answer, Mapping) else None
    if not isinstance(ids, list) or not ids or not all(type(each) is int and each >= 0 for each in ids):
        return None
    return ids
