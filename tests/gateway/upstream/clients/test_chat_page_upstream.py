"""The chat page in front of another engine: its text comes at once, its words when they are explained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.page.chat_page import STORY, ask, browser, show
from gateway.upstream.conftest import in_front_of
from server.conftest import RunningServer
from support.upstream.fake_vllm import MODEL, FakeVllm

__all__ = ["browser", "show"]


@pytest.fixture
def tab(show: Callable[..., Any], url: str) -> Any:
    return show(url)


def test_an_answer_is_shown_with_what_is_known_of_its_engine(vllm: FakeVllm, tab: Any) -> None:
    ask(tab, "Clara sang because she had got a card. Why did Clara sing?")  # with an answer of 8 tokens or more
    tab.wait_for_selector(".turn.assistant .word:visible")
    assert vllm.chats[-1]["model"] == MODEL
    words = "".join(tab.locator(".turn.assistant").inner_text().split()[1:])
    assert words
    assert tab.locator(".turn.assistant .unexplained").count() == 0
    said = tab.locator("#upstream").inner_text()
    assert "Another engine wrote this answer. Its log-probabilities agree with this model’s" in said


def test_other_weights_are_told(vllm: FakeVllm, tab: Any) -> None:
    vllm.logprob_shift = -3.0
    ask(tab, STORY)
    assert "differ from this model’s" in tab.locator("#upstream").inner_text()


def test_a_text_that_is_not_explained_is_shown(vllm: FakeVllm, server: RunningServer, show: Callable[..., Any]) -> None:
    with in_front_of(vllm.url, server.address) as url:
        tab = show(url)
        vllm.tells_ids = False
        vllm.prompt_suffix = " x"
        tab.route(
            "**/v1/chat/completions", lambda route: route.continue_(post_data=with_tools(route.request.post_data_json))
        )
        ask(tab, STORY, wait=False)
        tab.wait_for_selector("#send:not([disabled])")
        assert len(tab.locator(".turn.assistant .unexplained").inner_text()) > 5
        assert "not explained" in tab.locator("#error").inner_text()


def with_tools(body: Any) -> Any:
    return {**body, "tools": [{"type": "function"}]}
