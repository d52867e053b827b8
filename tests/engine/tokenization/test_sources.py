"""Columns of scores: words and segments hold each token once, and sums are preserved."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gradellm_engine import (
    AttributionSettings,
    Message,
    Prompt,
    PromptInput,
    PromptToken,
    Resolution,
    Role,
    Segment,
    Sources,
)
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.prompt_reader import read_prompt
from gradellm_engine.tokenization.sources import GENERATED, SourceMap, word_groups
from gradellm_engine.tokenization.words import WordCounter

Normal = Callable[..., Tensor]
Tokenizers = Callable[[str], PreTrainedTokenizerBase]


def prompt_of(*pieces: str | tuple[str, Role] | tuple[str, Role, str]) -> Prompt:
    """A prompt of these tokens; `<...>` is special, `|` before a token's text is text between tokens."""
    text, tokens = "", []
    for piece in pieces:
        content, role, segment = (*(piece if isinstance(piece, tuple) else (piece, Role.USER)), None)[:3]
        gap, _, content = content.rpartition("|")
        text += gap
        special = content.startswith("<")
        role = Role.TEMPLATE if special else role
        tokens.append(PromptToken(0, content, len(text), len(text) + len(content), role, None, segment, special))
        text += content
    return Prompt(text, tuple(tokens), ())


def words(prompt: Prompt) -> list[str]:
    """The words, by the labels of the columns."""
    return [source.label for source in SourceMap(prompt, AttributionSettings(resolution=Resolution.WORD)).sources]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["<s>", "On", "ce", " up", "on"], ["<s>", "Once", "upon"]),
        (["a", " ", " b"], ["a", "b"]),
        (["a", " ", "b"], ["a", "b"]),
        (["a ", "b"], ["a", "b"]),
        (["a", "\n", "\n", "b"], ["a", "b"]),
        (["  ", "a"], ["a"]),
        (["a", " "], ["a"]),
        (["a", " ", "\n"], ["a"]),
        ([" ", "<s>", " ", "a"], ["", "<s>", "a"]),
        (["a", " ", "<s>", " "], ["a", "<s>", ""]),  # white space at the end of a message
        (["a", "<s>", "b"], ["a", "<s>", "b"]),
        (["<s>", "</s>"], ["<s>", "</s>"]),
        (["a", " |b", "c"], ["a", "bc"]),
        (["a b", "c", " d"], ["a bc", "d"]),  # a token with white space inside
        (["a", ("b", Role.SYSTEM)], ["a", "b"]),
        (["a", (" ", Role.SYSTEM)], ["a", ""]),
        (["\u3000日", "本", "語。"], ["日", "本", "語。"]),
        (["(", "日本", "語", ")"], ["(日本", "語)"]),
        (["", "é", "", "x"], ["éx"]),
        (["a", " ", "", "é"], ["a", "é"]),
    ],
)
def test_words_of_known_tokens(pieces: list[str], expected: list[str]) -> None:
    assert words(prompt_of(*pieces)) == expected


token_lists = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from(["<s>", "</s>", " ", "\n", "", "  "]), st.from_regex(r"\s?[ab]{1,2}\s?", fullmatch=True)
        ),
        st.sampled_from([Role.USER, Role.SYSTEM]),
    ),
    min_size=1,
    max_size=12,
)


@given(token_lists)
def test_words_of_any_tokens(pieces: list[tuple[str, Role]]) -> None:
    prompt = prompt_of(*pieces)
    groups = word_groups(prompt)
    assert [index for group in groups for index in group] == list(range(len(pieces)))
    for group in groups:
        tokens = [prompt.tokens[index] for index in group]
        assert len({token.role for token in tokens}) == 1
        assert len(tokens) == 1 or not any(token.special for token in tokens)


@given(text=st.text(st.sampled_from("ab \n😀é."), min_size=1, max_size=20))
@pytest.mark.parametrize("model", ["llama", "demo", "stories260K"])
def test_words_of_a_prompt_begin_at_white_space(tokenizers: Tokenizers, model: str, text: str) -> None:
    tokenizer = tokenizers(model)
    prompt = read_prompt(PromptInput(prompt=text), TextEncoder(tokenizer), len(tokenizer))
    found = [word for word in words(prompt) if word and not word.startswith("<")]
    assert "".join(found) == "".join(text.split())
    assert {*accumulate(map(len, text.split()))} <= {*accumulate(map(len, found))}


def test_segments_and_roles_are_columns(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers("llama")
    turns = (Message("system", "Be nice."), Message("user", "fox eats hen, fox sleeps"))
    named = (Segment("who", 0, 3, 1), Segment("user", 9, 12, 1))
    prompt = read_prompt(PromptInput(messages=turns, segments=named), TextEncoder(tokenizer), len(tokenizer))
    sources = SourceMap(prompt, AttributionSettings(resolution=Resolution.SEGMENT)).sources
    text = {s.label + str(i): "".join(prompt.tokens[j].text for j in s.token_indexes) for i, s in enumerate(sources)}
    assert text == {
        "template0": "<s><|system|></s><|user|></s><|assistant|>",
        "system1": "Be nice.",
        "who2": "fox",
        "user3": " eats , fox sleeps",
        "user4": "hen",  # a segment named like a role
    }


@pytest.mark.parametrize("sources", Sources)
@pytest.mark.parametrize("resolution", Resolution)
@given(
    pieces=token_lists,
    generated=st.lists(st.sampled_from(["a", " b", " ", "", "\n", "<s>"]), max_size=8),
    seed=st.integers(0, 999),
)
def test_sums_are_preserved_while_columns_grow(
    normal: Normal,
    resolution: Resolution,
    sources: Sources,
    pieces: list[tuple[str, Role]],
    generated: list[str],
    seed: int,
) -> None:
    prompt = prompt_of(*pieces)
    mapped = SourceMap(prompt, AttributionSettings(resolution=resolution, sources=sources))
    assert sorted(i for source in mapped.sources for i in source.token_indexes) == list(range(len(pieces)))
    columns = [next(c for c, s in enumerate(mapped.sources) if i in s.token_indexes) for i in range(len(pieces))]
    counter = WordCounter()
    for piece in [*generated, None]:
        scores = normal(seed, len(columns) if sources is Sources.PREFIX else len(columns) + len(generated))
        row = mapped.aggregate(scores)
        expected = torch.zeros(max(columns) + 1, dtype=torch.float64)
        for column, score in zip(columns, scores.tolist(), strict=False):
            expected[column] += score
        assert torch.allclose(row, expected, atol=1e-12)
        if piece is None:
            break
        counter.push(piece, special=piece.startswith("<"))
        counter.finish()
        column_of_new = mapped.add_generated(counter.words[-1])
        if sources is Sources.PROMPT:
            assert column_of_new is None
            continue
        assert column_of_new is not None
        assert column_of_new in (max(columns), max(columns) + 1)
        assert column_of_new >= len(mapped.sources)  # not a column of the prompt
        columns.append(column_of_new)
    if sources is Sources.PREFIX and resolution is Resolution.SEGMENT:
        assert set(columns[len(pieces) :]) <= {len(mapped.sources)}
    assert GENERATED == "generated"
