"""Completions, streams, choices, schemas and tools by LiteLLM: BASE_URL MODEL [tools]. Prints one JSON object."""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "capital",
        "schema": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def main(url: str, model: str, *what: str) -> None:
    def ask(question: str, **settings: Any) -> Any:
        return litellm.completion(
            model=f"openai/{model}",
            api_base=url,
            api_key="none",  # pragma: allowlist secret (none)
            messages=[{"role": "user", "content": question}],
            temperature=0,
            timeout=1200,
            max_retries=0,
            **settings,
        )

    if "tools" in what:
        calls = ask("How is the weather in Bonn?", tools=[WEATHER], tool_choice="required", max_tokens=60)
        chunks = list(
            ask("How is the weather in Bonn?", tools=[WEATHER], tool_choice="required", max_tokens=60, stream=True)
        )
        streamed = litellm.stream_chunk_builder(chunks)
        said: dict[str, Any] = {
            name: [(call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls]
            for name, answer in (("calls", calls), ("streamed_calls", streamed))
        }
    else:
        question = "What is the capital of France?"
        whole = ask(question, max_tokens=16)
        chunks = list(ask(question, max_tokens=16, stream=True, stream_options={"include_usage": True}))
        streamed = litellm.stream_chunk_builder(chunks)
        said = {
            "text": whole.choices[0].message.content,
            "streamed": streamed.choices[0].message.content,
            "usage": [whole.usage.completion_tokens, streamed.usage.completion_tokens],
            "object": json.loads(ask(question, max_tokens=60, response_format=SCHEMA).choices[0].message.content),
            "choices": len(ask(question, max_tokens=8, n=2).choices),
        }
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
