"""The parsers by name, and which one an answer needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gradellm.parsers.base import CallParser, TextParser
from gradellm.parsers.hermes import HermesParser
from gradellm.parsers.llama3_json import Llama3JsonParser
from gradellm.parsers.mistral import MistralParser
from gradellm.parsers.qwen3_coder import Qwen3CoderParser
from gradellm.parsers.reasoning import CLOSING, OPENING, ReasoningParser

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "CALL_PARSERS",
    "MARKER_TEXTS",
    "REASONING_PARSERS",
    "ReasoningParserName",
    "call_parser",
    "reasoning_parser",
]

CALL_PARSERS: dict[str, type[CallParser]] = {
    "hermes": HermesParser,
    "llama3_json": Llama3JsonParser,
    "llama4_json": Llama3JsonParser,
    "mistral": MistralParser,
    "qwen3_coder": Qwen3CoderParser,
    "qwen3_json": HermesParser,
    "qwen3_xml": Qwen3CoderParser,
}
"""Parsers of calls, by vLLM's names."""
MARKER_TEXTS = frozenset({OPENING, CLOSING, "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"})
"""Texts that are special tokens of some models, which have no text in a completion."""
ReasoningParserName = Literal["none", "qwen3", "deepseek_r1"]
REASONING_PARSERS: tuple[ReasoningParserName, ...] = ("none", "qwen3", "deepseek_r1")
"""Parsers of reasoning. qwen3: an answer that begins with <think>, or whose prompt ends with it. deepseek_r1: every
answer, up to </think>, unless the prompt ends with that."""


def call_parser(name: str | None, tools: Sequence[Mapping[str, Any]] = ()) -> CallParser:
    """Return a parser of calls; one that finds none for None."""
    return TextParser() if name is None else CALL_PARSERS[name](tools)


def reasoning_parser(name: str, prompt_text: str, calls: CallParser) -> ReasoningParser | None:
    """Return a parser of the reasoning in an answer to a prompt; None where there is none to expect."""
    end = prompt_text.rstrip()
    if name == "none" or end.endswith(CLOSING):
        return None
    is_open = name == "deepseek_r1" or end.endswith(OPENING)
    return ReasoningParser(is_open=is_open, ends=tuple(m for m in calls.markers if m.startswith("<")))
