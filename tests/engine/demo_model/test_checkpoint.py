"""The included checkpoint: small, exact in its text handling, as accurate as its model card states."""

import json
from collections.abc import Sequence

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from gradellm_engine.demo_model import CHECKPOINT
from gradellm_engine.demo_model.training.corpus import TASKS, examples
from gradellm_engine.demo_model.training.evaluate import Accuracy, evaluate, load, prompt_ids


@pytest.fixture(scope="module")
def demo() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return load(CHECKPOINT)


@pytest.fixture(scope="module")
def tokenizer(demo: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return demo[1]


def test_files_are_few_and_small() -> None:
    files = list(CHECKPOINT.iterdir())
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert {file.suffix for file in files} == {".json", ".jinja", ".safetensors"}


def test_model_is_a_grouped_query_llama(demo: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    config = demo[0].config
    assert config.model_type == "llama"
    assert config.num_attention_heads > config.num_key_value_heads
    assert config.max_position_embeddings == demo[1].model_max_length == 512


@pytest.mark.parametrize("labels", [("Positive", "Negative"), ("true", "false")])
def test_labels_are_single_tokens(tokenizer: PreTrainedTokenizerFast, labels: Sequence[str]) -> None:
    encoded = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
    assert [len(ids) for ids in encoded] == [1, 1]
    assert encoded[0] != encoded[1]


def test_prompts_fit_the_trained_lengths(tokenizer: PreTrainedTokenizerFast) -> None:
    lengths = [len(prompt_ids(tokenizer, example)) for task in TASKS for example in examples(task, "held_out", 5, 200)]
    assert max(lengths) <= 140


def test_a_raw_prompt_is_continued(demo: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = demo
    input_ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    output = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=120)[0].tolist()
    assert output[-1] == tokenizer.eos_token_id
    assert 30 <= len(output) <= 120
    assert tokenizer.decode(output, skip_special_tokens=True).endswith(".")


@pytest.fixture(scope="module")
def accuracies() -> dict[str, Accuracy]:
    return evaluate(CHECKPOINT, count=200, seed=1)


@pytest.mark.parametrize(("task", "least"), [("sentiment", 0.98), ("boolq", 0.957), ("why", 0.791)])
def test_held_out_accuracy(accuracies: dict[str, Accuracy], task: str, least: float) -> None:
    assert accuracies[task]["accuracy"] >= least  # its card's figure, less three standard errors of 200 examples


def test_metrics_are_those_of_this_checkpoint(demo: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    metrics = json.loads((CHECKPOINT / "metrics.json").read_text())
    assert metrics["parameters"] == demo[0].num_parameters()
    assert metrics["held_out"]["sentiment"]["count"] == 1000
