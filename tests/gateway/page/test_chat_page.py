"""The chat page in a real browser, with the demo model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.page.chat_page import (
    PICTURES,
    REVIEW,
    STORY,
    ask,
    browser,
    check_accessibility,
    demo,
    demo_url,
    shades,
    show,
    tab,
)
from gradellm import Explanation
from gradellm_engine.demo_model.training.sentiment import SYSTEM_PROMPT
from gradellm_engine.params import RECOMMENDED_PRESET
from server.conftest import RunningServer

__all__ = ["browser", "demo", "demo_url", "show", "tab"]


def test_an_answer_is_streamed_with_its_attribution(tab: Any) -> None:
    ask(tab, REVIEW, system=SYSTEM_PROMPT, method="grad_ellm, paper")
    assert tab.locator(".turn.assistant .word").all_inner_texts() == ["Negative"]
    tab.locator(".word").hover()
    assert "“Negative” was drawn from “shabby.”" in tab.locator("#status").inner_text()
    assert any(shade.startswith("f") for shade in shades(tab))
    pieces = tab.locator(".panel .piece").all_inner_texts()
    assert pieces[shades(tab).index("f24")] == "shabby."


def test_the_page_works_under_its_content_security_policy(show: Callable[..., Any], demo_url: str) -> None:
    tab = show(demo_url, policy=True)
    ask(tab, REVIEW, wait=False)
    tab.wait_for_selector(".piece.f24")
    tab.wait_for_selector("#send:not([disabled])")
    tab.get_by_label("Compare with").select_option("saliency")
    tab.wait_for_selector(".panel:nth-child(2) .f24")


def test_words_are_pinned_by_clicks_and_keys(show: Callable[..., Any], url: str) -> None:
    tab = show(url)  # of a tiny random model, which generates more text
    ask(tab, STORY)
    words = tab.locator(".turn.assistant .word:visible")
    assert words.count() > 5
    words.nth(3).click()
    word_index = int(words.nth(3).get_attribute("data-word"))
    pinned = shades(tab)
    words.nth(0).hover()
    assert shades(tab) != pinned
    tab.get_by_label("Your message").hover()
    assert shades(tab) == pinned
    assert words.nth(3).get_attribute("aria-pressed") == "true"
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.dataset.word") == str(word_index + 1)
    tab.keyboard.press("Enter")
    assert tab.locator('[aria-pressed="true"]').get_attribute("data-word") == str(word_index + 1)
    tab.keyboard.press("Escape")
    assert tab.locator('[aria-pressed="true"]').count() == 0


def test_two_methods_are_shown_side_by_side(tab: Any) -> None:
    ask(tab, REVIEW, system=SYSTEM_PROMPT)
    tab.get_by_label("Compare with").select_option("saliency")
    tab.wait_for_function("document.querySelectorAll('.panel').length === 2")
    tab.wait_for_function(
        "[...document.querySelectorAll('.panel:last-child .piece')].some(one => / [fa]\\d/.test(one.className))"
    )
    assert tab.locator(".panel h3").all_inner_texts() == [f"grad_ellm, {RECOMMENDED_PRESET}", "saliency"]
    assert shades(tab, 0) != shades(tab, 1)
    tab.get_by_label("Compare with").select_option("")
    assert tab.locator(".panel").count() == 1


def test_buttons_wait_for_an_answer(tab: Any) -> None:
    assert tab.locator("#actions").is_hidden()
    assert tab.locator("#actions :enabled").count() == 0
    ask(tab, REVIEW, system=SYSTEM_PROMPT)
    assert tab.locator("#actions :disabled").count() == 0
    assert tab.locator("#actions").is_visible()
    tab.get_by_role("button", name="New conversation").click()
    assert tab.locator("#actions").is_hidden()
    assert tab.locator("#actions :enabled").count() == 0


@pytest.mark.parametrize("text", ["كان الفيلم (جيدًا). 12", "הסרט היה טוב, 3.14!", "这部电影很好看。", "หนังดี"])
def test_every_character_is_drawn_once_in_its_own_direction(tab: Any, text: str) -> None:
    ask(tab, text, system=SYSTEM_PROMPT)
    tab.locator(".turn.assistant .word").first.hover()
    message = tab.locator(".panel .message", has_text=text[:3])
    assert message.inner_text() == f"user\n{text}"
    runs_left = text[0] in "كה"
    direction = "rtl" if runs_left else "ltr"
    for box in (message, tab.locator(".turn.user")):
        assert box.evaluate("box => getComputedStyle(box).direction") == direction
    named = tab.locator("#status bdi").all_inner_texts()[1:]
    assert named
    assert all(name in text or name in SYSTEM_PROMPT for name in named)
    if PICTURES:
        tab.screenshot(path=Path(PICTURES) / f"direction-{ord(text[0]):x}.png", full_page=True)


def test_an_answer_is_copied_and_downloaded(tab: Any, tmp_path: Path) -> None:
    ask(tab, REVIEW, system=SYSTEM_PROMPT)
    tab.get_by_role("button", name="Copy answer").click()
    tab.wait_for_function("document.getElementById('status').textContent === 'Copied.'")
    assert tab.evaluate("navigator.clipboard.readText()") == "Negative"
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "explanation.json")
    explanation = Explanation.load(tmp_path / "explanation.json")
    assert explanation.text == "Negative"
    assert explanation.scores[0]
    assert json.loads((tmp_path / "explanation.json").read_text())["finished"]["reason"] == "end_of_text"


def test_stopping_an_answer_cancels_the_call(
    show: Callable[..., Any], url: str, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = server.engine.model.runner
    explained_pass = runner.explained_pass

    def slowly(parts: Any) -> Any:  # or the tiny model has answered before the browser clicks
        time.sleep(0.05)
        return explained_pass(parts)

    monkeypatch.setattr(runner, "explained_pass", slowly)
    tab = show(url)
    ask(tab, STORY, wait=False)
    tab.wait_for_selector(".turn.assistant .word", state="attached")
    tab.get_by_role("button", name="Stop").click()
    tab.wait_for_function("!document.getElementById('send').disabled")
    tab.wait_for_timeout(300)
    assert server.server.engine_thread.num_unfinished == 0
    assert tab.locator(".turn.assistant .word").count() < 100
    monkeypatch.undo()
    tab.get_by_role("button", name="New conversation").click()
    assert tab.locator(".turn").count() == 0
    ask(tab, "Go on.")
    assert tab.locator(".turn.assistant").count() == 1


def test_a_refused_question_returns_to_the_input_field(show: Callable[..., Any], demo_url: str) -> None:
    tab = show(demo_url, expected="status of 400")
    ask(tab, "word " * 2000, wait=False)
    tab.wait_for_function("document.getElementById('error').textContent")
    assert "tokens" in tab.locator("#error").inner_text()
    assert tab.get_by_label("Your message").input_value() == "word " * 2000
    assert tab.locator(".turn.assistant").count() == 0


def test_an_attribution_row_is_drawn_promptly(tab: Any) -> None:
    """From the arrival of the first attribution's bytes to the frame that shows it."""
    tab.evaluate("""() => {
      window.marks = {};
      const parse = JSON.parse;
      JSON.parse = (text) => {
        if (!marks.arrived && text.includes('"attribution":{"token_index"')) marks.arrived = performance.now();
        return parse(text);
      };
      new MutationObserver(() => {
        if (marks.arrived && !marks.shown && document.querySelector('.piece[class*=" f"]')) {
          marks.shown = -1;
          requestAnimationFrame(() => setTimeout(() => { marks.shown = performance.now(); }));
        }
      }).observe(document.getElementById("panels"), { subtree: true, attributes: true, childList: true });
    }""")
    ask(tab, REVIEW, system=SYSTEM_PROMPT)
    tab.wait_for_function("marks.shown > 0")
    milliseconds = tab.evaluate("marks.shown - marks.arrived")
    print(f"the first vector is on screen {milliseconds:.0f} ms after it came")
    assert milliseconds > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_the_page_is_usable_narrow_and_wide(tab: Any, scheme: str, width: int, tmp_path: Path) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": width, "height": 800})
    review = "Text: The musical began at eight. The stage was dull, but all in all the musical was wonderful."
    ask(tab, review, system=SYSTEM_PROMPT)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.locator(".word").click()
    tab.screenshot(path=Path(PICTURES or tmp_path) / f"chat-{scheme}-{width}.png", full_page=True)
    check_accessibility(tab)
