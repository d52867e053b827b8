"""What a grammar allows next: exactly the texts that it describes, and an end where it may end."""

from __future__ import annotations

import json

import pytest

from gradellm_engine import InvalidRequestError, StructuredOutput
from gradellm_engine.structured.compiler import GrammarCompiler
from gradellm_engine.structured.state import GrammarState
from gradellm_engine.tokenization.encoder import TextEncoder

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


def takes(state: GrammarState, ids: list[int]) -> bool:
    """Whether a grammar allows the tokens, one after another."""
    for token_id in ids:
        if not state.allowed_tokens().mask[token_id]:
            return False
        state.advance(token_id)
    return True


@pytest.mark.parametrize(
    ("settings", "texts", "others"),
    [
        (StructuredOutput(json_schema=SCHEMA), ['{"name": "é", "age": -3}'], ['{"age": 3}', '{"name": "x"}', "[]"]),
        (StructuredOutput(json_object=True), ['{"a": [1, {"b": null}]}', "{}"], ["[1]", '{"a":1}', '{ "a": 1}']),
        (StructuredOutput(regex="[ab]{2,3}"), ["ab", "aba"], ["a", "abab"]),
        (StructuredOutput(choice=("yes", "no", 'a "b"\n')), ["yes", 'a "b"\n'], ["y", "yesno", ""]),
        (StructuredOutput(grammar='start: "a" /[0-9]+/'), ["a12"], ["a", "12"]),
        (StructuredOutput(grammar='root ::= "a" x\nx ::= [0-9]+'), ["a12"], ["a", "12"]),
    ],
)
def test_a_grammar_allows_its_texts_and_no_others(
    compiler: GrammarCompiler, encoder: TextEncoder, settings: StructuredOutput, texts: list[str], others: list[str]
) -> None:
    end = encoder.tokenizer.eos_token_id
    for text in (*texts, *others):
        ids = encoder.tokenizer.encode(text, add_special_tokens=False)
        assert takes(compiler.start(settings), [*ids, end]) == (text in texts), text


def test_a_token_is_forced_where_no_other_is_allowed(compiler: GrammarCompiler, encoder: TextEncoder) -> None:
    state = compiler.start(StructuredOutput(choice=("abc", "abx")))
    ids = encoder.tokenizer.encode("abc", add_special_tokens=False)
    forced = [state.advance(token_id) for token_id in ids]
    assert not all(forced)  # c or x is the model's choice
    assert state.allowed_tokens().only == encoder.tokenizer.eos_token_id
    assert state.advance(encoder.tokenizer.eos_token_id)
    # What comes after the end is the end again, whatever a request makes of it.
    assert state.allowed_tokens().only == encoder.tokenizer.eos_token_id


def test_a_resumed_completion_goes_on_in_its_grammar(compiler: GrammarCompiler, encoder: TextEncoder) -> None:
    ids = encoder.tokenizer.encode('{"name": "x"', add_special_tokens=False)
    settings = StructuredOutput(json_schema=SCHEMA)
    whole, resumed = compiler.start(settings), compiler.start(settings, ids)
    assert takes(whole, ids)
    assert whole.allowed_tokens().mask.equal(resumed.allowed_tokens().mask)


def test_forced_tokens_that_a_grammar_does_not_allow_are_refused(
    compiler: GrammarCompiler, encoder: TextEncoder
) -> None:
    ids = encoder.tokenizer.encode("ax", add_special_tokens=False)
    with pytest.raises(InvalidRequestError) as caught:
        compiler.start(StructuredOutput(regex="ab*"), ids)
    assert caught.value.field.startswith("forced_ids[")
    assert "structured_output.regex" in caught.value.description


def test_masks_have_the_models_vocabulary(encoder: TextEncoder) -> None:
    end = encoder.tokenizer.eos_token_id
    for size in (len(encoder.tokenizer) - 3, len(encoder.tokenizer) + 100):
        compiler = GrammarCompiler(encoder, size, [end])
        mask = compiler.start(StructuredOutput(regex="(?s).*")).allowed_tokens().mask
        assert mask.shape == (size,)
        assert not mask[len(encoder.tokenizer) :].any()


def test_a_grammar_that_ends_nowhere_fails_where_it_stops(compiler: GrammarCompiler, encoder: TextEncoder) -> None:
    contradiction = {"type": "string", "allOf": [{"pattern": "^a*b$"}, {"pattern": "^a*c$"}]}
    with pytest.raises(InvalidRequestError, match="structured_output"):
        compiler.start(StructuredOutput(json_schema=json.dumps(contradiction))).allowed_tokens()
