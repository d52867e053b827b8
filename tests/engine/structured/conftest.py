"""A compiler for the demo model's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

import gradellm_engine.demo_model
from gradellm_engine.structured.compiler import GrammarCompiler
from gradellm_engine.tokenization.encoder import TextEncoder


@pytest.fixture(scope="session")
def encoder() -> TextEncoder:
    checkpoint = Path(gradellm_engine.demo_model.__file__).parent / "checkpoint"
    return TextEncoder(AutoTokenizer.from_pretrained(checkpoint))


@pytest.fixture(scope="session")
def compiler(encoder: TextEncoder) -> GrammarCompiler:
    return GrammarCompiler(encoder, len(encoder.tokenizer), [encoder.tokenizer.eos_token_id])
