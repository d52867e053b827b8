"""Pieces of text: their spans in what is rendered, and the division of pairs into training and held-out ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gradellm_engine.demo_model.training.example import Piece, Span, fill, in_split, join, plain, render, sentence


def test_pieces_render_to_spans() -> None:
    pieces = fill("{subject} was [not] {word}", {"subject": "the film", "word": Piece("dull", "polarity", "good")})
    text, spans = render(sentence(pieces), offset=6)
    assert text == "The film was not dull."
    assert spans == (Span(19, 22, "negator"), Span(23, 27, "polarity", "good"))


def test_split_of_a_pair_never_changes() -> None:
    """Another division would let held-out pairs of the shipped checkpoint's training into its evaluation."""
    pairs = [("film", "dull"), ("box", "red"), ("dog", "white"), ("soup", "cold"), ("inn", "loved")]
    assert [in_split("held_out", *pair) for pair in pairs] == [False, False, False, False, True]
    assert all(in_split("held_out", *pair) != in_split("train", *pair) for pair in pairs)


texts = st.text(st.characters(exclude_characters="{}[]"), max_size=6)
pieces_strategy = st.lists(st.builds(Piece, texts, st.sampled_from(("", "a", "b"))), max_size=8)


@given(st.lists(pieces_strategy, max_size=4), st.integers(0, 9))
def test_spans_cut_the_marked_pieces_out_of_the_text(parts: list[list[Piece]], offset: int) -> None:
    pieces = join(parts, separator="; ")
    text, spans = render(pieces, offset)
    assert text == "".join(piece.text for piece in pieces)
    marked = [(piece.text, piece.kind) for piece in pieces if piece.kind]
    assert [(text[span.start - offset : span.end - offset], span.kind) for span in spans] == marked
    assert render(plain(pieces), offset) == (text, ())


def test_parts_are_joined_as_strings_are() -> None:
    parts = [[Piece("a"), Piece("b")], [Piece("c")], [Piece("d")]]
    assert render(join(parts, ", "))[0] == ", ".join(render(part)[0] for part in parts)


def test_a_field_of_several_pieces_keeps_its_marks() -> None:
    clause = [Piece("it", "subject"), Piece(" was "), Piece("", "empty"), Piece("good", "polarity")]
    pieces = fill("{first}: {clause}", {"first": "so", "clause": clause})
    assert render(pieces) == ("so: it was good", (Span(4, 6, "subject"), Span(11, 15, "polarity")))


def test_a_sentence_capitalises_its_replacement_too() -> None:
    """It may take the first word's place in a counterfactual."""
    first, *_ = sentence([Piece("good", "polarity", "bad"), Piece(" it was")], end="!")
    assert first == Piece("Good", "polarity", "Bad")
