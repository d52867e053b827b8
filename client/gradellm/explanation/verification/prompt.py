"""Reconstructs the input of a stored prompt, and compares the prompt with the server's tokens of that input.

The request is not stored. It follows from the tokens' messages, roles and segments, and from the text at their offsets.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from gradellm.errors import InvalidRequestError
from gradellm.explanation.verification.fields import abbreviated, field_problems, is_unset
from gradellm.explanation.verification.verdict import NotChecked
from gradellm.models import TokenizedPrompt
from gradellm.serialization import MalformedError, from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gradellm.explanation.explanation import Explanation
    from gradellm.models import PromptToken

__all__ = ["PromptReplay", "replay_prompt"]

Tokenize: TypeAlias = "Callable[[dict[str, Any]], TokenizedPrompt]"
"""`Client.tokenize`, of a dictionary of keywords."""
Spans: TypeAlias = dict[int | None, tuple[int, int]]
"""By message, or None for a raw prompt: start and end in the prompt's text."""

_MAX_CANDIDATES = 24  # reconstructed inputs to try
_ROLE_FIELDS = ("role", "message", "segment")


@dataclass(frozen=True, slots=True)
class PromptReplay:
    """The reconstructed input of a stored prompt."""

    keywords: dict[str, Any]
    """prompt, messages or prompt_ids, and segments."""
    is_exact: bool
    """Whether the input reproduces all fields of the prompt; otherwise `keywords` has the token ids."""
    problems: tuple[str, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()


def replay_prompt(tokenize: Tokenize, stored: Explanation) -> PromptReplay:
    """Find the input that reproduces a stored prompt, and compare the two.

    Raises what `tokenize` raises if the server does not know the token ids.
    """
    has_segments = any(token.segment for token in stored.prompt_tokens)
    skipped = (NotChecked("started.prompt_tokens.segment", "the names are the caller's"),) if has_segments else ()
    nearest: TokenizedPrompt | None = None
    refusal = ""
    for keywords in itertools.islice(_candidates(stored), _MAX_CANDIDATES):
        try:
            replayed = tokenize(keywords)
        except InvalidRequestError as error:
            refusal = refusal or str(error)
            continue
        if not _prompt_problems(stored, replayed):
            return PromptReplay(keywords, True, (), (*skipped, *_unset_fields(stored, replayed)))
        if nearest is None or _ids(replayed.tokens) == _ids(stored.prompt_tokens) != _ids(nearest.tokens):
            nearest = replayed
    by_ids = {"prompt_ids": _ids(stored.prompt_tokens)}
    replayed = tokenize(by_ids)
    if not _prompt_problems(stored, replayed):
        return PromptReplay(by_ids, True, (), (*skipped, *_unset_fields(stored, replayed)))
    if problems := _text_problems(tokenize, stored, replayed):
        return PromptReplay(by_ids, False, tuple(problems), skipped)
    role_problems, not_checked = _role_problems(stored, nearest, refusal)
    return PromptReplay(by_ids, False, tuple(role_problems), (*skipped, *not_checked))


def _ids(tokens: Sequence[PromptToken]) -> list[int]:
    return [token.id for token in tokens]


def _prompt_problems(stored: Explanation, replayed: TokenizedPrompt) -> list[str]:
    """Return how a stored prompt differs from a tokenized one."""
    if _ids(stored.prompt_tokens) != _ids(replayed.tokens) or stored.prompt_text != replayed.prompt_text:
        return ["the prompt has other tokens or another text"]
    return _token_problems(stored.prompt_tokens, replayed.tokens)


def _token_problems(
    stored: Sequence[PromptToken], replayed: Sequence[PromptToken], names: Sequence[str] | None = None
) -> list[str]:
    pairs = enumerate(zip(stored, replayed, strict=False))
    return [problem for index, pair in pairs for problem in field_problems(*pair, f"prompt token {index}", names)]


def _unset_fields(stored: Explanation, replayed: TokenizedPrompt) -> Iterator[NotChecked]:
    """Yield the fields of prompt tokens that an older file does not have."""
    names = {
        field.name
        for then, now in zip(stored.prompt_tokens, replayed.tokens, strict=True)
        for field in fields(then)
        if is_unset(field, getattr(then, field.name)) and getattr(then, field.name) != getattr(now, field.name)
    }
    for name in sorted(names):
        yield NotChecked(f"started.prompt_tokens.{name}", "the file does not have it")


# --- candidates -------------------------------------------------------------------------------------------------------


def _candidates(stored: Explanation) -> Iterator[dict[str, Any]]:
    """Yield inputs that may have produced the prompt, the most probable first."""
    if all(token.message is None for token in stored.prompt_tokens):
        yield {"prompt": stored.prompt_text, **_segments(stored, {None: (0, len(stored.prompt_text))})}
        return
    spans: Spans = {}
    roles: dict[int, set[str | None]] = {}
    for token in stored.prompt_tokens:
        if token.message is not None:
            start, _ = spans.get(token.message, (token.start, 0))
            spans[token.message] = (start, token.end)
            roles.setdefault(token.message, set()).add(token.role)
    if any(len(of_message) > 1 for of_message in roles.values()) or len(roles) > len(stored.prompt_tokens):
        return
    count = max(roles) + 1
    if count > 2 * len(stored.prompt_tokens):
        return
    candidates = [_role_candidates(stored, index, roles, spans) for index in range(count)]
    for rank in range(max(map(len, candidates))):
        message_roles = [names[min(rank, len(names) - 1)] for names in candidates]
        for trim in (str, str.strip, str.rstrip, str.lstrip):  # a token may extend into the template's white space
            trimmed = _trimmed(stored.prompt_text, spans, trim)
            messages = [
                (role, stored.prompt_text[slice(*trimmed[index])] if index in trimmed else "")
                for index, role in enumerate(message_roles)
            ]
            yield {"messages": messages, **_tools(stored), **_segments(stored, trimmed)}


def _trimmed(prompt_text: str, spans: Spans, trim: Callable[[str], str]) -> Spans:
    """Return the spans without the white space that `trim` removes."""
    trimmed: Spans = {}
    for message, (start, end) in spans.items():
        text = prompt_text[start:end]
        if trim in (str.strip, str.lstrip):
            start += len(text) - len(text.lstrip())
        trimmed[message] = (start, start + len(trim(text)))
    return trimmed


def _role_candidates(stored: Explanation, index: int, roles: dict[int, set[str | None]], spans: Spans) -> list[str]:
    """Return names that a message's role may have had, the most probable first."""
    if index not in roles:  # an empty message has no tokens
        return ["system", "user", "assistant"] if index == 0 else ["assistant", "user", "tool"]
    (role,) = roles[index]
    if role not in ("other", "template", None):
        return [role]
    start = spans[index][0]
    before = max((end for _, end in spans.values() if end <= start), default=0)
    words = re.findall(r"\w+", stored.prompt_text[max(before, start - 200) : start])
    return list(dict.fromkeys(reversed(words)))[:8] or ["other"]


def _tools(stored: Explanation) -> dict[str, Any]:
    """Return the keyword `tools` that definitions imply; no keyword if the template does not write them as JSON."""
    places: dict[str, tuple[int, int]] = {}
    for token in stored.prompt_tokens:
        if token.is_definition:
            start, _ = places.get(token.segment, (token.start, 0))
            places[token.segment] = (start, token.end)
    tools = []
    for start, end in places.values():
        try:
            tool = from_json(stored.prompt_text[start:end])
        except MalformedError:
            return {}
        is_function = isinstance(tool, dict) and "function" not in tool
        tools.append({"type": "function", "function": tool} if is_function else tool)
    return {"tools": tools} if tools else {}


def _segments(stored: Explanation, spans: Spans) -> dict[str, Any]:
    """Return the keyword `segments` that the tokens imply; no keyword if no request can express them."""
    found: dict[str, tuple[int | None, int, int]] = {}
    before = ""
    for token in stored.prompt_tokens:
        if token.segment and token.segment != before and token.segment in found:
            return {}  # a segment in two parts
        if token.segment and not token.is_definition:
            text = stored.prompt_text[token.start : token.end]
            anchor = token.start + len(text) - len(text.lstrip()) if text.strip() else token.start
            _, start, _ = found.get(token.segment, (None, anchor, 0))
            found[token.segment] = (token.message, start, max(token.end, anchor + 1))
        before = token.segment
    segments: dict[str, Any] = {}
    for name, (message, start, end) in found.items():
        if message not in spans:
            return {}
        first, last = spans[message]
        span = (max(0, start - first), min(end, last) - first)
        segments[name] = span if message is None else (message, *span)
    return {"segments": segments} if segments else {}


# --- without an exact input -------------------------------------------------------------------------------------------


def _text_problems(tokenize: Tokenize, stored: Explanation, by_ids: TokenizedPrompt) -> list[str]:
    """Return how text and offsets differ from those of the raw text tokenized, or of the decoded ids."""
    stored_tokens = stored.prompt_tokens
    names = (
        [field.name for field in fields(stored_tokens[0]) if field.name not in _ROLE_FIELDS] if stored_tokens else []
    )
    shared = [name for name in names if name in ("id", "text", "start", "end", "special")]
    try:
        replayed_tokens = tokenize({"prompt": stored.prompt_text}).tokens if stored.prompt_text else ()
    except InvalidRequestError:
        replayed_tokens = ()
    first = next((index for index, token in enumerate(replayed_tokens) if not (token.special and not token.text)), 0)
    for skipped in sorted({0, first}):  # special tokens that the tokenizer adds to a text and a template has already
        part = replayed_tokens[skipped : skipped + len(stored_tokens)]
        if _ids(part) == _ids(stored_tokens):
            return _token_problems(stored_tokens, part, shared)
    decoded = _token_problems(stored_tokens, by_ids.tokens, ("text", "special"))
    if stored.prompt_text == by_ids.prompt_text:
        return [*decoded, *_token_problems(stored_tokens, by_ids.tokens, ("start", "end"))]
    changed = [
        problem
        for index, (then, now) in enumerate(zip(stored_tokens, by_ids.tokens, strict=False))
        if not (then.special or now.special) and then.text.strip() != now.text.strip()
        for problem in field_problems(then, now, f"prompt token {index}", ("text",))
    ]
    misplaced = (
        f"prompt token {index}: text is {abbreviated(token.text)}, but at its offsets is "
        f"{abbreviated(stored.prompt_text[token.start : token.end])}"
        for index, token in enumerate(stored_tokens)
        if token.text != stored.prompt_text[token.start : token.end]
    )
    return ["the prompt's text is not that of its tokens", *changed, *misplaced]


def _role_problems(
    stored: Explanation, nearest: TokenizedPrompt | None, refusal: str
) -> tuple[list[str], list[NotChecked]]:
    """Return problems and unchecked fields of roles, messages and segments, given that text and offsets are right."""
    what = "started.prompt_tokens.role, .message and .segment"
    if all(token.special or token.role in ("template", None) for token in stored.prompt_tokens) and not any(
        token.message is not None or token.segment for token in stored.prompt_tokens
    ):
        return [], [NotChecked(what, "every token belongs to the template")]
    if unplaced := getattr(stored.started, "unplaced_messages", ()):
        numbers = ", ".join(map(str, unplaced))
        return [], [NotChecked(what, f"the chat template rewrote message {numbers}, which cannot be reconstructed")]
    has_tools = any(
        token.is_definition or (token.role == "tool" and token.message is not None) for token in stored.prompt_tokens
    )
    if has_tools and (nearest is None or _ids(nearest.tokens) != _ids(stored.prompt_tokens)):
        return [], [NotChecked(what, "the definitions and calls of tools cannot be reconstructed from their tokens")]
    if nearest is None:
        why = f"the server refuses them: {refusal}" if refusal else "they are not those of whole messages"
        return [f"the prompt cannot be reconstructed from the messages that its tokens' roles imply: {why}"], []
    if nearest.prompt_text == stored.prompt_text and _ids(nearest.tokens) == _ids(stored.prompt_tokens):
        return _token_problems(stored.prompt_tokens, nearest.tokens), []
    if _message_tokens(nearest.tokens) == _message_tokens(stored.prompt_tokens):
        template = "the chat template's own text"
        if _without_dates(nearest.prompt_text) == _without_dates(stored.prompt_text):
            return [], [NotChecked(template, "it contains the date, which has changed")]
        if _headers(nearest.prompt_text, nearest.tokens) == _headers(stored.prompt_text, stored.prompt_tokens):
            return [], [NotChecked(template, "it depends on parts of the messages that it does not contain")]
    offset = next(
        (
            index
            for index, pair in enumerate(zip(stored.prompt_text, nearest.prompt_text, strict=False))
            if len({*pair}) > 1
        ),
        min(len(stored.prompt_text), len(nearest.prompt_text)),
    )
    return [
        "the prompt differs from the one reconstructed from the messages that its tokens' roles imply, from code point "
        f"{offset} on: {abbreviated(stored.prompt_text[offset : offset + 40])} in the file, "
        f"{abbreviated(nearest.prompt_text[offset : offset + 40])} on replay"
    ], []


def _message_tokens(tokens: Sequence[PromptToken]) -> list[tuple[object, ...]]:
    """Return the tokens of messages, without those of the template, and without offsets."""
    return [(t.id, t.text, t.role, t.message, t.segment) for t in tokens if t.role != "template"]


_ROLE_NAMES = re.compile(r"system|user|assistant|tool|\bhuman\b|\bmodel\b", re.IGNORECASE)


def _headers(text: str, tokens: Sequence[PromptToken]) -> list[object]:
    """Return the role names in the template's text before each message and after the last.

    A header without role names, and one before a skipped message, equals nothing, so that it never counts as the same.
    """
    headers: list[object] = []
    before, message = 0, -1
    for token in tokens:
        if token.message is None:
            continue
        if token.message != message:
            is_next = token.message == message + 1
            headers.append(_role_names(text[before : token.start]) if is_next else object())
        before, message = token.end, token.message
    return [*headers, _role_names(text[before:])]


def _role_names(text: str) -> object:
    return Counter(map(str.lower, _ROLE_NAMES.findall(text))) or object()


_DATES = re.compile(
    r"\d+|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b|\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b",
    re.IGNORECASE,
)


def _without_dates(text: str) -> str:
    """Replace numbers and the names of days and months: Llama 3's and other templates contain the date."""
    return _DATES.sub("0", text)
