"""Places of tools, calls and reasoning in rendered text."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gradellm_engine import InvalidRequestError, Message, Prompt, PromptInput, Role, Segment
from gradellm_engine.tokenization import attachments, chat_template
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.prompt_reader import read_prompt
from gradellm_engine.tokenization.tools import ToolCall, call_parser
from support.tools.templates import HERMES, LLAMA3, QWEN3_CODER

Tokenizers = Callable[[str], PreTrainedTokenizerBase]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather in a "city".',
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Ünder\nlined"}, "days": {"type": "integer"}},
            "required": ["city"],
            "maxProperties": 3,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "description": "The time."}}
TOOLS = json.dumps([WEATHER, TIME])
CHAT = (
    Message("user", "What about Bonn?"),
    Message(
        "assistant",
        "I look.",
        tool_calls=(
            ToolCall("get_weather", '{"city": "Bonn", "days": 2}', "c1"),
            ToolCall("get_time", "{}", "c2"),
        ),
        reasoning="They ask for weather.",
    ),
    Message("tool", '{"sun": true}', tool_call_id="c1", name="get_weather"),
    Message("tool", "noon", tool_call_id="c2"),
)


@pytest.fixture(scope="module")
def read(tokenizers: Tokenizers) -> Callable[..., Prompt]:
    plain = tokenizers("llama")

    def make(template: str, tools: str = TOOLS, messages: tuple[Message, ...] = CHAT, **fields: object) -> Prompt:
        tokenizer = copy.deepcopy(plain)
        tokenizer.chat_template = template
        given = PromptInput(messages=messages, tools=tools, **fields)  # type: ignore[arg-type]
        return read_prompt(given, TextEncoder(tokenizer), len(tokenizer))

    return make


Read = Callable[..., Prompt]


def text_of(prompt: Prompt, wanted: Callable[..., bool]) -> str:
    """The text of the selected tokens, from the first to the last."""
    found = [token for token in prompt.tokens if wanted(token)]
    return prompt.text[found[0].start : found[-1].end] if found else ""


def segment(prompt: Prompt, name: str) -> str:
    return text_of(prompt, lambda token: token.segment == name).strip()


def test_each_tool_is_a_segment_of_the_system(read: Read) -> None:
    prompt = read(HERMES)
    assert prompt.segments == ("tool:get_weather", "tool:get_time")
    assert json.loads(segment(prompt, "tool:get_weather")) == WEATHER
    assert json.loads(segment(prompt, "tool:get_time")) == TIME
    definitions = [token for token in prompt.tokens if token.segment]
    assert {(token.role, token.message) for token in definitions} == {(Role.SYSTEM, None)}


def test_calls_and_answers_belong_to_their_messages(read: Read) -> None:
    prompt = read(HERMES)
    assistant = text_of(prompt, lambda token: token.message == 1)
    assert assistant.startswith("I look.")
    assert assistant.endswith('{"name": "get_time", "arguments": {}}')
    template = [t for t in prompt.tokens if t.role is Role.TEMPLATE]
    assert any("tool_call" in prompt.text[t.start - 10 : t.end + 10] for t in template)
    assert not any(token.text.strip() in ("I", "look", "Bonn") for token in template)
    assert {token.role for token in prompt.tokens if token.message == 1} == {Role.ASSISTANT}
    assert text_of(prompt, lambda token: token.role is Role.TOOL and token.message == 2) == '{"sun": true}'
    assert text_of(prompt, lambda token: token.role is Role.TOOL and token.message == 3) == "noon"
    assert prompt.unplaced_messages == ()


@pytest.mark.parametrize("template", [LLAMA3, QWEN3_CODER])
def test_definitions_of_any_form_are_found(read: Read, template: str) -> None:
    prompt = read(template)
    for tool in (WEATHER, TIME):
        name = tool["function"]["name"]  # type: ignore[index]
        definition = segment(prompt, f"tool:{name}")
        assert definition.count(name) == 1
        assert tool["function"]["description"].replace('"', "") in definition.replace('\\"', "").replace('"', "")  # type: ignore[index]
    assert "get_time" not in segment(prompt, "tool:get_weather")
    assert text_of(prompt, lambda token: token.role is Role.TOOL and token.message == 3) == "noon"


def test_reasoning_belongs_to_its_message(read: Read) -> None:
    shown = HERMES.replace("{{- message.content }}", "{{- message.reasoning_content }}|{{- message.content }}")
    prompt = read(shown)
    assert "They ask for weather.|I look." in text_of(prompt, lambda token: token.message == 1)
    assert read(HERMES).unplaced_messages == ()  # which leaves it out


def test_a_template_that_rewrites_a_tool_leaves_the_others_placed(read: Read) -> None:
    prompt = read(HERMES.replace("tool | tojson", "(tool | tojson)[::-1] if loop.first else tool | tojson"))
    assert prompt.segments == ("tool:get_time",)


def test_what_a_template_does_not_show_is_refused(read: Read) -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(InvalidRequestError, match=r"input\.tools: the model's chat template has no tools"):
        read(plain)
    with pytest.raises(InvalidRequestError, match=r"input\.messages\[1\]\.tool_calls: .* no calls of tools"):
        read(plain, tools="")


def test_a_segment_does_not_take_the_name_of_a_tool(read: Read) -> None:
    with pytest.raises(InvalidRequestError, match=r"input\.segments\[0\]\.name"):
        read(HERMES, segments=(Segment("tool:get_time", 0, 4, 0),))
    prompt = read(HERMES, segments=(Segment("town", 11, 15, 0),))
    assert segment(prompt, "town") == "Bonn"
    assert json.loads(segment(prompt, "tool:get_time")) == TIME


def test_a_text_of_braces_costs_little(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0

    class Counting(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[object, int]:
            nonlocal decoded
            decoded += 1
            return super().raw_decode(s, idx)

    monkeypatch.setattr(attachments, "_DECODER", Counting(strict=False))
    tools = json.dumps([{"type": "function", "function": {"name": "f", "description": "{" * 20_000}}])
    prompt = read(HERMES, tools=tools, messages=(Message("user", "{" * 20_000),))
    assert decoded <= attachments.MAX_BRACES
    assert prompt.segments == ("tool:f",)


def test_the_template_runs_a_bounded_number_of_times(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = 0
    render = chat_template.render_dicts

    def counting(*given: object) -> str:
        nonlocal runs
        runs += 1
        return render(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(chat_template, "render_dicts", counting)
    tools = [{"type": "function", "function": {"name": f"f{index}"}} for index in range(100)]
    changing = HERMES.replace(
        "tool | tojson", "(tool | tojson)[::-1] if loop.index is divisibleby 3 else tool | tojson"
    )
    prompt = read(changing, tools=json.dumps(tools))
    assert runs <= 1 + chat_template.MAX_RUNS + attachments.MAX_RUNS
    assert all(segment(prompt, name).startswith("{") for name in prompt.segments)


def test_a_real_template() -> None:
    folder = Path(os.environ.get("GRADELLM_REAL_MODELS", "")) / "qwen"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("GRADELLM_REAL_MODELS names no folder with qwen/ in it")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = read_prompt(PromptInput(messages=CHAT, tools=TOOLS), TextEncoder(tokenizer), len(tokenizer))
    assert json.loads(segment(prompt, "tool:get_weather")) == WEATHER
    assert text_of(prompt, lambda token: token.message == 1).rstrip().endswith('"arguments": {}}')
    assert text_of(prompt, lambda token: token.message == 3).strip() == "noon"
    assert prompt.unplaced_messages == ()
    assert call_parser(tokenizer.chat_template) == "hermes"
