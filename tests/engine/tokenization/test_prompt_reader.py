"""From input to tokens: their positions, roles, messages and segments, for any text and template."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from gradellm_engine import (
    Engine,
    InvalidRequestError,
    Message,
    MessageSpan,
    Prompt,
    PromptInput,
    PromptToken,
    Role,
    Segment,
    interruption_point,
)
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.prompt_reader import check_token_ids, read_prompt
from support.tiny_models import CHAT_TEMPLATE, VOCAB_SIZE, save_random_model

Tokenizers = Callable[[str], PreTrainedTokenizerBase]


ReadPrompt = Callable[..., Prompt]
texts = st.text(st.characters(codec="utf-8"), max_size=12)
HARD = [
    "Grüße",
    "日本語です",
    "e\u0301 a\u0308\u0323",
    "שלום עולם",
    "👩‍👩‍👧‍👦 🇨🇭",
    "\u200b\ufeffx",
    "a\r\n\tb",
    "\x00\x1b",
    "  ",
]


@pytest.fixture(scope="module")
def read_of(tokenizers: Tokenizers) -> ReadPrompt:
    """Reads a prompt, with the model's template or another one."""

    def reading(prompt_input: PromptInput, template: str | None = CHAT_TEMPLATE, model: str = "llama") -> Prompt:
        tokenizer = tokenizers(model)
        if template != tokenizer.chat_template and model == "llama":
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.chat_template = template
        return read_prompt(prompt_input, TextEncoder(tokenizer), len(tokenizer))

    return reading


def messages(*turns: tuple[str, str], segments: tuple[Segment, ...] = ()) -> PromptInput:
    return PromptInput(messages=tuple(Message(*turn) for turn in turns), segments=segments)


def words_of(prompt: Prompt, **wanted: Any) -> str:
    """The text that tokens with these attributes cover, each code point once."""
    covered = {
        i
        for token in prompt.tokens
        for i in range(token.start, token.end)
        if all(getattr(token, name) == value for name, value in wanted.items())
    }
    return "".join(prompt.text[i] for i in sorted(covered))


def check_places(prompt: Prompt) -> None:
    """Tokens ascend, hold the text of their span, and cover the whole text."""
    covered: set[int] = set()
    before = PromptToken(0, "", 0, 0, Role.TEMPLATE, None, None, False)
    for token in prompt.tokens:
        assert 0 <= token.start <= token.end <= len(prompt.text)
        assert token.start >= before.start
        assert token.start >= before.end or (token.start, token.end) == (before.start, before.end)
        assert token.text == prompt.text[token.start : token.end]
        covered |= set(range(token.start, token.end))
        before = token
    assert covered == set(range(len(prompt.text)))


@pytest.mark.parametrize("model", ["llama", "demo", "stories260K"])
@given(text=st.one_of(texts.filter(bool), st.sampled_from(HARD)))
def test_a_raw_prompt(read_of: ReadPrompt, model: str, text: str) -> None:
    prompt = read_of(PromptInput(prompt=text), model=model)
    assert prompt.text == text
    check_places(prompt)
    bos, *rest = prompt.tokens
    assert (bos.special, bos.start, bos.end, bos.role) == (True, 0, 0, Role.TEMPLATE)
    assert all(token.role is Role.USER for token in rest if not token.special)
    assert all((token.message, token.segment) == (None, None) for token in prompt.tokens)


def test_a_character_of_several_tokens(read_of: ReadPrompt) -> None:
    prompt = read_of(PromptInput(prompt="a😀b"))
    assert [(t.start, t.end, t.text) for t in prompt.tokens[1:]] == [(0, 1, "a"), *[(1, 2, "😀")] * 4, (2, 3, "b")]


def test_special_tokens_in_a_raw_prompt_have_the_template_role(read_of: ReadPrompt) -> None:
    prompt = read_of(PromptInput(prompt="a<|user|>b"))
    assert [(t.text, t.role, t.special) for t in prompt.tokens] == [
        ("", Role.TEMPLATE, True),
        ("a", Role.USER, False),
        ("<|user|>", Role.TEMPLATE, True),
        ("b", Role.USER, False),
    ]


def test_a_raw_prompt_that_begins_with_bos_gets_another(read_of: ReadPrompt) -> None:
    assert read_of(PromptInput(prompt="<s>a")).ids[:2] == [256, 256]


turns = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), st.one_of(texts, st.sampled_from(HARD))),
    min_size=1,
    max_size=4,
)


@given(turns)
def test_messages(read_of: ReadPrompt, given_turns: list[tuple[str, str]]) -> None:
    prompt = read_of(messages(*given_turns))
    check_places(prompt)
    for index, (role, content) in enumerate(given_turns):
        assert words_of(prompt, message=index) == content.strip()
        assert all(token.role == role for token in prompt.tokens if token.message == index)
    assert words_of(prompt, message=None) == "<s>" + "".join(f"<|{r}|></s>" for r, _ in given_turns) + "<|assistant|>"
    assert all(token.role is Role.TEMPLATE for token in prompt.tokens if token.message is None)


@pytest.mark.parametrize(
    "content",
    ["</s><|user|>x", "<|assistant|>", "gradellm0content", "gradellm1content and gradellm0content", "{{ bos_token }}"],
)
def test_contents_that_look_like_the_template(read_of: ReadPrompt, content: str) -> None:
    """Other messages keep their places; special tokens in a content belong to the template."""
    prompt = read_of(messages(("system", "Be nice."), ("user", content), ("user", "Be nice.")))
    assert words_of(prompt, message=0, role=Role.SYSTEM) == "Be nice."
    assert words_of(prompt, message=2, role=Role.USER) == "Be nice."
    expected_text = content
    for special in ("</s>", "<|user|>", "<|assistant|>"):
        expected_text = expected_text.replace(special, "")
    assert words_of(prompt, message=1) == expected_text
    assert prompt.tokens[-1].text == "<|assistant|>"


def test_unusual_roles(read_of: ReadPrompt) -> None:
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    prompt = read_of(messages(("tool", "a"), ("developer", "b"), ("template", "c"), ("other", "d")), template)
    assert [t.role for t in prompt.tokens if t.message is not None] == [Role.TOOL, Role.OTHER, Role.OTHER, Role.OTHER]


def test_only_special_tokens_that_the_template_writes(read_of: ReadPrompt) -> None:
    assert read_of(messages(("user", "a"))).ids == [256, 259, 64, 257, 260]


def test_a_template_that_trims_some_messages(read_of: ReadPrompt) -> None:
    """One content contains the template's text that follows it."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] | trim }}|{% else %}"
        "[{{ m['content'] }}]{% endif %}{% endfor %}"
    )
    prompt = read_of(messages(("system", " Be nice. "), ("user", " a][b "), ("user", "c")), template)
    assert prompt.text == "Be nice.|[ a][b ][c]"
    assert [words_of(prompt, message=i) for i in range(3)] == ["Be nice.", " a][b ", "c"]


def test_a_template_that_rewrites_a_content(read_of: ReadPrompt) -> None:
    template = "{% for m in messages %}[{{ m['content'].split('</think>')[-1] }}]{% endfor %}!"
    prompt = read_of(messages(("assistant", "hm</think>yes"), ("user", "why?")), template)
    assert prompt.text == "[yes][why?]!"
    assert [words_of(prompt, message=i) for i in range(2)] == ["yes", "why?"]


def test_a_template_that_repeats_a_content(read_of: ReadPrompt) -> None:
    template = "{% for m in messages %}<{{ m['content'] }}|{{ m['content'] }}>{% endfor %}"
    prompt = read_of(messages(("user", "ab"), ("user", "c")), template)
    assert prompt.text == "<ab|ab><c|c>"
    assert [t.message for t in prompt.tokens] == [None, 0, 0, None, 0, 0, None, None, 1, None, 1, None]


def test_a_template_that_moves_and_drops_messages(read_of: ReadPrompt) -> None:
    template = "{{ messages[1]['content'] }}+{{ messages[0]['content'] }}"
    prompt = read_of(messages(("user", "first"), ("user", "second"), ("user", "third")), template)
    assert [words_of(prompt, message=i) for i in range(3)] == ["first", "second", ""]


def test_a_template_that_rewrites_beyond_recognition(read_of: ReadPrompt) -> None:
    template = "{% for m in messages %}{{ m['content'] | upper | reverse }}{% endfor %}"
    given_prompt = messages(("user", "abc"))
    assert words_of(read_of(given_prompt, template), role=Role.TEMPLATE) == "CBA"
    with pytest.raises(InvalidRequestError, match="rewrites") as caught:
        read_of(PromptInput(messages=given_prompt.messages, segments=(Segment("s", 0, 1, 0),)), template)
    assert caught.value.field == "input.segments[0].message"


def test_a_template_that_refuses(read_of: ReadPrompt) -> None:
    with pytest.raises(InvalidRequestError, match="unknown role") as caught:
        read_of(messages(("wizard", "a")))
    assert caught.value.field == "input.messages"


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages[7]['content'].x() }}", "{{ 1 // 0 }}"])
def test_a_template_that_breaks(read_of: ReadPrompt, template: str) -> None:
    with pytest.raises(InvalidRequestError, match="template") as caught:
        read_of(messages(("user", "a")), template)
    assert caught.value.field == "input.messages"


def test_a_template_that_renders_nothing(read_of: ReadPrompt) -> None:
    with pytest.raises(InvalidRequestError, match="no tokens"):
        read_of(messages(("user", "a")), "{% if false %}a{% endif %}")


def test_no_template(read_of: ReadPrompt) -> None:
    with pytest.raises(InvalidRequestError, match="raw prompt") as caught:
        read_of(messages(("user", "a")), None)
    assert caught.value.field == "input.messages"


def test_segments_of_a_raw_prompt(read_of: ReadPrompt) -> None:
    segments = (Segment("end", 4, 7), Segment("begin", 0, 2))
    prompt = read_of(PromptInput(prompt="ab😀 xyz", segments=segments))
    assert prompt.segments == ("begin", "end")  # in the order of the text
    assert words_of(prompt, segment="begin") == "ab"
    assert words_of(prompt, segment="end") == "xyz"
    assert words_of(prompt, segment=None) == "😀 "


@given(texts.filter(bool), st.data())
def test_a_segment_holds_its_text(read_of: ReadPrompt, text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    raw = read_of(PromptInput(prompt=text, segments=(Segment("s", start, end),)))
    assert words_of(raw, segment="s") == text[start:end]
    chat = read_of(messages(("system", text), ("user", text), segments=(Segment("s", start, end, 1),)))
    trimmed = range(len(text) - len(text.lstrip()), len(text.rstrip()))
    assert words_of(chat, segment="s") == "".join(text[i] for i in range(start, end) if i in trimmed)
    assert all(token.message == 1 for token in chat.tokens if token.segment)


def test_a_token_is_placed_by_its_first_word_character(read_of: ReadPrompt) -> None:
    """Tokens of the demo model include the space before a word."""
    prompt = read_of(PromptInput(prompt="Once upon a time", segments=(Segment("s", 5, 9),)), model="demo")
    assert [token.text for token in prompt.tokens if token.segment] == [" upon"]


def test_segments_may_touch(read_of: ReadPrompt) -> None:
    segments = (Segment("a", 0, 2, 0), Segment("b", 2, 4, 0), Segment("c", 0, 2, 1))
    prompt = read_of(messages(("user", "abcd"), ("user", "ef"), segments=segments))
    assert [words_of(prompt, segment=name) for name in prompt.segments] == ["ab", "cd", "ef"]


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20))
def test_prompt_ids(read_of: ReadPrompt, tokenizers: Tokenizers, ids: list[int]) -> None:
    prompt = read_of(PromptInput(prompt_ids=tuple(ids)))
    assert prompt.ids == ids
    assert prompt.text == tokenizers("llama").decode(ids, clean_up_tokenization_spaces=False)
    assert "".join(token.text for token in prompt.tokens) == prompt.text
    for token in prompt.tokens:
        assert token.text == prompt.text[token.start : token.end]
        assert token.special == (token.id >= 256)
        assert token.role is (Role.TEMPLATE if token.special else Role.USER)
    assert [t.start for t in prompt.tokens] == [0, *(t.end for t in prompt.tokens[:-1])]


@pytest.mark.parametrize("ids", [(0, VOCAB_SIZE), (0, -1)])
def test_ids_outside_the_vocabulary(read_of: ReadPrompt, ids: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequestError, match=f"0 to {VOCAB_SIZE - 1}") as caught:
        read_of(PromptInput(prompt_ids=ids))
    assert caught.value.field == "input.prompt_ids[1]"
    with pytest.raises(InvalidRequestError) as caught:
        check_token_ids("forced_ids", ids, VOCAB_SIZE)
    assert caught.value.field == "forced_ids[1]"


@pytest.fixture(scope="module")
def long_context(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A model with a context of 131,072 tokens."""
    path = save_random_model(tmp_path_factory.mktemp("long"), "llama", max_position_embeddings=131_072)
    return Engine.load(str(path), threads=1, kv_bytes=131_072 * 1024)


def test_all_of_a_long_context_is_read(long_context: Engine) -> None:
    text = "a b " * 32_767
    prompt = long_context.tokenize(PromptInput(prompt=text))
    assert len(prompt.tokens) == len(text) + 1 == long_context.max_prompt_tokens - 2
    assert "".join(token.text for token in prompt.tokens) == text
    words = tuple(Segment(str(index), 2 * index, 2 * index + 1) for index in range(65_000))
    prompt = long_context.tokenize(PromptInput(messages=(Message("user", text[:-100]),), segments=()))
    assert {token.role for token in prompt.tokens} == {Role.USER, Role.TEMPLATE}
    prompt = long_context.tokenize(PromptInput(prompt=text, segments=words))
    assert [token.segment for token in prompt.tokens[1:6]] == ["0", None, "1", None, "2"]


@pytest.mark.parametrize("unit", ["a b ", "😀", "<|user|>", "\x00"])
def test_four_megabytes_are_refused_before_all_is_encoded(
    long_context: Engine, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    encoder = long_context.model.encoder
    core, num_bytes = encoder.core, 0

    class CountingCore:
        """The tokenizer's core, with a count of the bytes that it encodes."""

        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def encode_batch(self, texts: list[str], **options: Any) -> Any:
            nonlocal num_bytes
            num_bytes += sum(len(text.encode()) for text in texts)
            return core.encode_batch(texts, **options)

    monkeypatch.setattr(encoder, "core", CountingCore())
    text = unit * (4_000_000 // len(unit.encode()))
    with pytest.raises(InvalidRequestError, match="the limit is"):
        long_context.tokenize(PromptInput(prompt=text))
    assert num_bytes <= 1_600_000  # one and a half times the bytes of 131,072 tokens


@pytest.mark.parametrize("checks", range(1, 6))
def test_reading_a_prompt_can_be_interrupted(long_context: Engine, checks: int) -> None:
    num_left = checks

    class GoneError(Exception):
        pass

    def check() -> None:
        nonlocal num_left
        num_left -= 1
        if not num_left:
            raise GoneError

    token = interruption_point.set(check)
    try:
        with pytest.raises(GoneError):
            long_context.tokenize(PromptInput(messages=(Message("user", "a b " * 20_000), Message("user", "c"))))
    finally:
        interruption_point.reset(token)


@given(contents=st.lists(texts, min_size=1, max_size=3), data=st.data())
def test_messages_and_segments_of_token_ids(read_of: ReadPrompt, contents: list[str], data: st.DataObject) -> None:
    """With the places of messages told, token ids are read as the messages that they were made from."""
    messages = tuple(Message(("user", "assistant")[i % 2], f"Zq{i}{content}") for i, content in enumerate(contents))
    read = read_of(PromptInput(messages=messages))
    ids = tuple(token.id for token in read.tokens)
    text = read_of(PromptInput(prompt_ids=ids)).text
    if text != read.text or any(message.content not in text for message in messages):
        return  # such as white space that the template strips
    spans, end = [], 0
    for message in messages:
        start = text.index(message.content, end)
        end = start + len(message.content)
        spans.append(MessageSpan(message.role, start, end))
    start = data.draw(st.integers(spans[0].start, spans[0].end - 1))
    segment_end = data.draw(st.integers(start + 1, spans[0].end))
    placed = read_of(
        PromptInput(prompt_ids=ids, message_spans=tuple(spans), segments=(Segment("part", start, segment_end),))
    )
    offset = spans[0].start
    expected = read_of(
        PromptInput(messages=messages, segments=(Segment("part", start - offset, segment_end - offset, 0),))
    )
    assert placed.segments == ("part",)
    for token, other in zip(placed.tokens, expected.tokens, strict=True):
        if token.text == other.text:  # of a character in several tokens, its parts have the text of none
            assert (token.role, token.message) == (other.role, other.message)
            assert token.segment == other.segment


def test_spans_outside_of_the_text_of_token_ids(read_of: ReadPrompt) -> None:
    ids = tuple(token.id for token in read_of(PromptInput(prompt="abc")).tokens)
    with pytest.raises(
        InvalidRequestError, match=r"input.message_spans\[0\].end: is 100; the text has \d+ code points"
    ):
        read_of(PromptInput(prompt_ids=ids, message_spans=(MessageSpan("user", 0, 100),)))
    with pytest.raises(InvalidRequestError, match=r"input.segments\[0\]: start and end must lie in the text"):
        read_of(PromptInput(prompt_ids=ids, segments=(Segment("a", 0, 100),)))
