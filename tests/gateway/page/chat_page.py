"""The chat page in a real browser: fixtures, and what a user does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.conftest import running
from gradellm_engine import Engine
from gradellm_engine.demo_model import CHECKPOINT
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer
from support.browser import browser

__all__ = [
    "MENU",
    "PICTURES",
    "REVIEW",
    "STORY",
    "add_documents",
    "ask",
    "browser",
    "check_accessibility",
    "demo",
    "demo_url",
    "shades",
    "show",
    "tab",
]

PROJECT = Path(__file__).parents[3]
AXE = next(iter((PROJECT / ".cache").glob("node-*/node_modules/axe-core/axe.min.js")), None)
PICTURES = os.environ.get("GRADELLM_PICTURES")  # a folder: where the README's pictures go
REVIEW = "Text: To me the movie was shabby. There was a lovely song at the end, said my father."
STORY = "Once upon a time, there was a little dog."
MENU = {
    "menu": "The soup is five coins. The bread is two coins. Children eat for free on Monday.",
    "hours": "We open at nine and close at six. On Sunday we are closed.",
    "staff": "Anna is the cook. Leo serves the tables.",
}


@pytest.fixture(scope="module")
def demo() -> Iterator[RunningServer]:
    running_server = RunningServer(Engine.load(str(CHECKPOINT)), ServerSettings(listen="127.0.0.1:0"))
    yield running_server
    running_server.close()


@pytest.fixture(scope="module")
def demo_url(demo: RunningServer) -> Iterator[str]:
    with running(demo.address) as url:
        yield url


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens the page of a gateway. Any console message is a failure, except `expected`.

    Playwright's waiting evaluates script text, which the page's Content-Security-Policy forbids: the policy is bypassed
    unless a test needs it (`policy=True`).
    """
    messages: list[str] = []
    contexts: list[Any] = []

    def opened(url: str, *, policy: bool = False, expected: str = "\0") -> Any:
        context = browser.new_context(
            viewport={"width": 1100, "height": 900},
            permissions=["clipboard-write", "clipboard-read"],
            bypass_csp=not policy,
        )
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(20_000)
        tab.on("console", lambda message: None if expected in message.text else messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.goto(url)
        tab.wait_for_selector("#method option:nth-child(3)", state="attached")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert messages == []


@pytest.fixture
def tab(show: Callable[..., Any], demo_url: str) -> Any:
    """The demo model's page."""
    return show(demo_url)


def ask(tab: Any, question: str, *, system: str = "", method: str = "", wait: bool = True) -> None:
    if system or method:
        tab.locator("summary", has_text="Settings").click()
    if system:
        tab.get_by_label("System message").fill(system)
    if method:
        tab.get_by_label("Explained by").select_option(method)
    tab.get_by_label("Your message").fill(question)
    tab.get_by_role("button", name="Send").click()
    if wait:
        tab.wait_for_function(
            "!document.getElementById('send').disabled && document.querySelector('.turn.assistant .word')"
        )
        assert tab.locator("#error").inner_text() == ""


def shades(tab: Any, panel: int = 0) -> list[str]:
    classes = tab.locator(".panel").nth(panel).locator(".piece").evaluate_all("all => all.map(one => one.className)")
    return [names.replace("piece", "").strip() for names in classes]


def add_documents(tab: Any, texts: dict[str, str]) -> None:
    tab.locator("summary", has_text="Documents").click()
    for number, (name, text) in enumerate(texts.items(), 1):
        tab.get_by_role("button", name="Add a document").click()
        tab.get_by_label(f"Text of document {number}").fill(text)
        tab.get_by_label(f"Name of document {number}").fill(name)


def check_accessibility(tab: Any) -> None:
    if AXE is None:
        pytest.skip("axe-core is not installed")
    tab.evaluate(AXE.read_text())
    violations = tab.evaluate("axe.run().then(found => found.violations)")
    serious = [
        (violation["id"], violation["nodes"][0]["html"])
        for violation in violations
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == []
