"""Training: the role of each token in the loss, the loss against a naive sum, runs that their seed determines."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradellm_engine.demo_model import CHECKPOINT
from gradellm_engine.demo_model.training import train as training
from gradellm_engine.demo_model.training.corpus import training_conversation
from gradellm_engine.demo_model.training.evaluate import load
from gradellm_engine.demo_model.training.tokenizer import VOCABULARY_SIZE

PADDING, PROMPT, QUESTION, ANSWER = range(4)
WEIGHTS = (0.0, 0.03, 0.1, 1.0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    shipped: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(CHECKPOINT)
    return shipped


def small_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            tie_word_embeddings=False,
        )
    )


def runs_of(tokenizer: PreTrainedTokenizerFast, ids: Tensor, parts: Tensor, role: int) -> list[str]:
    """The texts of a sequence's runs of tokens with one role."""
    runs: list[list[int]] = [[]]
    for token_id, part in zip(ids.tolist(), parts.tolist(), strict=True):
        if part == role:
            runs[-1].append(token_id)
        elif runs[-1]:
            runs.append([])
    return [str(tokenizer.decode(run)) for run in runs if run]


def test_answers_and_questions_of_conversations_have_their_own_roles(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [training_conversation("boolq", Random(seed)) for seed in range(4)]
    messages = [[{"role": turn.role, "content": turn.content} for turn in conversation] for conversation in turns]
    texts = [str(tokenizer.apply_chat_template(conversation, tokenize=False)) for conversation in messages]
    ids, parts = training.encode(texts, tokenizer)
    for conversation, row, roles in zip(turns, ids, parts, strict=True):
        answers = [turn.content + "<|end|>" for turn in conversation if turn.role == "assistant"]
        assert runs_of(tokenizer, row, roles, ANSWER) == answers
        asked = [turn.content.split("Question")[1] + "<|end|>" for turn in conversation if turn.role == "user"]
        assert runs_of(tokenizer, row, roles, QUESTION) == asked
        assert ((row == tokenizer.pad_token_id) == (roles == PADDING)).all()


def test_raw_texts_are_learnt_as_a_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, parts = training.encode(["<s>Once upon<|end|>", "<s>Once<|end|>"], tokenizer)
    assert ((ids == tokenizer.pad_token_id) == (parts == PADDING)).all()
    assert (parts[ids != tokenizer.pad_token_id] == ANSWER).all()


def test_of_verdict_lists_the_verdicts_are_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, parts = training._encode_verdicts(Random(3), 3, tokenizer)
    for row, roles in zip(ids, parts, strict=True):
        listed = str(tokenizer.decode(row)).split("Verdicts: ")[1].split("<|end|>")[0].split()
        assert [text.strip() for text in runs_of(tokenizer, row, roles, ANSWER)] == listed[1::2]


def test_of_retellings_the_repeated_causes_are_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    """With the colon before them, and without the names, which are random."""
    ids, parts = training._encode_retellings(Random(3), 3, tokenizer)
    for row, roles in zip(ids, parts, strict=True):
        again = str(tokenizer.decode(row)).split("Again: ")[1].split("<|end|>")[0]
        causes = [sentence.strip().split(" ", 1)[1] + "." for sentence in again.split(".")[:-1]]
        assert [text.strip() for text in runs_of(tokenizer, row, roles, ANSWER)] == [":", *causes]


def test_the_loss_is_a_weighted_sum_over_the_number_of_answer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_PROMPT_SAMPLE", 1.0)
    model = small_model(0)
    ids = torch.tensor([[1, 40, 41, 42, 43, 44], [1, 50, 51, 52, 0, 0]])
    parts = torch.tensor([[1, 1, 2, 3, 3, 1], [1, 2, 3, 3, 0, 0]])
    loss, answer_loss = training.weighted_losses(model, ids, parts)
    total, answers = 0.0, []
    for row, roles in zip(ids.tolist(), parts.tolist(), strict=True):
        for end in range(1, len(row)):
            logprobs = model(torch.tensor([row[:end]])).logits[0, -1].log_softmax(-1)
            total -= WEIGHTS[roles[end]] * logprobs[row[end]].item()
            answers += [-logprobs[row[end]].item()] * (roles[end] == ANSWER)
    assert loss.item() == pytest.approx(total / len(answers), rel=1e-5)
    assert answer_loss.item() == pytest.approx(sum(answers) / len(answers), rel=1e-5)


def test_the_learning_rate_rises_and_falls() -> None:
    steps = 200
    factors = [training._learning_rate_factor(step, steps) for step in range(steps + 1)]
    top = factors.index(1.0)
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert 0 < factors[0] < 0.1
    assert factors[-1] == pytest.approx(0)


def test_seed_and_steps_determine_a_run(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_CHATS", dict.fromkeys(training._CHATS, 1))
    monkeypatch.setattr(training, "_VERDICTS_AT_FIRST", 1)
    monkeypatch.setattr(training, "_RETELLINGS_AT_FIRST", 1)

    def trained(seed: int) -> dict[str, Tensor]:
        model = small_model(0)
        training.train(model, tokenizer, seed, steps=2)
        assert not model.training
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    first, again, other = trained(1), trained(1), trained(2)
    untrained = dict(small_model(0).named_parameters())
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name]), name
        assert not torch.equal(parameter, untrained[name]), name
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_a_saved_model_has_its_weights_in_bfloat16(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = small_model(0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    training.save(model, tokenizer, tmp_path)
    loaded, saved_tokenizer = load(tmp_path)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, before[name].bfloat16().float()), name
    assert saved_tokenizer("a fox") == tokenizer("a fox")
    assert saved_tokenizer.chat_template == tokenizer.chat_template


def test_a_new_model_is_as_large_as_the_one_that_ships(tokenizer: PreTrainedTokenizerFast) -> None:
    model = training.new_model(tokenizer)
    shipped = json.loads((CHECKPOINT / "metrics.json").read_text())
    assert model.num_parameters() == shipped["parameters"]
    assert model.config.eos_token_id == tokenizer.eos_token_id
