"""Compilation: within limits, off the caller's thread, once; hostile grammars end within two seconds."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from gradellm_engine import BusyError, InvalidRequestError, StructuredOutput
from gradellm_engine.structured import compiler as module
from gradellm_engine.structured.compiler import GrammarCompiler
from gradellm_engine.structured.grammar_source import grammar_source
from gradellm_engine.tokenization.encoder import TextEncoder, interruption_point

HOSTILE = {
    "a repeated repetition": StructuredOutput(regex="(a{1,1000}){1,1000}"),
    "three of them": StructuredOutput(regex="((a{1,100}){1,100}){1,100}"),
    "a regex with many states": StructuredOutput(regex="(a|b)*a(a|b){25}"),
    "a pattern": StructuredOutput(json_schema=json.dumps({"type": "string", "pattern": "^(a{1,1000}){1,1000}$"})),
    "a reference to itself": StructuredOutput(json_schema='{"$ref": "#"}'),
    "a cycle of references": StructuredOutput(
        json_schema=json.dumps(
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "items": {"$ref": "#/$defs/a"}}
        )
    ),
    "an endless object": StructuredOutput(
        json_schema=json.dumps({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]})
    ),
    "a megabyte": StructuredOutput(json_schema=json.dumps({"description": "x" * 1_040_000})),
    "a megabyte of properties": StructuredOutput(
        json_schema=json.dumps(
            {"properties": {f"p{i}": {"type": "object", "properties": {"a": {}, "b": {}}} for i in range(10_000)}}
        )
    ),
    "many properties": StructuredOutput(
        json_schema=json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(500)}})
    ),
    "10,000 values": StructuredOutput(json_schema=json.dumps({"enum": [f"{i} {'x' * 90}" for i in range(10_000)]})),
    "10,000 choices": StructuredOutput(choice=tuple(f'value {i} "\n' for i in range(10_000))),
    "unions of unions": StructuredOutput(
        json_schema=json.dumps(
            {
                "$defs": {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)} | {"a40": {}},
                "$ref": "#/$defs/a0",
            }
        )
    ),
    "a product of unions": StructuredOutput(
        json_schema=json.dumps(
            {"allOf": [{"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(5)]} for i in range(12)]}
        )
    ),
    "a long text": StructuredOutput(json_schema='{"type": "string", "minLength": 1000000000}'),
    "many items": StructuredOutput(json_schema='{"type": "array", "items": {}, "minItems": 1000000000}'),
    "a grammar of repetitions": StructuredOutput(grammar='start: x{1,1000}\nx: y{1,1000}\ny: z{1,1000}\nz: "a"'),
    "an ambiguous grammar": StructuredOutput(grammar='start: a\na: a a | "x" | '),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_within_two_seconds(compiler: GrammarCompiler, name: str) -> None:
    began = time.monotonic()
    with suppress(InvalidRequestError):
        state = compiler.start(HOSTILE[name])
        for _ in range(20):
            state.advance(int(state.allowed_tokens().mask.int().argmax()))
    assert time.monotonic() - began < 2 * module.COMPILE_SECONDS  # other tests may run beside this one


def test_a_grammar_is_compiled_once(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = GrammarCompiler(encoder, len(encoder.tokenizer), [encoder.tokenizer.eos_token_id])
    compiled: list[StructuredOutput] = []

    def counting(settings: StructuredOutput) -> str:
        compiled.append(settings)
        return grammar_source(settings)

    monkeypatch.setattr(module, "grammar_source", counting)
    for text in ("a", "b", "a", "a", "b"):
        compiler.start(StructuredOutput(regex=text))
    assert [settings.regex for settings in compiled] == ["a", "b"]
    monkeypatch.setattr(module, "MAX_CACHED_GRAMMARS", 1)
    for text in ("c", "a"):
        compiler.start(StructuredOutput(regex=text))
    assert [settings.regex for settings in compiled] == ["a", "b", "c", "a"]


@pytest.fixture
def stuck(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[GrammarCompiler]:
    """A compiler whose compilations take until the test's end."""
    release = threading.Event()

    def wait(settings: StructuredOutput) -> str:
        release.wait(30)
        raise InvalidRequestError(settings.field, "released")

    monkeypatch.setattr(module, "grammar_source", wait)
    monkeypatch.setattr(module, "COMPILE_SECONDS", 0.2)
    yield GrammarCompiler(encoder, len(encoder.tokenizer), [encoder.tokenizer.eos_token_id])
    release.set()


def test_a_slow_compilation_is_refused_and_others_wait_for_a_thread(stuck: GrammarCompiler) -> None:
    with pytest.raises(InvalidRequestError, match="was not compiled within"):
        stuck.start(StructuredOutput(regex="a"))
    with pytest.raises(InvalidRequestError, match="was not compiled"):
        stuck.start(StructuredOutput(regex="b"))
    with pytest.raises(BusyError, match="being compiled"):
        stuck.start(StructuredOutput(regex="c"))


def test_a_caller_who_has_left_ends_the_waiting(stuck: GrammarCompiler) -> None:
    class LeftError(Exception):
        pass

    def leave() -> None:
        raise LeftError

    def start() -> None:
        interruption_point.set(leave)
        stuck.start(StructuredOutput(regex="a"))

    with ThreadPoolExecutor(1) as pool, pytest.raises(LeftError):
        pool.submit(start).result()


def test_a_model_without_an_end_token_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(InvalidRequestError, match="no token that ends a text"):
        GrammarCompiler(encoder, len(encoder.tokenizer), []).start(StructuredOutput(regex="a"))
