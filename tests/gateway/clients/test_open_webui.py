"""Open WebUI, untouched, in front of the gateway, in a real browser: chats stream, and cited documents are sources.

GRADELLM_OPENWEBUI is the folder of a virtual environment with Open WebUI.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.conftest import running
from gateway.page.chat_page import demo
from server.conftest import RunningServer
from support.browser import browser
from support.upstream.recording_proxy import RecordingProxy

__all__ = ["browser", "demo"]

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]
# Open WebUI would ask hubs for models, and the gateway for titles, tags and follow-up questions.
SETTINGS = {
    "WEBUI_AUTH": "False",
    "OFFLINE_MODE": "True",
    "BYPASS_EMBEDDING_AND_RETRIEVAL": "True",
    "RAG_EMBEDDING_ENGINE": "openai",
    "ENABLE_OLLAMA_API": "False",
    "ENABLE_TITLE_GENERATION": "False",
    "ENABLE_TAGS_GENERATION": "False",
    "ENABLE_FOLLOW_UP_GENERATION": "False",
    "OPENAI_API_KEY": "none",  # pragma: allowlist secret (none)
    "WEBUI_SECRET_KEY": "test",  # pragma: allowlist secret (of a test)
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "true",
}
QUESTION = "Clara sang because she had got a card. Why did Clara sing?"
MENU = "The soup is five coins. The bread is two coins."
HOURS = "We open at nine and close at six."
DOCUMENTS = [{"name": "menu", "text": MENU, "url": "https://example.org/menu"}, {"name": "hours", "text": HOURS}]


@pytest.fixture(scope="module")
def gateway(demo: RunningServer) -> Iterator[RecordingProxy]:
    with running(demo.address) as url:
        proxy = RecordingProxy(url)
        yield proxy
        proxy.close()


@pytest.fixture(scope="module")
def open_webui(gateway: RecordingProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an Open WebUI without accounts, whose data are empty."""
    program = Path(os.environ.get("GRADELLM_OPENWEBUI", "")) / "bin" / "open-webui"
    if not program.is_file():
        pytest.skip("GRADELLM_OPENWEBUI is not set to a virtual environment with Open WebUI")
    folder, port = tmp_path_factory.mktemp("open-webui"), free_port()
    environment = {**os.environ, **SETTINGS, "DATA_DIR": str(folder), "OPENAI_API_BASE_URL": gateway.url}
    environment.pop("PYTHONPATH", None)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program), "serve", "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            cwd=folder,
            stdout=output,
            stderr=output,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 600
        while not answers(f"{url}/health"):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < until, "Open WebUI has not started within 10 minutes"
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def call(url: str, body: object = None, token: str = "") -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers), timeout=60) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def waiter(open_webui: str) -> str:
    """A model of the workspace: documents as its system prompt, and as a custom parameter."""
    token = call(f"{open_webui}/api/v1/auths/signin", {"email": "", "password": ""})["token"]
    (base,) = [model["id"] for model in call(f"{open_webui}/api/models", token=token)["data"]]
    own = {"documents": DOCUMENTS, "attribution": "paper", "annotations": False}
    form = {
        "id": "waiter",
        "base_model_id": base,
        "name": "Waiter",
        "meta": {},
        "params": {
            "system": f"{MENU}\n\n{HOURS}",
            "temperature": 0,
            "max_tokens": 24,
            "custom_params": {"gradellm": json.dumps(own)},
        },
    }
    call(f"{open_webui}/api/v1/models/create", form, token)
    return "Waiter"


@pytest.fixture
def tab(browser: Any, open_webui: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    tab.goto(open_webui)
    tab.wait_for_selector("#chat-input")
    close = tab.get_by_role("button", name="Okay, Let's Go!")  # the news, at the first visit
    tab.add_locator_handler(close, lambda: close.click())
    yield tab
    context.close()


def ask(tab: Any, model: str, question: str) -> list[str]:
    """What the answer's text was, each time that it had changed."""
    tab.locator("#model-selector-model-button").click()
    tab.locator("[role=option]", has_text=model).click()
    tab.locator("#chat-input").click()
    tab.keyboard.type(question)
    tab.evaluate("""() => {
      window.texts = [];
      new MutationObserver(() => {
        const text = document.querySelector('.chat-assistant')?.innerText.trim();
        if (text && text !== texts.at(-1)) texts.push(text);
      }).observe(document.body, {subtree: true, childList: true, characterData: true});
    }""")
    tab.locator("#send-message-button").click()
    tab.get_by_role("button", name="Regenerate").wait_for()
    texts: list[str] = tab.evaluate("texts")
    return texts


def last_chat(gateway: RecordingProxy) -> tuple[Any, str]:
    """The last chat's request, and the stream that answered it."""
    chat = [each for each in gateway.recorded if each.request.target == "/v1/chat/completions"][-1]
    assert chat.status == 200, chat.body
    return chat.request.json, chat.body.decode()


def test_a_chat_streams(tab: Any, gateway: RecordingProxy) -> None:
    (model,) = [each["id"] for each in call(f"{gateway.url}/models")["data"]]
    texts = ask(tab, model, QUESTION)
    request, stream = last_chat(gateway)
    assert request["stream"]
    assert request["messages"][-1]["content"] == QUESTION
    written = "".join(
        chunk["choices"][0]["delta"].get("content", "")
        for line in stream.splitlines()
        if line.startswith("data: {")
        for chunk in [json.loads(line.removeprefix("data: "))]
        if chunk["choices"]
    )
    assert "".join(texts[-1].split()).startswith("".join(written.split()))
    assert len(texts) > 1  # it was there in parts
    assert tab.locator("[data-sonner-toast][data-type=error]").count() == 0


def test_cited_documents_are_sources(tab: Any, waiter: str, gateway: RecordingProxy) -> None:
    ask(tab, waiter, "How much is the soup?")
    request, stream = last_chat(gateway)
    assert request["gradellm"]["documents"] == DOCUMENTS
    events = [json.loads(line[6:])["event"]["data"] for line in stream.splitlines() if '"event"' in line]
    names = [event["source"]["name"] for event in events]
    assert names
    tab.get_by_text(f"{len(names)} Source").click()
    shown = tab.locator("[id^=source-]")
    assert [text.split("\n")[-1] for text in shown.all_inner_texts()] == names
    shown.first.click()
    said = tab.get_by_role("dialog").inner_text().split("\n")
    assert said[0] == names[0]  # the name, not its address
    assert [line for line in said[1:] if line not in ("", "Content")] == events[0]["document"]
