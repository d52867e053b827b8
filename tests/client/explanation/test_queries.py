"""Queries on an explanation that is small enough to compute by hand."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from client.explanation.conftest import ROWS, explanation, shared
from gradellm import Attribution, Explanation, InvalidExplanationError, PromptToken, Token
from gradellm.explanation.html import page_data
from gradellm.models import Source


def test_a_selection_is_the_sum_of_its_rows() -> None:
    loaded = explanation()
    everything = tuple(map(sum, zip(*ROWS.values(), strict=True)))
    assert loaded.attribution_of() == everything
    assert loaded.attribution_of(0) == ROWS[0]
    assert loaded.attribution_of(loaded.words[1]) == ROWS[1]
    assert loaded.attribution_of(range(3)) == loaded.attribution_of("It purrs") == loaded.attribution_of("It p")
    assert loaded.attribution_of("loud") == ROWS[3]
    assert loaded.attribution_of(re.compile("It|loud")) == tuple(map(sum, zip(ROWS[0], ROWS[3], strict=True)))


def test_tokens_of_a_selection() -> None:
    loaded = explanation()
    assert loaded.token_indexes() == (0, 1, 2, 3)
    assert loaded.token_indexes("urr") == loaded.token_indexes(loaded.words[1]) == (1, 2)
    assert loaded.token_indexes(re.compile("[rt]")) == (0, 1, 2)
    assert loaded.token_indexes(2) == (2,)  # which was not explained
    assert shared().token_indexes("的") == (1, 2)  # both parts of the character
    with pytest.raises(InvalidExplanationError, match="does not contain 'x"):
        loaded.token_indexes(re.compile("x|^"))


@pytest.mark.parametrize("selection", [2, 9, -1, "dog", "", range(3, 9), range(0)])
def test_unknown_selections_are_refused(selection: object) -> None:
    with pytest.raises(InvalidExplanationError, match=r"explained|completion"):
        explanation().attribution_of(selection)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("by", "scores"),
    [
        ("segment", {"": 4 + 1 - 1 + 5, "doc": 2 + 2}),
        ("role", {"template": 4, "system": 0, "user": 2 + 2 + 5}),
        ("message", {"": 4, "0": 0, "1": 9}),
        ("word", {"": 4, "The": 1, "cat": -1, "sat": 4, "on a mat": 5}),
    ],
)
def test_parts_add_up(by: str, scores: dict[str, float]) -> None:
    parts = explanation().parts(by)  # type: ignore[arg-type]
    assert {item.label: item.score for item in parts} == scores
    assert sorted(column for item in parts for column in item.columns) == list(range(6))
    total = sum(map(abs, explanation().attribution_of()))
    assert all(item.share == abs(item.score) / total for item in parts)


def test_top_sources_exclude_the_template() -> None:
    loaded = explanation()
    assert [(item.label, item.score) for item in loaded.top_sources(n=2)] == [
        ("on a mat", 5.0),
        ("sat", 4.0),
    ]
    assert loaded.top_sources("purrs", n=1, written=False)[0].score == 4.0
    assert [item.label for item in loaded.top_sources("purrs", by="source")][:2] == [" cat", "at"]


def test_words_end_where_the_template_begins() -> None:
    loaded = explanation()
    text = "<u>Hi there<e><a>"
    spans = [(0, 3, True), (3, 5, False), (5, 11, False), (11, 14, True), (14, 17, True)]
    tokens = tuple(
        PromptToken(i, text[a:b], a, b, "template" if special else "user", None, "", special)
        for i, (a, b, special) in enumerate(spans)
    )
    started = replace(loaded.started, prompt_text=text, prompt_tokens=tokens)
    full = Explanation(started, loaded.tokens, (Attribution(0, (1.0, 2.0, 3.0, 4.0, 5.0), (), 50, None),), None)
    assert [item.label for item in full.parts("word")] == ["<u>", "Hi", "there", "<e>", "<a>"]


def test_led_to() -> None:
    loaded = explanation()
    assert [(word.text, score) for word, score in loaded.led_to(4)] == [("It", 1.0), ("purrs", 1.0), ("loud", 0.0)]
    assert [score for _, score in loaded.led_to("doc")] == [3.0, 1.0, 0.0]
    assert [score for _, score in loaded.led_to([0, 5])] == [0.0, 4.0, 5.0]
    for absent in (6, -1, "nothing", "", range(0)):
        with pytest.raises(InvalidExplanationError):
            loaded.led_to(absent)


def test_a_coarse_resolution_cannot_be_refined() -> None:
    loaded = explanation()
    coarse = replace(loaded.started, sources=(Source("The cat sat", (0, 1, 2, 3, 4)), Source("on", (5,))))
    full = Explanation(coarse, loaded.tokens, (Attribution(0, (1.0, 2.0), (), 50, None),), None)
    assert [(item.label, item.score) for item in full.parts("source")] == [
        ("The cat sat", 1.0),
        ("on", 2.0),
    ]
    with pytest.raises(InvalidExplanationError, match="resolution"):
        full.parts("role")
    with pytest.raises(InvalidExplanationError, match="one score per token"):
        full.retention(0.5)


def test_retention_keeps_a_share_of_the_users_text() -> None:
    kept = explanation().retention(0.3)
    assert [token.text for token, _ in kept] == [" s", "at", " on a mat"]
    assert sum(prob for _, prob in kept) / 3 == pytest.approx(0.3, abs=1e-9)


# --- characters of several tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_ids", [False, True])
def test_tokens_that_share_a_character_are_drawn_once_and_add_up(of_ids: bool) -> None:
    loaded = shared(of_ids=of_ids)
    assert loaded.drawn == (("日", (0, 1)), ("本", (2,)), (" x", (3,)))
    assert [(item.label, item.score, item.columns) for item in loaded.parts("source", 0)] == [
        ("日", 3.0, (0, 1)), ("本", 1.0, (2,)), (" x", -1.0, (3,)),
    ]  # fmt: skip
    assert [(item.label, item.score) for item in loaded.top_sources(0)] == [
        ("日", 3.0),
        ("本", 1.0),
        ("x", -1.0),
    ]
    assert [(word.text, word.token_indexes) for word in loaded.words] == [("好", (0,)), ("的", (1, 2)), ("ok", (3,))]
    assert loaded.to_ansi(color="never").count("日本 x\n") == 3  # once a word of the answer
    assert "  日本 x\n  ██   ▓\n" in loaded.to_ansi(color="never")  # 2, 1 and -1; the median is 1
    data = page_data(loaded)
    assert [chip["text"] for chip in data["chips"]] == ["日", "本", "x"]
    assert [run["parts"] for run in data["prompt"]] == [[0, 1, " ", 2]]


@pytest.mark.parametrize("resolution", ["token", "word"])
def test_parts_of_a_generated_character_are_one_source(resolution: str) -> None:
    loaded = shared()
    columns = [4, 5, 6, 7] if resolution == "token" else [3, 4, 4, 5]
    tokens = tuple(replace(token, source_index=column) for token, column in zip(loaded.tokens, columns, strict=True))
    sources = () if resolution == "token" else (Source("日", (0, 1)), Source("本", (2,)), Source("x", (3,)))
    row = Attribution(3, (1.0,) * columns[-1], (), 3, None)
    full = Explanation(replace(loaded.started, sources=sources), tokens, (row,), None)
    labels = ["日", "本", " x", "好", "的", " ok"]
    assert [label for label, _ in full.drawn] == (labels if resolution == "token" else [*map(str.strip, labels)])
    assert [column for _, drawn in full.drawn for column in drawn] == [*range(columns[-1] + 1)]


# --- large explanations -----------------------------------------------------------------------------------------------


def long(num_tokens: int, num_words: int = 3, **changes: object) -> Explanation:
    """A prompt of so many words, a token each."""
    loaded = explanation()
    prompt = tuple(
        PromptToken(i, " word", 5 * i, 5 * i + 5, "user", None, f"d{i // 50}", False, i) for i in range(num_tokens)
    )
    tokens = tuple(Token(i, i, " so", 3 * i, 3 * i + 3, -1.0, (), False, None, i) for i in range(num_words))
    rows = tuple(Attribution(i, tuple(float(j % 9) for j in range(num_tokens)), (), i, None) for i in range(num_words))
    started = replace(loaded.started, prompt_text=" word" * num_tokens, prompt_tokens=prompt, **changes)  # type: ignore[arg-type]
    return Explanation(started, tokens, rows, None)


def steps_of(call: Callable[[], object]) -> int:
    """Lines and calls of Python that something takes: time, without a clock."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += 1
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "ask",
    [
        lambda loaded: loaded.top_sources(),
        lambda loaded: loaded.parts("source"),
        lambda loaded: loaded.parts("segment"),
        lambda loaded: loaded.led_to("d1"),
        lambda loaded: loaded.retention(0.3),
        lambda loaded: loaded.to_html(),
        lambda loaded: loaded.to_ansi(),
        lambda loaded: [loaded.scores[i] for i in range(len(loaded.tokens))],
    ],
    ids=["top_sources", "parts by source", "parts", "led_to", "retention", "to_html", "to_ansi", "scores"],
)
def test_twice_the_prompt_takes_twice_the_steps(ask: Callable[[Explanation], object]) -> None:
    ask(long(100))  # what is made once
    small, large = long(150), long(300)
    assert steps_of(lambda: ask(large)) <= 2.3 * steps_of(lambda: ask(small))


@pytest.mark.parametrize(
    "ask",
    [
        lambda loaded: [loaded.top_sources(word) for word in loaded.words],
        lambda loaded: loaded.led_to(0),
        lambda loaded: [*loaded.events()],
        lambda loaded: [loaded.scores[i] for i in range(len(loaded.tokens))],
        lambda loaded: loaded.to_html(),
        lambda loaded: loaded.to_ansi(),
    ],
    ids=["top_sources", "led_to", "events", "scores", "to_html", "to_ansi"],
)
def test_twice_the_answer_takes_twice_the_steps(ask: Callable[[Explanation], object]) -> None:
    ask(long(10, 10))
    small, large = long(10, 100), long(10, 200)
    assert steps_of(lambda: ask(large)) <= 2.3 * steps_of(lambda: ask(small))
