"""The MCP server, called by the official client: in process over a real server, and by standard input as a command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

pytest.importorskip("mcp", reason="the extra [mcp] is not installed")

from mcp import Client as McpClient

from gradellm import AsyncClient, Client
from gradellm.mcp.server import mcp_server
from gradellm_engine import Engine
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

T = TypeVar("T")
PROMPT = "Tom has a red ball. Anna has a blue cup. What does Tom have?"
DOCUMENTS = {"toys": "Tom has a red ball.", "kitchen": "Anna has a blue cup."}


@pytest.fixture(scope="module")
def server(model_path: Callable[[str], Path]) -> Iterator[RunningServer]:
    running = RunningServer(Engine.load(str(model_path("demo"))), ServerSettings(listen="127.0.0.1:0"))
    yield running
    running.close()


def with_client(target: str, use: Callable[[McpClient], Awaitable[T]]) -> T:
    """What `use` returns, of a client that is connected in process."""

    async def run() -> T:
        async with AsyncClient(target) as client, McpClient(mcp_server(client)) as mcp:
            return await use(mcp)

    return asyncio.run(asyncio.wait_for(run(), 60))


def call(target: str, tool: str, **arguments: Any) -> Any:
    """The structured result of one call."""
    result = with_client(target, lambda mcp: mcp.call_tool(tool, arguments))
    assert not result.is_error, result.content
    return result.structured_content


def refused(target: str, tool: str, **arguments: Any) -> str:
    """The text of a call that fails."""
    result: Any = with_client(target, lambda mcp: mcp.call_tool(tool, arguments))
    assert result.is_error
    return str(result.content[0].text)


def test_tools_say_what_they_do_and_take(server: RunningServer) -> None:
    tools: Any = with_client(server.address, lambda mcp: mcp.list_tools()).tools
    assert [tool.name for tool in tools] == ["explain", "attribute", "citations", "evaluate"]
    for tool in tools:
        assert tool.description
        assert tool.output_schema is not None
        assert tool.annotations.read_only_hint
        assert all(value.get("description") for value in tool.input_schema["properties"].values())


def test_an_answer_has_the_sources_of_its_words(server: RunningServer) -> None:
    found = call(server.address, "explain", prompt=PROMPT, max_new_tokens=8, num_sources=2)
    with Client(server.address) as client:
        expected = client.explain(messages=[("user", PROMPT)], max_new_tokens=8, temperature=0.0)
    assert found["answer"] == expected.text
    assert [word["text"] for word in found["words"]] == [word.text for word in expected.words]
    for word, own in zip(found["words"], expected.words, strict=True):
        picture = expected.picture(own)
        top = [at for at in picture.top(99) if picture.strengths[at] > 0][:2]
        assert [source["text"] for source in word["sources"]] == [picture.chips[at].text for at in top]
        for source, at in zip(word["sources"], top, strict=True):
            assert source["share"] == pytest.approx(picture.shares[at], abs=1e-3)
    assert found["sentences"] == []
    assert found["attribution"] == expected.provenance.attribution.preset  # type: ignore[union-attr]
    assert "/" not in found["model"]


def test_a_given_answer_and_chosen_words(server: RunningServer) -> None:
    found = call(server.address, "attribute", prompt=PROMPT, completion=" Tom has a red ball.", words="^red")
    assert found["answer"].strip() == "Tom has a red ball."
    (word,) = found["words"]
    assert word["text"] == "red"
    assert word["sources"]


def test_sentences_cite_documents(server: RunningServer) -> None:
    arguments = {"question": "What does Tom have?", "documents": DOCUMENTS, "answer": " Tom has a red ball."}
    found = call(server.address, "citations", **arguments)
    (sentence,) = found["sentences"]
    assert {document["name"] for document in sentence["documents"]} <= set(DOCUMENTS)
    own = call(server.address, "citations", question="What does Tom have?", documents=DOCUMENTS, max_new_tokens=6)
    assert own["answer"]
    words = call(server.address, "explain", prompt="What does Tom have?", documents=DOCUMENTS, max_new_tokens=6)
    assert words["sentences"] == own["sentences"]
    named = {source["document"] for word in words["words"] for source in word["sources"]}
    assert named <= {"", *DOCUMENTS}


def test_faithfulness(server: RunningServer) -> None:
    found = call(server.address, "evaluate", prompt=PROMPT, completion=" Tom has a red ball.", stride=3)
    measured = {(each["method"], each["metric"]) for each in found["measured"]}
    assert {metric for _, metric in measured} == {"pi_soft_ns", "pi_soft_nc"}
    assert "random" in {method for method, _ in measured}
    assert all(0 <= each["mean"] <= 1 for each in found["measured"])


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("explain", {"prompt": PROMPT, "words": "("}, "words: is not a regular expression"),
        ("explain", {"prompt": PROMPT, "max_new_tokens": 0}, "greater than or equal to 1"),
        ("attribute", {"prompt": PROMPT, "completion": ""}, "at least 1 character"),
        ("citations", {"question": "Who?", "documents": {}}, "at least 1 item"),
        ("citations", {"question": "Who?", "documents": {"a": " "}}, "documents: a is empty"),
        ("explain", {"prompt": "word " * 5000}, "the limit is"),
    ],
)
def test_a_refused_call_says_why(server: RunningServer, tool: str, arguments: dict[str, Any], words: str) -> None:
    assert words in refused(server.address, tool, **arguments)


def test_a_server_that_is_not_there(server: RunningServer) -> None:
    assert "127.0.0.1:1" in refused("127.0.0.1:1", "explain", prompt=PROMPT)


def test_progress_is_reported(server: RunningServer) -> None:
    seen: list[tuple[float, float | None]] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total))

    arguments = {"prompt": PROMPT, "max_new_tokens": 6}
    with_client(server.address, lambda mcp: mcp.call_tool("explain", arguments, progress_callback=progress))
    assert seen
    assert seen == [(number, 6) for number in range(1, len(seen) + 1)]


def test_a_cancelled_call_cancels_the_servers(server: RunningServer) -> None:
    async def leave(mcp: McpClient) -> None:
        arguments = {"prompt": PROMPT, "completion": " a" * 300, "num_sources": 1}
        task = asyncio.create_task(mcp.call_tool("attribute", arguments))
        assert await becomes(lambda: bool(server.engine.scheduler.running))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await becomes(lambda: not server.engine.scheduler.running)

    with_client(server.address, leave)


async def becomes(is_so: Callable[[], bool]) -> bool:
    """Whether it becomes so within seconds."""
    for _ in range(500):
        if is_so():
            return True
        await asyncio.sleep(0.01)
    return False
