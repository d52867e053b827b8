"""Queries on an explanation that is small enough to compute by hand."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm import Attribution, Explanation, InvalidExplanationError, PromptToken, Started, Token
from gradellm.explanation.html import page_data
from gradellm.explanation.retention import retention_probs
from gradellm.models import Source
from gradellm_engine.faithfulness.metrics.keep_probabilities import retentions

# <s> | The cat sat | on a mat: a message each; the second is a segment's.
PROMPT = "The cat sat on a mat"
TOKENS = (
    ("", 0, 0, "template", None, "", True),
    ("The", 0, 3, "system", 0, "", False),
    (" cat", 3, 7, "system", 0, "", False),
    (" s", 7, 9, "user", 1, "doc", False),
    ("at", 9, 11, "user", 1, "doc", False),
    (" on a mat", 11, 20, "user", 1, "", False),
)
ROWS = {
    0: (0.0, 1.0, 0.0, 2.0, 1.0, 0.0),
    1: (4.0, 0.0, -1.0, 0.0, 1.0, 0.0),
    3: (0.0, 0.0, 0.0, 0.0, 0.0, 5.0),
}  # token 2 was not explained
WORDS = (" It", " pur", "rs", " loud")


def explanation(**changes: object) -> Explanation:
    from client.conftest import started as proto
    from gradellm.v1 import explainer_pb2 as pb
    from gradellm.wire import responses

    event = responses.event(pb.GenerateResponse(started=proto()))
    assert event is not None
    assert event.started is not None
    prompt = tuple(PromptToken(i, *token) for i, token in enumerate(TOKENS))  # type: ignore[arg-type]
    fields = {"prompt_text": PROMPT, "prompt_tokens": prompt, "sources": (), "provenance": event.started.provenance}
    position, tokens = 0, []
    for index, text in enumerate(WORDS):
        tokens.append(Token(index, 50 + index, text, position, position + len(text), -1.0, (), False, None))
        position += len(text)
    rows = tuple(Attribution(index, scores, (), 50 + index, None) for index, scores in ROWS.items())
    return Explanation(Started(**{**fields, **changes}), tuple(tokens), rows, None)  # type: ignore[arg-type]


def test_words_are_tokens_between_white_space() -> None:
    words = explanation().words
    assert [(word.text, word.token_indexes) for word in words] == [("It", (0,)), ("purrs", (1, 2)), ("loud", (3,))]
    assert [explanation().text[word.start : word.end] for word in words] == ["It", "purrs", "loud"]


def test_a_selection_is_the_sum_of_its_rows() -> None:
    loaded = explanation()
    everything = tuple(map(sum, zip(*ROWS.values(), strict=True)))
    assert loaded.attribution_of() == everything
    assert loaded.attribution_of(0) == ROWS[0]
    assert loaded.attribution_of(loaded.words[1]) == ROWS[1]
    assert loaded.attribution_of(range(3)) == loaded.attribution_of("It purrs") == loaded.attribution_of("It p")
    assert loaded.attribution_of("loud") == ROWS[3]


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


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_retention_is_the_servers(scores: list[float], pi: float) -> None:
    (expected,) = retentions(np.array(scores), [pi])
    assert retention_probs(scores, pi) == pytest.approx(expected.probs.tolist(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("scores", "pi"), [([], 0.5), ([math.nan], 0.5), ([1.0], 0.0), ([1.0], 1.0)])
def test_retention_of_nothing_is_refused(scores: list[float], pi: float) -> None:
    with pytest.raises(InvalidExplanationError):
        retention_probs(scores, pi)


# --- characters of several tokens -------------------------------------------------------------------------------------


def shared(*, of_ids: bool = False) -> Explanation:
    """ "日本 x": two tokens are one character, of a text or of ids; the answer's second character has two, too."""
    loaded = explanation()
    spans = [("日", 0, 1, 0), ("日", 0, 1, 0), ("本", 1, 2, 1), (" x", 2, 4, 2)]
    if of_ids:  # offsets as the server has them then: the last token of a character has it
        spans[0] = ("", 0, 0, 0)
    prompt = tuple(
        PromptToken(i, text, a, b, "user", None, "", False, word) for i, (text, a, b, word) in enumerate(spans)
    )
    answer = [("好", 0, 1, 0), ("", 1, 1, None), ("的", 1, 2, 1), (" ok", 2, 5, 2)]
    tokens = tuple(Token(i, i, text, a, b, -1.0, (), False, None, word) for i, (text, a, b, word) in enumerate(answer))
    rows = tuple(Attribution(i, (1.0, 2.0, 1.0, -1.0), (), i, None) for i in range(4))
    return Explanation(replace(loaded.started, prompt_text="日本 x", prompt_tokens=prompt), tokens, rows, None)


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
    assert "  日本 x\n  ██▃▃ ▒\n" in loaded.to_ansi(color="never")
    data = page_data(loaded)
    assert [piece["text"] for piece in data["prompt"]] == ["日", "本", " x"]
    assert [column["label"] for column in data["columns"]] == ["日", "本", " x"]


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


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (("On", "ce", " up", "on", "."), "Once|upon."),
        (("a ", "b", "\n"), "a|b"),
        (("你", "好", "吗"), "你|好|吗"),
        (("caf", "é"), "café"),
    ],
)
def test_words_of_older_files_are_parted_at_white_space(pieces: tuple[str, ...], expected: str) -> None:
    """What an older server sent has no word indexes."""
    loaded, start = explanation(), 0
    tokens, prompt = [], []
    for index, text in enumerate(pieces):
        end = start + len(text)
        tokens.append(Token(index, index, text, start, end, -1.0, (), False, None))
        prompt.append(PromptToken(index, text, start, end, "user", None, "", False))
        start = end
    started = replace(loaded.started, prompt_text="".join(pieces), prompt_tokens=tuple(prompt))
    full = Explanation(started, tuple(tokens), (), None)
    plain = json.loads(full.to_json())
    for token in (*plain["tokens"], *plain["started"]["prompt_tokens"]):
        del token["word"]
    old = Explanation.from_json(json.dumps(plain))
    assert old == full
    assert "|".join(word.text for word in old.words) == expected
    assert [*dict.fromkeys(word for word, _ in old.prompt_words if word.strip())] == expected.split("|")


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
