"""The openai package's `parse`, whole and streamed: answers and calls as objects of Pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from support.http.calls import MESSAGES
from support.tools.answers import called
from support.tools.scripted import ScriptedClient
from support.tools.scripted_gateway import serving

QUESTION = MESSAGES[0]["content"]
CALL = (
    "<think>",
    "Hm.",
    "</think>",
    "<tool_call>",
    '{"name": "Time", "arguments": {"at": "no',
    'on"}}',
    "</tool_call>",
)


class Size(BaseModel):
    unit: Literal["m", "km"]
    value: Annotated[int, Field(ge=0, le=99)]


class Animal(BaseModel):
    name: Annotated[str, Field(max_length=5)]
    sizes: Annotated[list[Size], Field(min_length=1, max_length=2)]


class Time(BaseModel):
    """The time."""

    at: str


def calling() -> ScriptedClient:
    return ScriptedClient(called(CALL), has_tools=True, tool_call_parser="hermes")


@pytest.mark.filterwarnings("ignore:Pydantic serializer:UserWarning")  # of `parsed` that is sent back
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat(client: openai.OpenAI, stream: bool) -> None:
    wanted: Any = {"model": "gradellm", "messages": MESSAGES, "response_format": Animal, "max_tokens": 120}
    if stream:
        with client.chat.completions.stream(**wanted) as events:
            for _ in events:
                pass
            completion = events.get_final_completion()
    else:
        completion = client.chat.completions.parse(**wanted)
    message: Any = completion.choices[0].message
    assert isinstance(message.parsed, Animal)
    assert Animal.model_validate_json(message.content) == message.parsed
    more: Any = [*MESSAGES, message, {"role": "user", "content": "And then?"}]  # with `parsed` in it
    assert client.chat.completions.create(model="gradellm", messages=more, max_tokens=1).choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_response(client: openai.OpenAI, stream: bool) -> None:
    wanted: Any = {"model": "gradellm", "input": QUESTION, "text_format": Animal, "max_output_tokens": 120}
    if stream:
        with client.responses.stream(**wanted) as events:
            done = [event for event in events if event.type == "response.output_text.done"]
            response = events.get_final_response()
        assert done[0].parsed == response.output_parsed
    else:
        response = client.responses.parse(**wanted)
    assert isinstance(response.output_parsed, Animal)
    assert Animal.model_validate_json(response.output_text) == response.output_parsed
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"
    more: Any = [{"role": "user", "content": QUESTION}, *response.output, {"role": "user", "content": "And then?"}]
    assert client.responses.create(model="gradellm", input=more, max_output_tokens=1).output_text


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_a_chat(stream: bool) -> None:
    wanted: Any = {"model": "gradellm", "messages": MESSAGES, "tools": [openai.pydantic_function_tool(Time)]}
    with serving(calling()) as client:
        if stream:
            with client.chat.completions.stream(**wanted) as events:
                for _ in events:
                    pass
                completion = events.get_final_completion()
        else:
            completion = client.chat.completions.parse(**wanted)
        message: Any = completion.choices[0].message
        assert message.tool_calls[0].function.parsed_arguments == Time(at="noon")
        answered: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It is."}
        client.chat.completions.create(model="gradellm", messages=[*MESSAGES, message, answered])


@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_a_response(stream: bool) -> None:
    wanted: Any = {"model": "gradellm", "input": QUESTION, "tools": [openai.pydantic_function_tool(Time)]}
    with serving(calling()) as client:
        if stream:
            with client.responses.stream(**wanted) as events:
                deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
                response = events.get_final_response()
            assert "".join(deltas) == '{"at": "noon"}'
        else:
            response = client.responses.parse(**wanted)
        output: list[Any] = [*response.output]
        thought, call = output
        assert (thought.type, call.type) == ("reasoning", "function_call")
        assert call.parsed_arguments == Time(at="noon")
        answered = {"type": "function_call_output", "call_id": call.call_id, "output": "It is."}
        more: Any = [{"role": "user", "content": QUESTION}, *response.output, answered]
        client.responses.create(model="gradellm", input=more)
