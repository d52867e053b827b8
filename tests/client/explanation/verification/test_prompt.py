"""The reconstruction of a prompt's input, with a tokenizer and a chat template that are small enough to read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from client.explanation.verification.conftest import complete
from gradellm import Explanation, InvalidRequestError, PromptToken, TokenizedPrompt
from gradellm.explanation.verification.prompt import replay_prompt


def pieces(text: str) -> list[tuple[int, int]]:
    """Spans of words with the white space before them, and of white space at the end."""
    return [match.span() for match in re.finditer(r"\s*\S+|\s+$", text)]


VOCABULARY: dict[str, int] = {}


def token_of(text: str, start: int, end: int, **fields: Any) -> PromptToken:
    piece = text[start:end]
    token = PromptToken(VOCABULARY.setdefault(piece, len(VOCABULARY)), piece, start, end, "template", None, "", False)
    return replace(token, **fields)


class Server:
    """Tokenizes as `Client.tokenize` does. Messages are rendered as "[role]content" lines, then "[assistant]"."""

    def __init__(self, header: str = "", names: tuple[str, ...] = ("system", "user", "assistant", "tool")) -> None:
        self.header = header
        self.names = names
        self.requests: list[dict[str, Any]] = []

    def tokenize(self, keywords: dict[str, Any]) -> TokenizedPrompt:
        self.requests.append(keywords)
        if "prompt_ids" in keywords:
            by_id = {number: piece for piece, number in VOCABULARY.items()}
            return self._decoded([by_id[number] for number in keywords["prompt_ids"]])
        if "prompt" in keywords:
            return self._raw(keywords["prompt"], keywords.get("segments", {}))
        return self._rendered(keywords["messages"], keywords.get("segments", {}))

    def _raw(self, text: str, segments: dict[str, tuple[int, int]]) -> TokenizedPrompt:
        tokens = [token_of(text, start, end, role="user", segment=name_of(segments, None, start, end))
                  for start, end in pieces(text)]  # fmt: skip
        return TokenizedPrompt(text, tuple(tokens))

    def _decoded(self, texts: list[str]) -> TokenizedPrompt:
        text = "".join(texts)
        ends = list(itertools.accumulate(map(len, texts)))
        tokens = [token_of(text, start, end, role="user") for start, end in itertools.pairwise([0, *ends])]
        return TokenizedPrompt(text, tuple(tokens))

    def _rendered(self, messages: list[tuple[str, str]], segments: dict[str, Any]) -> TokenizedPrompt:
        text, spans = self.header, []
        for role, content in messages:
            text += f"[{role}]"
            spans.append((len(text), role, content))
            text += f"{content}\n"
        text += "[assistant]"
        tokens, position = [], 0
        for index, (start, role, content) in enumerate(spans):
            tokens += [token_of(text, position + a, position + b) for a, b in pieces(text[position:start])]
            named = role if role in self.names else "other"
            tokens += [
                token_of(text, start + a, start + b, role=named, message=index, segment=name_of(segments, index, a, b))
                for a, b in pieces(content)
            ]
            position = start + len(content)
        tokens += [token_of(text, position + a, position + b) for a, b in pieces(text[position:])]
        return TokenizedPrompt(text, tuple(tokens))


def name_of(segments: dict[str, Any], message: int | None, start: int, end: int) -> str:
    """The segment that shares a character with a span of a message."""
    for name, span in segments.items():
        *of_message, first, last = span
        if of_message in ([], [message]) and start < last and first < end:
            return name
    return ""


def stored_prompt(prompt: TokenizedPrompt, **changes: Any) -> Explanation:
    """An explanation of this prompt, with a score for each of its tokens."""
    loaded = complete()
    fields = {"prompt_text": prompt.prompt_text, "prompt_tokens": prompt.tokens, **changes}
    rows = tuple(replace(row, scores=(1.0,) * len(prompt.tokens)) for row in loaded.attributions)
    return replace(loaded, started=replace(loaded.started, **fields), attributions=rows)


INPUTS: dict[str, dict[str, Any]] = {
    "a text": {"prompt": "Once upon  a time "},
    "a text with segments": {"prompt": "Once upon a time", "segments": {"a": (5, 9), "b": (10, 16)}},
    "messages": {"messages": [("system", "Be kind."), ("user", "Hi fox")]},
    "roles of any name": {"messages": [("critic", "Be kind."), ("user", "Hi fox")]},
    "an empty message": {"messages": [("system", ""), ("user", "Hi fox")]},
    "messages with segments": {"messages": [("user", "Hi"), ("assistant", "a b c")], "segments": {"x": (1, 2, 3)}},
}


@pytest.mark.parametrize("how", INPUTS)
def test_the_input_is_found_from_its_tokens(how: str) -> None:
    """The keywords that are found give every field of every token again."""
    tokenized = Server().tokenize(INPUTS[how])
    found = replay_prompt(Server().tokenize, stored_prompt(tokenized))
    assert found.is_exact
    assert found.problems == ()
    assert Server().tokenize(found.keywords) == tokenized
    segments = [item for item in found.not_checked if item.what.endswith("segment")]
    assert bool(segments) == ("segments" in INPUTS[how])  # their names are the caller's


def changed(how: Callable[[PromptToken], PromptToken], **changes: Any) -> Explanation:
    tokenized = Server().tokenize({"messages": [("system", "Be kind."), ("user", "Hi fox")]})
    return stored_prompt(replace(tokenized, tokens=tuple(map(how, tokenized.tokens))), **changes)


@pytest.mark.parametrize(
    "how",
    [
        lambda token: replace(token, role="user" if token.role == "system" else token.role),
        lambda token: replace(token, message=None if token.message is None else 1 - token.message),
        lambda token: replace(token, role="template", message=None) if token.message == 0 else token,
        lambda token: replace(token, role="assistant") if token.text == " fox" else token,
    ],
    ids=["another role", "messages swapped", "a message hidden", "two roles in a message"],
)
def test_changed_roles_and_messages_are_problems(how: Callable[[PromptToken], PromptToken]) -> None:
    found = replay_prompt(Server().tokenize, changed(how))
    assert not found.is_exact
    assert found.problems
    assert list(found.keywords) == ["prompt_ids"]  # the numbers can be compared still


def test_changed_texts_are_problems() -> None:
    tokenized = Server().tokenize({"prompt": "Once upon a time"})
    other = replay_prompt(
        Server().tokenize, stored_prompt(replace(tokenized, prompt_text=tokenized.prompt_text.replace("upon", "over")))
    )
    assert "the prompt's text is not that of its tokens" in other.problems
    assert "prompt token 1: text is ' upon', but at its offsets is ' over'" in other.problems
    first, second, *rest = tokenized.tokens
    moved = (first, replace(second, end=second.end + 1), *(replace(token, start=token.start + 1) for token in rest))
    assert replay_prompt(Server().tokenize, stored_prompt(replace(tokenized, tokens=moved))).problems


def test_another_date_of_the_template_is_not_checked() -> None:
    yesterday, today = Server("It is 28 November 2026.\n"), Server("It is 1 December 2026.\n")
    messages = {"messages": [("system", "Be kind."), ("user", "Hi fox")]}
    tokenized = yesterday.tokenize(messages)
    found = replay_prompt(today.tokenize, stored_prompt(tokenized))
    assert (found.is_exact, found.problems) == (False, ())
    assert [item.why for item in found.not_checked] == ["it contains the date, which has changed"]


@pytest.mark.parametrize(("header", "is_problem"), [("Thinking: on.\n", False), ("Thinking: on. [tool]\n", True)])
def test_the_templates_own_words_are_not_checked_but_its_role_names_are(header: str, is_problem: bool) -> None:
    tokenized = Server("Thinking: off.\n").tokenize({"messages": [("system", "Be kind."), ("user", "Hi fox")]})
    found = replay_prompt(Server(header).tokenize, stored_prompt(tokenized))
    assert bool(found.problems) == is_problem
    assert ("the chat template's own text" in [item.what for item in found.not_checked]) != is_problem


def test_a_message_that_the_template_rewrote_is_not_checked() -> None:
    stored = changed(lambda token: replace(token, role="template", message=None) if token.message == 0 else token,
                     unplaced_messages=(0,))  # fmt: skip
    found = replay_prompt(Server().tokenize, stored)
    assert (found.is_exact, found.problems) == (False, ())
    assert [item.why for item in found.not_checked] == [
        "the chat template rewrote message 0, which cannot be reconstructed"
    ]


def test_a_refusal_of_every_input_is_named() -> None:
    def tokenize(keywords: dict[str, Any]) -> TokenizedPrompt:
        if "messages" in keywords:
            raise InvalidRequestError("roles must alternate")
        return Server().tokenize(keywords)

    (problem,) = replay_prompt(tokenize, changed(lambda token: token)).problems
    assert problem.endswith("the server refuses them: roles must alternate")


def test_fields_that_an_older_file_lacks_are_not_checked() -> None:
    tokenized = Server().tokenize({"prompt": "Once upon"})

    def tokenize(keywords: dict[str, Any]) -> TokenizedPrompt:
        again = Server().tokenize(keywords)
        return replace(again, tokens=tuple(replace(token, word=i) for i, token in enumerate(again.tokens)))

    found = replay_prompt(tokenize, stored_prompt(tokenized))
    assert found.is_exact
    assert [item.what for item in found.not_checked] == ["started.prompt_tokens.word"]


def test_unknown_ids_are_the_servers_error() -> None:
    def tokenize(keywords: dict[str, Any]) -> TokenizedPrompt:
        raise InvalidRequestError(f"no such ids: {keywords}")

    with pytest.raises(InvalidRequestError, match="no such ids"):
        replay_prompt(tokenize, changed(lambda token: token))
