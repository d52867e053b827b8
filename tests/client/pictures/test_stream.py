"""Words of a stream with their scores: complete, in order, and none waited for longer than it need be."""

from __future__ import annotations

from client.explanation.conftest import explanation
from gradellm import Event
from gradellm.pictures.stream import WordStream, scored_words


def test_words_have_the_sums_of_their_tokens() -> None:
    words = list(scored_words(explanation().events()))
    assert [word.text.strip() for word in words] == ["It", "purrs", "loud"]
    assert words[1].scores[0] == 4.0  # its second token was not explained
    assert words[0].earlier == words[2].earlier == ()  # the prompt alone is scored


def test_a_word_waits_for_its_rows_and_the_next_word() -> None:
    loaded = explanation()
    stream = WordStream()
    first, second = loaded.tokens[:2]
    assert list(stream.add(Event(token=first))) == []
    assert list(stream.add(Event(token=second))) == []  # the first word is complete, and has no row
    (word,) = stream.add(Event(attribution=loaded.attributions[0]))
    assert word.text == first.text
    assert [word.scores for word in stream.end()] == [{}]
