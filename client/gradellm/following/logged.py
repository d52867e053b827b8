"""Logged requests of OpenAI's API with their answers: what of them can be explained.

A record is {"request": {...}, "response": {...}}: the JSON that was sent, and that of the answer, or the list of its
chunks where it was streamed. With vLLM's `return_token_ids` and `logprobs` in the request, the answer has the tokens
that the engine read and wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gradellm.errors import InvalidRequestError, PermissionDeniedError
from gradellm.following.openai_chunks import ChoiceReader
from gradellm.following.openai_requests import constrains_sampling, prompt_keywords

if TYPE_CHECKING:
    from gradellm.client import Client
    from gradellm.explanation.explanation import Explanation
    from gradellm.wire.keywords import AttributeKeywords, FollowKeywords

__all__ = ["LoggedAnswer", "logged_answers"]

_Keywords = TypeVar("_Keywords", "AttributeKeywords", "FollowKeywords")


@dataclass(frozen=True)
class LoggedAnswer:
    """One choice of a logged answer."""

    choice: int
    """Its index."""
    reader: ChoiceReader
    """What the answer says of it."""
    has_free_logprobs: bool
    """Whether its log-probabilities are those of the whole vocabulary, so that they can be compared."""

    unrendered: InvalidRequestError | None = None
    """Why the request's prompt cannot be made again; the answer's own prompt ids do without it."""

    @property
    def tells_ids(self) -> bool:
        """Whether the answer has token ids; otherwise its text is tokenized again."""
        return self.reader.tells_ids

    def explain(self, client: Client) -> Explanation:
        """Explain the answer. Raises InvalidRequestError where the record does not say what the prompt was."""
        if self.unrendered is not None and not self.reader.prompt_ids:
            raise self.unrendered
        if not self.tells_ids:
            return client.attribute(**_without_ignored(client, self.reader.attribute_keywords()))
        with client.follow(**_without_ignored(client, self.reader.follow_keywords())) as following:
            for ids, *logprobs in self.reader.take():
                following.append(ids, *(logprobs if self.has_free_logprobs else ()))
            return following.result()


def logged_answers(record: object, keywords: FollowKeywords) -> Iterator[LoggedAnswer]:
    """Yield the choices of a record, in order; `keywords` are those of `Client.follow`, but for the prompt.

    Raises InvalidRequestError for another object.
    """
    if not isinstance(record, Mapping) or not {"request", "response"} <= record.keys():
        raise InvalidRequestError('must be an object {"request": {...}, "response": {...}}')
    request, response = record["request"], record["response"]
    chunks = response if isinstance(response, list) else [response]
    if not isinstance(request, Mapping) or not chunks or not all(isinstance(chunk, Mapping) for chunk in chunks):
        raise InvalidRequestError("request must be an object, and response an object or a list of chunks")
    if error := next((chunk["error"] for chunk in chunks if chunk.get("error")), None):
        raise InvalidRequestError(f"the response is an error: {str(error)[:200]}")
    prompt: dict[str, Any] = {}
    unrendered = None
    try:
        prompt = prompt_keywords(request)
    except InvalidRequestError as error:
        unrendered = error
    indexes = sorted({choice.get("index") or 0 for chunk in chunks for choice in chunk.get("choices") or ()})
    if not indexes:
        raise InvalidRequestError("the response has no choices; a log is of chat completions or completions")
    for index in indexes:
        reader = ChoiceReader(index, {**keywords, **prompt})  # type: ignore[typeddict-item]
        for chunk in chunks:
            reader.add(chunk)
        yield LoggedAnswer(index, reader, not constrains_sampling(request), unrendered)


def _without_ignored(client: Client, keywords: _Keywords) -> _Keywords:
    """Return the keywords without tools where the model's chat template has none: other engines ignore them, too."""
    if not keywords.get("tools"):
        return keywords
    try:
        has_tools = client.server_info().model.has_tools
    except PermissionDeniedError:
        return keywords
    return keywords if has_tools else cast("_Keywords", {**keywords, "tools": None})
