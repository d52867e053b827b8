"""Chats, completions and responses by the openai package, whole, streamed and parsed: BASE_URL MODEL [tools].

Prints one JSON object, as openai_calls.mjs does.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

import openai
import pydantic

QUESTION = "What is the capital of France?"
WEATHER_QUESTION = "How is the weather in Bonn?"


class Capital(pydantic.BaseModel):
    """A city and its country."""

    city: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: str


def chat_of(question: str, **settings: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **settings}


def texts(client: Any, shared: dict[str, Any]) -> dict[str, Any]:
    chat = {**shared, **chat_of(QUESTION, max_tokens=16)}
    prompt = {**shared, "prompt": "The capital of France is", "max_tokens": 8}
    response = {**shared, "input": QUESTION, "max_output_tokens": 16}
    chunks = client.chat.completions.create(**chat, stream=True)
    events = list(client.responses.create(**response, stream=True))
    said = {
        "chat": [
            client.chat.completions.create(**chat).choices[0].message.content,
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        ],
        "completion": [
            client.completions.create(**prompt).choices[0].text,
            "".join(chunk.choices[0].text for chunk in client.completions.create(**prompt, stream=True)),
        ],
        "response": [
            client.responses.create(**response).output_text,
            "".join(event.delta for event in events if event.type == "response.output_text.delta"),
        ],
    }
    return {**said, "parsed": parsed(client, shared)}


def parsed(client: Any, shared: dict[str, Any]) -> list[Any]:
    chat = {**shared, **chat_of(QUESTION, max_tokens=60, response_format=Capital)}
    response = {**shared, "input": QUESTION, "max_output_tokens": 60, "text_format": Capital}
    with client.chat.completions.stream(**chat) as chunks:
        streamed_chat = chunks.get_final_completion()
    with client.responses.stream(**response) as events:
        streamed_response = events.get_final_response()
    found: list[Any] = [
        each.choices[0].message.parsed for each in (client.chat.completions.parse(**chat), streamed_chat)
    ]
    found += [each.output_parsed for each in (client.responses.parse(**response), streamed_response)]
    return [each.model_dump() for each in found]


def calls(client: Any, shared: dict[str, Any]) -> dict[str, Any]:
    tool = openai.pydantic_function_tool(Weather)
    chat = {**shared, **chat_of(WEATHER_QUESTION, max_tokens=60, tools=[tool], tool_choice="required")}
    flat = {"type": "function", **tool["function"]}
    response = {
        **shared,
        "input": WEATHER_QUESTION,
        "max_output_tokens": 60,
        "tools": [flat],
        "tool_choice": "required",
    }
    with client.chat.completions.stream(**chat) as chunks:
        streamed_chat = chunks.get_final_completion()
    with client.responses.stream(**response) as events:
        streamed_response = events.get_final_response()
    chats = [client.chat.completions.parse(**chat), streamed_chat]
    responses = [client.responses.parse(**response), streamed_response]
    return {
        "chat": [
            [(call.function.name, json.loads(call.function.arguments)) for call in each.choices[0].message.tool_calls]
            for each in chats
        ],
        "response": [[(item.name, json.loads(item.arguments)) for item in each.output] for each in responses],
    }


def main(url: str, model: str, *what: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=1200)  # pragma: allowlist secret (none)
    shared = {"model": model, "temperature": 0}
    print(json.dumps((calls if "tools" in what else texts)(client, shared)))


if __name__ == "__main__":
    main(*sys.argv[1:])
