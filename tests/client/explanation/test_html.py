"""The page of an explanation, in a real browser."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.explanation.conftest import ROWS, explanation, shared
from gradellm import Attribution, Explanation, PromptToken, Token
from gradellm.explanation.html import page, repr_html
from support.browser import browser

__all__ = ["browser"]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens an explanation's page; any console message is a failure."""
    messages: list[str] = []
    context = browser.new_context(viewport={"width": 800, "height": 900}, offline=True)

    def opened(loaded: Explanation, **settings: Any) -> Any:
        (tmp_path / "x.html").write_text(page(loaded), encoding="utf-8")
        tab = context.new_page()
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        if settings:
            tab.emulate_media(**settings)
        tab.goto((tmp_path / "x.html").as_uri())
        tab.wait_for_selector("html[data-ready]")
        return tab

    yield opened
    context.close()
    assert messages == []


def shades(tab: Any, selector: str) -> list[int]:
    """How strong each element is coloured, 0 to 24; below 0 for what speaks against."""
    classes = tab.locator(selector).evaluate_all("found => found.map(one => one.className)")
    levels = []
    for names in classes:
        level = next((name for name in names.split() if name[0] in "fa" and name[1:].isdecimal()), "f0")
        levels.append(int(level[1:]) * (1 if level[0] == "f" else -1))
    return levels


def test_pointing_at_a_word_shows_its_sources(show: Any) -> None:
    tab = show(explanation())
    assert tab.locator(".word").all_inner_texts() == ["It", "purrs", "loud"]
    tab.locator(".word", has_text="It").hover()
    assert shades(tab, ".piece") == [8, 0, 24, 0]  # 1 and 2, less the median, 0.5
    assert "“It” was drawn from “sat” 75\u00a0%, “The” 25\u00a0%" in tab.locator("#status").inner_text()
    tab.locator(".word", has_text="purrs").hover()
    assert shades(tab, ".piece")[1] == -24  # -1 is the largest of what people wrote
    assert tab.locator("button.template").inner_text() == "⋯ chat template: 67\u00a0% of the scores"
    tab.mouse.move(0, 0)
    assert shades(tab, ".piece")[3] == 24  # the whole answer
    assert "The whole answer" in tab.locator("#status").inner_text()


def test_pointing_at_a_source_shows_its_targets(show: Any) -> None:
    tab = show(explanation())
    tab.locator(".piece", has_text="on a mat").hover()
    assert shades(tab, ".word") == [0, 0, 24]
    assert "led most to “loud”" in tab.locator("#status").inner_text()


def test_a_click_keeps_a_word_and_keys_move(show: Any) -> None:
    tab = show(explanation())
    tab.locator(".word").first.click()
    tab.mouse.move(0, 0)
    assert tab.locator(".word").first.get_attribute("aria-pressed") == "true"
    assert shades(tab, ".piece")[2] == 24
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.textContent") == "loud"
    assert shades(tab, ".piece")[3] == 24
    tab.keyboard.press("Home")
    tab.keyboard.press("Enter")  # releases the selected word
    assert tab.locator('[aria-pressed="true"]').count() == 0
    tab.keyboard.press("End")
    tab.keyboard.press(" ")
    assert tab.locator('[aria-pressed="true"]').inner_text() == "loud"
    tab.keyboard.press("Escape")
    assert tab.locator('[aria-pressed="true"]').count() == 0


def test_documents_have_bars_and_the_template_is_hidden(show: Any) -> None:
    loaded = explanation()
    template = replace(loaded.prompt_tokens[0], text="<s>")  # which the prompt's text does not hold
    tab = show(replace(loaded, started=replace(loaded.started, prompt_tokens=(template, *loaded.prompt_tokens[1:]))))
    button = tab.locator("button.template")
    assert "chat template: 27\u00a0% of the scores" in button.inner_text()  # 4 of 15
    button.click()
    assert button.inner_text() == "<s>"
    tab.locator(".word").first.hover()
    assert tab.locator("#segments .bar").all_inner_texts() == ["doc\n75\u00a0%", "the rest of the text\n25\u00a0%"]


def test_the_matrix_shows_its_cells(show: Any) -> None:
    tab = show(explanation())
    tab.locator("summary").click()
    canvas = tab.locator("#matrix")
    tab.wait_for_selector("#matrix[width='48']")
    assert canvas.evaluate("c => [c.width, c.height]") == [4 * 12, 3 * 12]  # what people wrote; words
    canvas.hover(position={"x": 3 * 12 + 6, "y": 2 * 12 + 6})
    assert tab.locator("#cell").inner_text() == "“loud” from “on a mat”: score 5.00, 100\u00a0% of the colour"
    painted = canvas.evaluate("c => [...c.getContext('2d').getImageData(42, 30, 1, 1).data]")
    assert painted[3] == 255


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_shade(show: Any, scheme: str) -> None:
    tab = show(explanation(), color_scheme=scheme)
    contrasts = tab.evaluate("""() => {
      const light = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
        .map((part) => part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
        .reduce((sum, part, i) => sum + part * [.2126, .7152, .0722][i], 0);
      const found = [], probe = document.createElement("i");
      document.body.append(probe);
      for (let level = 1; level <= 24; level++) for (const name of ["f", "a"]) {
        probe.className = name + level;
        const style = getComputedStyle(probe), [a, b] = [light(style.color), light(style.backgroundColor)];
        found.push((Math.max(a, b) + .05) / (Math.min(a, b) + .05));
      }
      return found;
    }""")
    assert len(contrasts) == 48
    assert min(contrasts) >= 4.5


def test_the_page_fits_a_narrow_screen(show: Any) -> None:
    tab = show(explanation())
    tab.set_viewport_size({"width": 360, "height": 640})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


def test_text_that_looks_like_markup_stays_text(show: Any) -> None:
    loaded = explanation()
    evil = "</script><script>throw 1</script><b>&amp;"
    tokens = (replace(loaded.tokens[0], text=evil, end=len(evil)), *loaded.tokens[1:])
    prompt = (replace(loaded.prompt_tokens[1], text=evil), *loaded.prompt_tokens[1:])
    changed = replace(
        loaded, tokens=tokens, started=replace(loaded.started, prompt_tokens=loaded.prompt_tokens[:1] + prompt[1:])
    )
    tab = show(changed)
    assert evil in tab.locator("#answer").inner_text()
    assert "srcdoc=" in repr_html(changed)
    assert "<script>throw" not in repr_html(changed)


def test_right_to_left_and_wide_text(show: Any) -> None:
    loaded = explanation()
    texts = ("שלום", " עולם", "你", "好")
    position, tokens = 0, []
    for index, text in enumerate(texts):
        tokens.append(replace(loaded.tokens[index], text=text, start=position, end=position + len(text)))
        position += len(text)
    tab = show(replace(loaded, tokens=tuple(tokens)))
    assert tab.locator(".word").all_inner_texts() == ["שלום", "עולם", "你", "好"]
    assert tab.locator("#answer").evaluate("box => getComputedStyle(box).direction") == "rtl"
    tab.locator(".word").first.focus()
    tab.keyboard.press("ArrowLeft")  # the next word stands on the left
    assert tab.evaluate("document.activeElement.textContent") == "עולם"


def test_every_character_is_drawn_once(show: Any) -> None:
    tab = show(shared())
    assert tab.locator("#prompt .piece").all_inner_texts() == ["日", "本", "x"]
    assert tab.locator(".word").all_inner_texts() == ["好", "的", "ok"]
    tab.locator(".word").first.hover()
    assert shades(tab, ".piece") == [24, 0, -24]  # 2, 1 and -1; the median is 1
    assert tab.locator("#status").inner_text() == "“好” was drawn from “日” 50\u00a0%, “x” 50\u00a0% against"
    tab.locator("summary").click()
    tab.wait_for_selector("#matrix[width='36']")
    tab.locator("#matrix").hover(position={"x": 6, "y": 6})
    assert tab.locator("#cell").inner_text() == "“好” from “日”: score 2.00, 50\u00a0% of the colour"


def test_texts_of_any_direction_are_isolated_from_labels(show: Any) -> None:
    loaded = explanation()
    text = "عمر (1)."
    token = PromptToken(1, text, 0, len(text), "user", 0, "مستند 1", False, 0)
    answer = replace(loaded.tokens[0], text="سنة.", end=4)
    row = Attribution(0, (0.0, 1.0), (), 50, None)
    started = replace(loaded.started, prompt_text=text, prompt_tokens=(loaded.prompt_tokens[0], token))
    tab = show(Explanation(started, (answer,), (row,), None))
    tab.locator(".word").hover()
    assert tab.locator("#status bdi").all_inner_texts() == ["سنة.", text]
    assert tab.locator("#status").inner_text() == f"“سنة.” was drawn from “{text}” 100\u00a0%"
    assert tab.locator("#segments bdi").first.inner_text() == "مستند 1"
    for box in ("#answer", ".message"):
        assert tab.locator(box).evaluate("box => getComputedStyle(box).direction") == "rtl"
    # The full stop stands on the left of an Arabic word, also in a sentence of ours.
    lefts = tab.locator("#status bdi").first.evaluate("""one => [0, 3].map((i) => {
      const range = document.createRange();
      range.setStart(one.firstChild, i);
      range.setEnd(one.firstChild, i + 1);
      return range.getBoundingClientRect().left;
    })""")
    assert lefts[1] < lefts[0]


def test_a_long_answer_to_a_long_prompt_stays_small(show: Any) -> None:
    rng = random.Random(0)
    loaded = explanation()
    prompt = tuple(PromptToken(i, f" word{i % 97}", 0, 0, "user", None, "", False) for i in range(2000))
    text, placed = "", []
    for token in prompt:
        placed.append(replace(token, start=len(text), end=len(text) + len(token.text)))
        text += token.text
    tokens, position = [], 0
    for index in range(500):
        tokens.append(Token(index, index, " so", position, position + 3, -1.0, (), False, 2000 + index))
        position += 3
    rows = tuple(Attribution(i, tuple(rng.random() ** 4 for _ in range(2000 + i)), (), i, None) for i in range(500))
    started = replace(loaded.started, prompt_text=text, prompt_tokens=tuple(placed))
    long = Explanation(started, tuple(tokens), rows, None)
    assert len(page(long).encode()) < 6_000_000
    tab = show(long)
    assert tab.locator(".word").count() == 500
    seconds = tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
    print(f"opened after {seconds:.2f} s")


def test_no_word_was_explained(show: Any) -> None:
    tab = show(replace(explanation(), attributions=()))
    tab.locator(".word").first.hover()
    assert "was not explained" in tab.locator("#status").inner_text()
    assert len(ROWS) == 3


def test_the_view_is_chosen_and_the_sink_is_hatched(show: Any) -> None:
    loaded = explanation()
    first = replace(loaded.prompt_tokens[1], role="system", start=0)
    started = replace(loaded.started, prompt_tokens=(first, *loaded.prompt_tokens[2:]))
    rows = tuple(replace(row, scores=row.scores[1:]) for row in loaded.attributions)
    tab = show(replace(loaded, started=started, attributions=rows))
    assert tab.locator(".piece.hatched").inner_text() == "The"
    tab.locator(".word", has_text="It").click()
    tab.mouse.move(0, 0)
    assert shades(tab, ".piece") == [0, 0, 24, 0]  # the first token is an attention sink
    tab.get_by_label("Colours").select_option("raw")
    assert shades(tab, ".piece") == [0, 0, 24, 0]
    tab.get_by_label("Colours").select_option("retention 0.5")
    assert shades(tab, ".piece")[2:] == [24, 0]  # of two words of the user one is kept
    assert "figures 3 to 6" in tab.locator("#view-help").inner_text()
    tab.locator(".piece.hatched").hover()
    assert "attention sink" in tab.locator("#status").inner_text()
