"""The initial weights attend to the previous token, to the same token, and to the token that followed it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gradellm_engine.demo_model.training.initialization import initialize


@pytest.fixture(scope="module")
def attentions() -> tuple[torch.Tensor, ...]:
    """Attention weights of an untrained model over 20 random tokens and their repetition. [1, heads, 40, 40] a layer"""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        initializer_range=0.05,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    initialize(model)
    with torch.inference_mode():
        result: tuple[torch.Tensor, ...] = model(
            input_ids=torch.randperm(300)[:20].repeat(2)[None], output_attentions=True
        ).attentions
    return result


def test_first_group_of_first_layer_attends_to_the_previous_token(attentions: tuple[torch.Tensor, ...]) -> None:
    previous = attentions[0][0, :2].diagonal(-1, 1, 2)
    assert previous[:, 1:].mean() > 0.8
    assert attentions[0][0, 2:].diagonal(-1, 1, 2)[:, 1:].mean() < 0.3


def test_other_layers_attend_to_the_same_token(attentions: tuple[torch.Tensor, ...]) -> None:
    for heads in (attentions[1][0, 2:], attentions[2][0]):
        earlier, itself = (heads.diagonal(-distance, 1, 2)[:, -20:] for distance in (20, 0))
        ablated = (
            1 - (earlier + itself).mean()
        ) / 28  # the mean over positions 20..39 of the other 28 tokens on average
        assert earlier.mean() > 2 * ablated
        assert itself.mean() > 2 * ablated


def test_first_group_of_second_layer_attends_to_what_followed_the_same_token(
    attentions: tuple[torch.Tensor, ...],
) -> None:
    followed = attentions[1][0, :2].diagonal(-19, 1, 2)[:, -20:]
    assert followed.mean() > 0.3
    assert attentions[1][0, 2:].diagonal(-19, 1, 2)[:, -20:].mean() < 0.1
