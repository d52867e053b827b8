"""Messages are found in the upstream's prompt by their text."""

from __future__ import annotations

import re

import pytest

from gradellm import InvalidRequestError, PromptToken, TokenizedPrompt
from gradellm_gateway.upstream.prompt import ChatMessage, place_messages


def tokenized(text: str) -> TokenizedPrompt:
    """A prompt whose tokens are words, special tokens and single other characters."""
    found = re.finditer(r"<\|\w+\|>|\w+|.", text, re.DOTALL)
    tokens = (PromptToken(1, match[0], match.start(), match.end(), None, None, "", False) for match in found)
    return TokenizedPrompt(text, tuple(tokens))


def test_messages_are_found_one_after_the_other() -> None:
    text = "<|im|>system\nBe brief.<|end|><|im|>user\nuser<|end|><|im|>assistant\na<|end|><|im|>user\nHi<|end|>"
    messages = [
        ChatMessage.of({"role": "system", "content": "Be brief."}),
        ChatMessage.of({"role": "user", "content": "user"}),
        ChatMessage.of({"role": "assistant", "content": "a"}),
        ChatMessage.of({"role": "user", "content": [{"type": "text", "text": "Hi"}]}),
    ]
    placed = place_messages(messages, tokenized(text))
    found = [(role, text[start:end]) for role, start, end in placed.spans]
    assert found == [("system", "Be brief."), ("user", "user"), ("assistant", "a"), ("user", "Hi")]
    assert placed.spans[2][1] == text.index("\na<") + 1  # not in "assistant"


def test_segments_are_those_of_the_prompt_also_where_the_template_trims() -> None:
    content = "  The soup is five coins.\n\nBread is two.  "
    text = f"<|user|>{content.strip()}<|end|>"
    placed = place_messages([ChatMessage("user", (content,))], tokenized(text))
    start = content.index("Bread")
    assert slice_of(text, placed.span("bread", (0, start, start + 13))) == "Bread is two."
    with pytest.raises(InvalidRequestError, match=r"gradellm\.segments\.all"):
        placed.span("all", (0, 0, len(content)))


def slice_of(text: str, span: tuple[int, int]) -> str:
    return text[slice(*span)]


def test_parts_of_a_message_are_found_each() -> None:
    text = "<|user|>One.\nTwo.<|end|>"
    placed = place_messages([ChatMessage("user", ("One.", "Two."))], tokenized(text))
    assert slice_of(text, placed.spans[0][1:]) == "One.\nTwo."
    assert slice_of(text, placed.span("both", (0, 0, 8))) == "One.\nTwo."
    assert slice_of(text, placed.span("two", (0, 4, 8))) == "Two."


def test_what_is_not_found_stays_template() -> None:
    placed = place_messages([ChatMessage("tool", ("rewritten",)), ChatMessage("user", ("Hi",))], tokenized("{Hi}"))
    assert placed.spans == (("user", 1, 3),)
    with pytest.raises(InvalidRequestError):
        placed.span("x", (0, 0, 3))


def test_roles_and_contents_of_any_kind() -> None:
    assert ChatMessage.of({"role": "developer", "content": "a"}) == ChatMessage("system", ("a",))
    assert ChatMessage.of({"role": "critic", "content": None}) == ChatMessage("other", ())
    assert ChatMessage.of({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}).parts == ()
    assert ChatMessage.of(3) == ChatMessage("other", ())
