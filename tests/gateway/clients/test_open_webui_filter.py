"""The filter of the guide names what Open WebUI has put into the messages, and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from gradellm_gateway.documents import with_documents

FILTER = Path(__file__).parents[3] / "docs" / "examples" / "open_webui_filter.py"


@pytest.fixture
def filtered() -> Any:
    spec = importlib.util.spec_from_file_location("open_webui_filter", FILTER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Filter().request


def test_texts_in_the_messages_are_documents(filtered: Any) -> None:
    sources = [
        {"source": {"name": "menu.txt"}, "document": ["The soup is five coins.", "The bread is two."]},
        {"source": {"id": "x"}, "document": ["The bread is two.", "In no message.", ""]},
        {"source": {"name": "hours"}, "document": ["We open at nine."]},
    ]
    content = "<source>The soup is five coins.</source><source>The bread is two.</source> We open at nine. How much?"
    messages: list[dict[str, Any]] = [{"role": "assistant", "content": None}, {"role": "user", "content": content}]
    body = filtered({"messages": messages, "gradellm": {"resolution": "word"}}, {"sources": sources})
    own, _ = with_documents(body["gradellm"], [message["content"] or "" for message in messages])
    assert list(own["segments"]) == ["1. menu.txt, part 1", "2. menu.txt, part 2", "3. hours, part 1"]
    assert own["resolution"] == "word"
    assert own["citations"] is True


@pytest.mark.parametrize("metadata", [{}, {"sources": []}, {"sources": [{"document": ["Elsewhere."]}]}])
def test_a_chat_without_documents_stays_as_it_is(filtered: Any, metadata: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
    assert filtered(dict(body), metadata) == body
