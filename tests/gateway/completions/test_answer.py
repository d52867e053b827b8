"""Text completions as chunks and as one answer; test_completions.py among the routes has them from a server."""

from __future__ import annotations

from gradellm.models import PromptToken
from gradellm_gateway.completions.answer import TextAnswer
from gradellm_gateway.completions.choices import ChoiceItem, Echo
from gradellm_gateway.completions.request import CompletionRequest

ECHO = Echo("ab", (PromptToken(5, "a", 0, 1, "user", None, "", False),), None)


def test_a_prompt_alone() -> None:
    request = CompletionRequest.from_json({"prompt": ["ab", "ab"], "echo": True, "max_tokens": 0})
    items = [ChoiceItem(index, content) for content in (ECHO, None) for index in (1, 0)]
    answer = TextAnswer(request, "m", "cmpl-1").response(items)
    assert (answer["id"], answer["model"], answer["object"]) == ("cmpl-1", "m", "text_completion")
    assert [(part["index"], part["text"]) for part in answer["choices"]] == [(0, "ab"), (1, "ab")]
    assert answer["usage"]["total_tokens"] == 2


def test_usage_is_told_once_after_the_last_choice() -> None:
    body = {"prompt": ["ab", "ab"], "echo": True, "max_tokens": 0, "stream": True}
    request = CompletionRequest.from_json({**body, "stream_options": {"include_usage": True}})
    answer = TextAnswer(request, "m", "cmpl-1")
    items = [ChoiceItem(index, content) for index in (0, 1) for content in (ECHO, None)]
    chunks = [chunk for item in items for chunk in answer.chunks(item)]
    assert [bool(chunk["choices"]) for chunk in chunks] == [True] * 4 + [False]
    assert chunks[-1]["usage"]["prompt_tokens"] == 2
