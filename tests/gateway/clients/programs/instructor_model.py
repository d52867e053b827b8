"""A Pydantic model out of a chat by instructor: BASE_URL MODEL MODE. Prints it as JSON."""

from __future__ import annotations

import sys
from typing import Literal

import instructor
import openai
import pydantic


class Capital(pydantic.BaseModel):
    """A city and its country."""

    city: Literal["Paris", "Rome"]
    country: Literal["France", "Italy"]
    population: int = pydantic.Field(ge=1, le=99_999_999)


def main(url: str, model: str, mode: str) -> None:
    client = instructor.from_openai(
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=1200),  # pragma: allowlist secret (none)
        mode=instructor.Mode[mode],
    )
    capital = client.chat.completions.create(
        model=model,
        response_model=Capital,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=100,
        temperature=0,
        max_retries=0,
    )
    print(capital.model_dump_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
