"""What the chat page shows beside an answer: pictures, citations, faithfulness; in a real browser."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.page.chat_page import (
    MENU,
    PICTURES,
    REVIEW,
    STORY,
    add_documents,
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
from gradellm.pictures.document import picture_document
from gradellm_engine.demo_model.training.sentiment import SYSTEM_PROMPT
from gradellm_engine.faithfulness.evaluation import Evaluation
from server.conftest import RunningServer

__all__ = ["browser", "demo", "demo_url", "show", "tab"]


def test_documents_have_bars(tab: Any) -> None:
    add_documents(tab, {"document 1": "My father loved it.", "mine": "I found it shabby."})
    ask(tab, "What is it?", system=SYSTEM_PROMPT)
    bars = tab.locator("#bars .bar").all_inner_texts()
    assert [bar.split("\n")[0] for bar in bars] == ["document 1", "mine", "the rest of the text"]
    shares = [float(bar.split("\n")[-1].replace("%", "")) for bar in bars]
    assert sum(shares) == pytest.approx(100, abs=1.5)
    titles = tab.locator(".panel .piece[title]").evaluate_all(
        "all => [...new Set(all.map(one => one.title.split(' · ')[0]))]"
    )
    assert [title for title in titles if title in ("document 1", "mine")] == ["document 1", "mine"]
    assert tab.locator("#documents .document").count() == 0  # they are a part of the conversation now
    ask(tab, "Is it good?")
    assert tab.locator("#bars .bar").count() == 3


def test_pictures_are_drawn_as_the_gateway_sends_them(tab: Any) -> None:
    """Folded template, places of equal words, the hatched sink, shares: the numbers of the page are the gateway's."""
    tab.evaluate("""() => {
      window.objects = [];
      const parse = JSON.parse;
      JSON.parse = (text) => { const made = parse(text); if (made.gradellm) objects.push(made.gradellm); return made; };
    }""")
    ask(tab, REVIEW, system=SYSTEM_PROMPT, method="grad_ellm, paper")
    canvas = tab.evaluate("objects[0].canvas")
    answer = tab.evaluate("objects.at(-1).answer")
    assert tab.locator(".panel .piece").all_inner_texts() == [chip["text"] for chip in canvas["chips"]]
    drawn = {index: name for index, name in enumerate(shades(tab)) if name}
    assert drawn == {chip: f"{'f' if level > 0 else 'a'}{abs(level)}" for chip, level, _, _ in answer["coloured"]}
    folded = tab.locator(".panel .template").first
    assert f"chat template: {100 * answer['folded']:.1f}"[:-2] in folded.inner_text()
    folded.click()
    assert folded.inner_text() == next(run["text"] for run in canvas["prompt"] if run["template"])
    tab.locator(".turn.assistant .word").first.hover()
    word = tab.evaluate("objects.flatMap(one => one.words ?? [])[0]")
    (place,) = {canvas["chips"][chip]["place"] for chip, _ in word["picture"]["top"]} - {""}
    assert f"({place})" in tab.locator("#status").inner_text()
    assert tab.locator(".piece.hatched").count() == (canvas["sink"] is not None)


def test_a_sink_is_hatched_and_told(tab: Any) -> None:
    """The demo's prompts begin with the template: the page draws a canvas whose first chip is a sink."""
    tab.evaluate("""() => {
      const parse = JSON.parse;
      JSON.parse = (text) => {
        const made = parse(text);
        if (made.gradellm?.canvas) made.gradellm.canvas.sink = 0;
        return made;
      };
    }""")
    ask(tab, REVIEW, system=SYSTEM_PROMPT)
    hatched = tab.locator(".piece.hatched")
    assert hatched.count() == 1
    assert "attention sink" in hatched.get_attribute("title")


@pytest.mark.parametrize("view", ["raw", "retention 0.3"])
def test_other_views_are_asked_for(show: Callable[..., Any], url: str, view: str) -> None:
    tab = show(url)
    ask(tab, STORY)
    words = tab.locator(".turn.assistant .word:visible")
    words.nth(2).click()
    before = shades(tab)
    with tab.expect_response("**/v1/gradellm/pictures") as called:
        tab.get_by_label("Colours").select_option(view)
    sent, received = called.value.request.post_data_json, called.value.json()
    explanation = Explanation.from_json(json.dumps(sent["explanation"]))
    scale, _, pi = view.partition(" ")
    expected = explanation.picture(range(*sent["selection"]), scale=scale, pi=float(pi or 0.3))  # type: ignore[arg-type]
    assert received["picture"] == picture_document(expected)
    assert len(sent["explanation"]["attributions"]) == sent["selection"][1] - sent["selection"][0]
    tab.wait_for_selector(".panel[aria-busy=false]")
    assert shades(tab) != before
    tab.get_by_label("Colours").select_option("excess")
    assert shades(tab) == before


def test_a_selected_range_has_a_picture(show: Callable[..., Any], url: str) -> None:
    tab = show(url)
    ask(tab, STORY)
    words = tab.locator(".turn.assistant .word:visible")
    words.nth(1).click()
    with tab.expect_response("**/v1/gradellm/pictures") as called:
        words.nth(3).click(modifiers=["Shift"])
    assert tab.locator('.word[aria-pressed="true"]:visible').count() == 3
    sent = called.value.request.post_data_json
    expected = Explanation.from_json(json.dumps(sent["explanation"])).picture(range(*sent["selection"]))
    assert called.value.json()["picture"] == picture_document(expected)
    tab.wait_for_selector(".panel[aria-busy=false]")
    levels = {index: name for index, name in enumerate(shades(tab)) if name}
    assert levels.keys() == {index for index, level in enumerate(expected.levels) if level}
    tab.keyboard.press("Escape")
    assert tab.locator('.word[aria-pressed="true"]').count() == 0
    words.nth(1).focus()
    tab.keyboard.press("Shift+ArrowRight")
    assert tab.locator('.word[aria-pressed="true"]').count() == 2


def test_selected_text_is_a_range(show: Callable[..., Any], url: str) -> None:
    tab = show(url)
    ask(tab, STORY)
    tab.evaluate("""() => {
      const words = [...document.querySelectorAll(".turn.assistant .word:not([hidden])")];
      document.querySelector(".turn.assistant .word").dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
      getSelection().setBaseAndExtent(words[1].firstChild, 0, words[2].firstChild, 1);
    }""")
    tab.wait_for_selector('.word[aria-pressed="true"]')
    assert tab.locator('.word[aria-pressed="true"]:visible').count() == 2


def test_each_sentence_has_its_documents(tab: Any) -> None:
    tab.evaluate("""() => {  // the second sentence has no document, the third is about a name that none has
      const parse = JSON.parse;
      JSON.parse = (text) => {
        const made = parse(text), found = made.gradellm?.citations;
        if (!found) return made;
        window.citations = found;
        const none = { ...found[0], documents: [] };
        found.push(none, { ...none, missing_names: ["Leo"], uncited: found[0].documents });
        return made;
      };
    }""")
    add_documents(tab, MENU)
    ask(tab, "What does the soup cost, and who is the cook?", method="grad_ellm, paper")
    cited = tab.evaluate("window.citations[0]")
    sentences = tab.locator("#citations .sentence")
    assert sentences.count() == 3
    assert cited["text"] in sentences.first.inner_text()
    shown = sentences.first.locator("button[data-document]")
    names = shown.evaluate_all("all => all.map(one => one.dataset.document)")
    assert names == [document["name"] for document in cited["documents"]] != []
    width = shown.first.locator(".bar i").evaluate("bar => bar.style.width")
    assert width == f"{100 * cited['documents'][0]['strength_of_strongest']:g}%"
    assert "no document" in sentences.nth(1).inner_text()
    assert f"no document has “Leo”; drawn from {names[0]}" in sentences.nth(2).inner_text()
    assert "2 of 3 without a document" in tab.locator("#citations h3").inner_text()
    shown.first.click()
    assert shown.first.get_attribute("aria-pressed") == "true"
    assert tab.locator('.word[aria-pressed="true"]').all_inner_texts() == cited["text"].split()
    marked = tab.locator(".piece.cited").all_inner_texts()
    assert marked
    assert all(word in MENU[names[0]] for word in marked)
    shown.first.click()
    assert tab.locator(".piece.cited").count() == 0


@pytest.mark.parametrize("button", ["How faithful?", "Thorough check"])
def test_how_faithful_an_answer_is_explained(tab: Any, button: str) -> None:
    ask(tab, REVIEW, system=SYSTEM_PROMPT)
    with tab.expect_request("**/v1/gradellm/evaluate") as called:
        tab.get_by_role("button", name=button).click()
    tab.wait_for_selector("#faithfulness p", timeout=60_000)
    text = tab.locator("#faithfulness").inner_text()
    assert "aithful" in tab.locator("#faithfulness .verdict").inner_text()
    assert "random words" in text
    assert "π-Soft-NS" in text
    assert "π-Soft-NC" in text
    assert "difference from random" in text
    assert tab.locator("#measuring").is_hidden()
    assert ("pis" in called.value.post_data_json) == (button == "How faithful?")


def test_a_quick_check_is_of_the_selected_words(show: Callable[..., Any], url: str) -> None:
    tab = show(url)
    ask(tab, STORY)
    tab.locator(".turn.assistant .word:visible").nth(2).click()
    with tab.expect_request("**/v1/gradellm/evaluate") as called:
        tab.get_by_role("button", name="How faithful?").click()
    sent = called.value.post_data_json
    steps = range(sent["offset"], len(sent["completion_ids"]), sent["stride"])
    assert steps.start > 0
    assert 1 <= len(steps) <= 2
    assert (sent["pis"], sent["samples"]) == ([0.3], 5)
    tab.wait_for_selector("#faithfulness p", timeout=60_000)
    assert f"“{tab.locator('.word.chosen').inner_text().strip()}”" in tab.locator("#faithfulness").inner_text()


def test_cancelling_a_measurement_cancels_the_call(
    show: Callable[..., Any], url: str, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab = show(url)
    ask(tab, STORY)
    run_batch, batches = Evaluation._run_batch, []

    def slowly(*args: Any) -> Any:
        batches.append(time.monotonic())
        time.sleep(0.2)
        return run_batch(*args)

    monkeypatch.setattr(Evaluation, "_run_batch", slowly)
    tab.get_by_role("button", name="Thorough check").click()
    tab.wait_for_function("document.getElementById('remaining').textContent.includes('left')")
    assert 0 < tab.locator("#done").evaluate("bar => bar.value") < 1
    assert server.server.engine_thread.num_unfinished == 1
    tab.get_by_role("button", name="Cancel").click()
    tab.wait_for_function("document.getElementById('faithfulness').textContent === 'Cancelled.'")
    until = time.monotonic() + 10
    while server.server.engine_thread.num_unfinished and time.monotonic() < until:
        time.sleep(0.02)
    assert server.server.engine_thread.num_unfinished == 0
    tab.wait_for_timeout(300)  # in which the batch that runs may end
    num_batches = len(batches)
    tab.wait_for_timeout(700)
    assert len(batches) == num_batches  # the engine has stopped
    assert tab.locator("#measuring").is_hidden()
    assert tab.locator("#judge").is_enabled()


@pytest.mark.parametrize("leaving", ["Send", "New conversation"])
def test_a_new_question_ends_a_measurement(tab: Any, leaving: str) -> None:
    ask(tab, REVIEW, system=SYSTEM_PROMPT)
    tab.evaluate("""() => {  // a measurement that takes long, as those of long answers do
      const real = fetch;
      const never = (signal) => new Promise((_, refuse) => signal.addEventListener("abort", () => {
        window.left = true;
        refuse(signal.reason);
      }));
      window.fetch = (path, options) => path.endsWith("evaluate") ? never(options.signal) : real(path, options);
    }""")
    tab.get_by_role("button", name="How faithful?").click()
    assert tab.locator("#judge").is_disabled()
    tab.get_by_label("Your message").fill(REVIEW)
    tab.get_by_role("button", name=leaving).click()
    tab.wait_for_function("window.left")
    assert tab.locator("#faithfulness").inner_text() == ""
    if leaving == "New conversation":
        ask(tab, REVIEW)
    tab.wait_for_selector("#judge:not([disabled])")
    assert tab.locator(".turn.assistant").count() == (2 if leaving == "Send" else 1)
    assert tab.locator("#error").inner_text() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_citations_and_measurements_are_usable_narrow(tab: Any, scheme: str, tmp_path: Path) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 360, "height": 800})
    add_documents(tab, MENU)
    ask(tab, "What does the soup cost, and who is the cook?")
    tab.locator("#citations button").first.click()
    tab.get_by_role("button", name="How faithful?").click()
    tab.wait_for_selector("#faithfulness p")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.screenshot(path=Path(PICTURES or tmp_path) / f"citations-{scheme}-360.png", full_page=True)
    check_accessibility(tab)
