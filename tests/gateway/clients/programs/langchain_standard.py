"""LangChain's standard integration tests of a chat model, with ChatOpenAI: run by pytest in an environment with it.

GRADELLM_URL is the base of the API; GRADELLM_CLIENT_MODEL the model in requests.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChatOpenAI(ChatModelIntegrationTests):  # type: ignore[misc]
    """The tests of a model that has tools, structured output, JSON mode and tokens counted in streams."""

    @property
    def chat_model_class(self) -> Any:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": os.environ["GRADELLM_URL"],
            "api_key": "none",  # pragma: allowlist secret (none)
            "model": os.environ["GRADELLM_CLIENT_MODEL"],
            "max_tokens": int(os.environ.get("GRADELLM_CLIENT_TOKENS", "200")),
            "temperature": 0,
            "frequency_penalty": 1.0,  # small models repeat themselves up to the limit
            "model_kwargs": {"parallel_tool_calls": False},  # which small models make of one
            "timeout": 1200,
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True
