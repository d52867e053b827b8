"""Presets equal the paper's table 3; invalid custom prompts are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradellm import InvalidRequestError
from gradellm.evaluation.presets import PRESETS, Preset, custom_preset, first_sentences

SHARED = Path(__file__).parents[4] / "shared"


def user_text(preset: Preset, values: Mapping[str, str]) -> str:
    messages = preset.render(values).messages
    assert messages is not None
    return messages[-1][1]


# --- the paper's prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sst2", "imdb"])
def test_the_sentiment_prompt_is_that_of_the_paper(name: str) -> None:
    rendered = PRESETS[name].render({"text": "it 's a charming journey ."})
    assert rendered.messages == (
        (
            "system",
            "You are a helpful sentiment classifier. Please help to do the sentiment classification of the given text "
            "and respond ONLY with the single word Positive or Negative.",
        ),
        ("user", "Text: it 's a charming journey ."),
    )
    assert rendered.prompt is None
    assert PRESETS[name].label_words == ("Positive", "Negative")


def test_the_boolq_prompt_is_that_of_the_paper() -> None:
    assert PRESETS["boolq"].render({"passage": "Water is wet.", "question": "is water wet"}).messages == (
        (
            "system",
            "You are a factual question answering system. Determine if the given passage supports the question being "
            "true. Respond ONLY with the single word 'true' or 'false' in lowercase, without any punctuation or "
            "additional text.",
        ),
        ("user", "Passage: Water is wet.\n\nQuestion: is water wet"),
    )
    assert PRESETS["boolq"].label_words == ("true", "false")


@pytest.mark.parametrize("name", ["tellmewhy", "wikibio"])
def test_the_open_generation_prompt_is_the_text(name: str) -> None:
    assert PRESETS[name].render({"text": "Why so?"}).messages == (("user", "Why so?"),)
    assert PRESETS[name].label_words == ()


def test_the_prompts_are_those_that_the_paper_prints() -> None:
    paper = SHARED / "paper" / "grad_ellm.txt"
    if not paper.exists():
        pytest.skip("the paper is missing")
    printed = paper.read_text().replace('" "', "")  # adjacent Python literals
    for preset in PRESETS.values():
        assert (preset.system or "") in printed
    assert '{"role": "user", "content": f"Text: {text}"}' in printed
    assert '"Passage: {passage}\\n\\nQuestion: {question}".format(' in printed


def test_the_table_of_presets_is_consistent() -> None:
    assert list(PRESETS) == ["sst2", "imdb", "boolq", "tellmewhy", "wikibio"]
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert {field for _, field, _, _ in Formatter().parse(preset.user) if field} == set(preset.columns)
        assert set(preset.labels.values()) == set(preset.label_words)
        assert all(value == value.lower() for value in preset.labels)
        assert (preset.level == "token") == bool(preset.label_words) == bool(preset.label_columns)
        assert preset.rationale is None or preset.rationale.field in preset.columns
        assert preset.hub is not None
        assert str(preset.hub) == f"hub:{preset.hub.name}:{preset.hub.split}"


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("sst2", 1, "Positive"),
        ("sst2", 0, "Negative"),
        ("sst2", 0.0, "Negative"),
        ("sst2", "1", "Positive"),
        ("sst2", " POSITIVE ", "Positive"),
        ("imdb", "neg", "Negative"),
        ("imdb", True, "Positive"),
        ("boolq", True, "true"),
        ("boolq", "False", "false"),
        ("boolq", "yes", "true"),
        ("sst2", -1, None),  # the unlabelled test split
        ("sst2", 0.5, None),
        ("sst2", "neutral", None),
        ("boolq", [True], None),
        ("tellmewhy", "anything", None),
    ],
)
def test_label_values_map_to_label_words(name: str, value: object, word: str | None) -> None:
    assert PRESETS[name].label(value) == word


# --- rendering --------------------------------------------------------------------------------------------------------


def test_models_without_a_chat_template_get_one_text() -> None:
    rendered = PRESETS["sst2"].render({"text": "fine"}, chat=False)
    assert rendered.messages is None
    assert rendered.prompt == f"{PRESETS['sst2'].system}\n\nText: fine"
    assert PRESETS["wikibio"].render({"text": "Ada."}, chat=False).prompt == "Ada."


@given(text=st.text(), chat=st.booleans())
def test_field_offsets_point_at_their_text(text: str, chat: bool) -> None:
    preset = custom_preset("{{a}} {text} – {other}, again: {text}.", system="🙂 system")
    values = {"text": text, "other": "{text}"}
    rendered = preset.render(values, chat=chat)
    rendered_text = rendered.prompt if rendered.messages is None else rendered.messages[-1][1]
    assert rendered_text is not None
    assert rendered_text.endswith(f"{{a}} {text} – {{text}}, again: {text}.")
    assert {name: len(starts) for name, starts in rendered.starts.items()} == {"text": 2, "other": 1}
    for name, starts in rendered.starts.items():
        assert all(rendered_text[start : start + len(values[name])] == values[name] for start in starts)


# --- a prompt of one's own --------------------------------------------------------------------------------------------


def test_a_custom_prompt_template() -> None:
    preset = custom_preset(
        "Is this {thing} kind?\n{text}",
        columns={"text": "body", "label": "verdict", "rationale": "why"},
        label_words={"kind": ["1", "Yes"], "unkind": ["0"]},
        rationale_field="text",
        rationale_unit="characters",
    )
    assert user_text(preset, {"thing": "letter", "text": "Dear"}) == "Is this letter kind?\nDear"
    assert preset.columns == {"thing": ("thing",), "text": ("body",)}
    assert preset.label_columns == ("verdict",)
    assert preset.label_required
    assert [preset.label(value) for value in ("KIND", 1, "yes", 0, "Unkind", 2)] == [
        *("kind", "kind", "kind", "unkind", "unkind", None)
    ]
    assert preset.level == "token"
    assert preset.rationale is not None
    assert (preset.rationale.field, preset.rationale.columns, preset.rationale.unit) == ("text", ("why",), "characters")


def test_a_custom_template_without_labels_is_open_generation() -> None:
    preset = custom_preset("{text}")
    assert (preset.label_words, preset.level, preset.rationale, preset.label_columns) == ((), "sequence", None, ())


@pytest.mark.parametrize(
    ("make", "field", "says"),
    [
        (lambda: custom_preset("no field"), "prompt_template", "no field"),
        (lambda: custom_preset("{text"), "prompt_template", "brace"),
        (lambda: custom_preset("text}"), "prompt_template", "brace"),
        (lambda: custom_preset("{}"), "prompt_template", "{}"),
        (lambda: custom_preset("{0}"), "prompt_template", "{0}"),
        (lambda: custom_preset("{text.__class__}"), "prompt_template", "{text.__class__}"),
        (lambda: custom_preset("{text[0]}"), "prompt_template", "{text[0]}"),
        (lambda: custom_preset("{text!r}"), "prompt_template", "{text!r}"),
        (lambda: custom_preset("{text:>9}"), "prompt_template", "{text:>9}"),
        (lambda: custom_preset("{text} {label}"), "prompt_template", "the expected answer"),
        (lambda: custom_preset("{text}", columns={"txt": "body"}), "columns", "'txt'"),
        (lambda: custom_preset("{text}", columns={"label": "y"}), "label_words", "y"),
        (lambda: custom_preset("{text}", label_words=["good"]), "label_words", "has only"),
        (lambda: custom_preset("{text}", label_words="good bad"), "label_words", "list"),
        (lambda: custom_preset("{text}", label_words=["good", "good"]), "label_words", "duplicates"),
        (lambda: custom_preset("{text}", label_words=["Good", "good"]), "label_words", "both"),
        (lambda: custom_preset("{text}", label_words=["good", " "]), "label_words", "empty"),
        (lambda: custom_preset("{text}", label_words={"good": ["1"], "bad": ["1"]}), "label_words", "'1'"),
        (lambda: custom_preset("{text}", rationale_field="body"), "rationale_field", "'body'"),
    ],
)
def test_invalid_prompt_templates_name_their_keyword(make: Callable[[], Preset], field: str, says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make()
    assert [violation.field for violation in caught.value.violations] == [field]
    assert says in str(caught.value)


# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("One. Two. Three.", "One. Two."),
        ("Really?! Yes. No.", "Really?! Yes."),
        ("One only", "One only"),
        ("One. Two", "One. Two"),
        ("", ""),
        ('He played "Ann." She left. Then.', 'He played "Ann." She left.'),
        ("Ann (b. 1900. In Rome) sang. She left. Gone.", "Ann (b. 1900. In Rome) sang. She left."),
        ("An open (bracket. Second. Third.", "An open (bracket. Second."),
        ("William J. Flanagan, Jr. Was here. He left. Gone.", "William J. Flanagan, Jr. Was here. He left."),
        ("A U.S. Admiral came. He left. Gone.", "A U.S. Admiral came. He left."),
        ("Born ca. 1900 in St. John. He left. Gone.", "Born ca. 1900 in St. John. He left."),
        ("It cost 3.50 euros. Cheap. Gone.", "It cost 3.50 euros. Cheap."),
        ("Er kam. Élan vital. Weg.", "Er kam. Élan vital."),
    ],
)
def test_the_first_two_sentences(text: str, beginning: str) -> None:
    assert first_sentences(text, 2) == beginning


@given(st.text(alphabet="Ab .!?()\"'\n", max_size=60), st.integers(1, 4))
def test_first_sentences_are_a_beginning_that_grows_with_their_number(text: str, count: int) -> None:
    some, more = first_sentences(text, count), first_sentences(text, count + 1)
    assert text.startswith(more)
    assert more.startswith(some)


def test_sentences_of_biographies_are_found() -> None:
    path = SHARED / "data" / "wikibio.jsonl"
    if not path.exists():
        pytest.skip("the data folder is missing")
    texts: list[Any] = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    right = [first_sentences(f"{text} Another sentence. And one more.", 2) == text for text in texts]
    assert sum(right) >= len(texts) - 1  # one of them has four, by a splitter that trips over `Son." She`
