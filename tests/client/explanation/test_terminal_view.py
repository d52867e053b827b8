"""Drawing a stream: tokens are grouped into words, drawn as early as possible, without the template."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradellm import Attribution, Event, Explanation, PromptToken, Source, Started, Token
from gradellm.explanation.terminal_view import draw
from gradellm.rendering.terminal import Style, display_width
from gradellm.v1 import explainer_pb2 as pb
from gradellm.wire import responses

PLAIN = Style(width=60, color=False, theme="dark")


def started(**changes: Any) -> Started:
    pieces = [
        ("<s>", "template"),
        ("be", "system"),
        ("<u>", "template"),
        ("red", "user"),
        (" ball", "user"),
        ("</s>", "template"),
    ]
    tokens, position = [], 0
    for text, role in pieces:
        message = {"system": 0, "user": 1}.get(role)
        tokens.append(PromptToken(1, text, position, position + len(text), role, message, "", False))  # type: ignore[arg-type]
        position += len(text)
    event = responses.event(pb.GenerateResponse(started={"provenance": {"attribution": {}}}))
    assert event is not None
    assert event.started is not None
    started = replace(event.started, prompt_text="<s>be<u>red ball</s>", prompt_tokens=tuple(tokens))
    return replace(started, **changes)


def token(index: int, text: str, **changes: Any) -> Event:
    return Event(token=replace(Token(index, 5, text, index, index + 1, -1.0, (), False, None), **changes))


def row(index: int, *scores: float, columns: tuple[int, ...] = ()) -> Event:
    return Event(attribution=Attribution(index, scores, columns, 5, None))


def finished() -> Event:
    event = responses.event(pb.GenerateResponse(finished={"reason": 1, "usage": {"completion_tokens": 3}}))
    assert event is not None
    return event


def test_a_word_is_the_sum_of_its_tokens() -> None:
    events = [
        Event(started=started()),
        token(0, " wo"), row(0, 0, 0, 0, 1.0, 0, 1.0),
        token(1, "rd"), row(1, 0, 0, 0, 1.0, 1.0, 0),
        token(2, " next"), row(2, 0, 4.0, 0, 0, 0, 0),
        finished(),
    ]  # fmt: skip
    assert "".join(draw(events, PLAIN)) == (
        "word  drawn from “red” 100% · template 25%\n"
        "  system  be\n"
        "  user    red ball\n"
        "          ███\n"
        "\n"
        "next  drawn from “be” 100%\n"
        "  system  be\n"
        "          ██\n"
        "  user    red ball\n"
        "\n"
        "in full: word next\n"
        "\n"
        "▁▂▃▄▅▆▇█ excess over the median, of each word’s strongest\n"
        "3 tokens, the model ended its turn, 0.00 s\n"
    )


def test_words_that_are_not_selected_share_a_line_and_delay_no_other() -> None:
    """Token 1 alone is selected: its word has its scores."""
    beginning = started()
    settings = beginning.provenance.attribution
    assert settings is not None
    provenance = replace(beginning.provenance, attribution=replace(settings, tokens=(2,)))
    events = [
        Event(started=replace(beginning, provenance=provenance)),
        token(0, " not"), token(1, " these"),
        token(2, " wo"), row(2, 0, 0, 0, 1.0, 0, 0), token(3, "rd"),
        token(4, " and"), token(5, " so"),
    ]  # fmt: skip
    explained = "word  drawn from “red” 100%\n  system  be\n  user    red ball\n          ███\n\n"
    drawn = list(draw([*events, token(6, " on"), finished()], PLAIN))
    text = "".join(drawn)
    assert text.startswith(f"not these  not selected\n\n{explained}and so on  not selected\n\nin full: ")
    assert f"not these  not selected\n\n{explained}" in drawn  # before the end


def test_a_word_is_drawn_when_the_next_begins() -> None:
    drawn: list[str] = []

    def stream() -> Any:
        yield Event(started=started())
        yield token(0, "one")
        yield row(0, *[1.0] * 6)
        assert drawn == []  # the word may continue
        yield token(1, " two")
        assert "".join(drawn).startswith("one  ")
        yield token(2, " three")
        assert "two" not in "".join(drawn)  # its row has not arrived
        yield row(1, *[1.0] * 6)
        assert "two" in "".join(drawn)

    for text in draw(stream(), PLAIN):
        drawn.append(text)  # noqa: PERF402  (the stream looks at it meanwhile)
    assert "three  not explained" in "".join(drawn)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ((" a", " b"), ["a", "b"]),
        (("a", "b", ","), ["ab,"]),
        (("\n", "The", " end"), ["The", "end"]),
        (("a", "\n", " b"), ["a", "b"]),
        (("a ", "b", "\n"), ["a", "b", "↵"]),
        (("猫", "が", "好"), ["猫", "が", "好"]),
        (("猫", "", "が"), ["猫", "が"]),
        (("é", "", ""), ["é"]),
        (("\x1b[0m",), ["^[[0m"]),
        (("",), ["(a token without text)"]),
    ],
)
def test_grouping(texts: tuple[str, ...], words: list[str]) -> None:
    events = [Event(started=started(prompt_tokens=())), *(token(i, text) for i, text in enumerate(texts))]
    drawn = "".join(draw([*events, finished()], PLAIN))
    assert [line.removesuffix("  not explained") for line in drawn.split("\n") if "not explained" in line] == words


def test_without_attribution_the_text_streams() -> None:
    begin = started()
    begin = replace(begin, provenance=replace(begin.provenance, attribution=None))
    texts = list(draw([Event(started=begin), token(0, "a\x1b"), token(1, " b\n"), finished()], PLAIN))
    assert texts[:2] == ["a^[", " b\n"]
    assert "attribution" not in "".join(texts)


def test_special_tokens_have_no_line() -> None:
    events = [
        Event(started=started()),
        token(0, "x"),
        row(0, *[1.0] * 6),
        token(1, "", special=True),
        row(1, *[1.0] * 6),
    ]
    drawn = "".join(draw([*events, finished()], PLAIN))
    assert drawn.count("nothing stands out") == 1
    assert "without text" not in drawn


def test_words_as_columns_and_top_k() -> None:
    begin = started(sources=(Source("red ball", (3, 4)), Source("system", (1,))))
    drawn = "".join(draw([Event(started=begin), token(0, "x"), row(0, 3.0, columns=(0,)), finished()], PLAIN))
    assert "          ████████\n" in drawn


def test_the_completion_so_far() -> None:
    events = [
        Event(started=started()),
        token(0, "one", source_index=6, start=0, end=3),
        row(0, *[1.0] * 6),
        token(1, " two", source_index=7, start=3, end=7),
        row(1, *[0.0] * 6, 5.0),
    ]
    drawn = "".join(draw([*events, finished()], PLAIN))
    assert drawn.count("so far") == 1
    assert "  so far  one\n          ███\n" in drawn


def test_signed_scores_have_a_signed_legend() -> None:
    drawn = "".join(draw([Event(started=started()), token(0, "x"), row(0, 0, 0, 0, 1.0, -1.0, 0), finished()], PLAIN))
    assert "          ███ ▓▓▓▓\n" in drawn
    assert "below 0" in drawn


def test_to_ansi() -> None:
    events = [Event(started=started()), token(0, "x"), row(0, 0, 0, 0, 1.0, 0, 0), finished()]
    explanation = Explanation.from_events(events)
    assert "\x1b[38;2;" in explanation.to_ansi()
    assert explanation.to_ansi(width=60, color="never") == "".join(draw(events, PLAIN))


def test_retention_draws_the_prompt_once() -> None:
    events = [Event(started=started()), token(0, "x"), row(0, 0, 0, 2.0, 1.0, 0, 0), finished()]
    explanation = Explanation.from_events(events)
    kept = explanation.retention(0.4)
    drawn = explanation.to_ansi(retention=0.4, color="never")
    assert drawn.startswith("π = 0.4  ")
    assert f"{sum(prob for _, prob in kept):.1f} of {len(kept)} tokens expected" in drawn
    assert drawn.count("▇") > 0


def test_words_are_the_engines() -> None:
    """Parts of a character go with it, and wait for it."""
    drawn: list[str] = []

    def stream() -> Any:
        yield Event(started=started())
        for index, (text, word) in enumerate([("你", 0), ("", None), ("好", 1), ("。", 1), ("", None)]):
            yield token(index, text, word=word)
            yield row(index, *[1.0] * 6)
            assert len(drawn) == (index >= 2)  # a part may belong to the word or to the next one
        yield token(5, "", word=2, special=True)
        yield finished()

    for chunk in draw(stream(), PLAIN):
        drawn.append(chunk)  # noqa: PERF402  (the stream looks at it meanwhile)
    assert "".join(drawn).count("  nothing stands out") == 2
    assert "好。  nothing stands out" in "".join(drawn)


def test_text_that_runs_right_to_left_is_kept_apart() -> None:
    text = "عمر (1)."
    tokens = (PromptToken(1, text, 0, len(text), "user", 0, "", False, 0),)
    events = [Event(started=started(prompt_text=text, prompt_tokens=tokens)), token(0, "سنة.", word=0), row(0, 1.0)]
    drawn = "".join(draw([*events, finished()], PLAIN))
    assert drawn.startswith(f"\u2068سنة.\u2069  drawn from “\u2068{text}\u2069” 100%\n  user  \u2068{text}\u2069\n")
    assert display_width("\u2068سنة.\u2069") == 4
