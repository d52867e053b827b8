"""The initial weights attend to the previous token, to the same token, and to the token that followed it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gradellm_engine.demo_model.training.initialization import initialize


@pytest.fixture(scope="module")
def attentions() -> tuple[torch.Tensor, ...]:
    return attention_weights(two_back=False)


def attention_weights(*, two_back: bool) -> tuple[torch.Tensor, ...]:
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
    initialize(model, two_back=two_back)
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


def test_second_groups_attend_two_tokens_back_and_to_what_came_two_after_the_previous_token() -> None:
    first, second, _ = attention_weights(two_back=True)
    assert first[0, 2:4].diagonal(-2, 1, 2)[:, 2:].mean() > 0.8
    assert first[0, :2].diagonal(-1, 1, 2)[:, 1:].mean() > 0.8
    # At position i, the token before it also stood at i - 21; two after that is i - 19.
    followed = second[0, 2:4].diagonal(-19, 1, 2)[:, -18:]
    assert followed.mean() > 0.3
    # The token two before it also stands two before itself, and two before i - 20; nearer keys have larger scores.
    itself, earlier = (second[0, 4:6].diagonal(-distance, 1, 2)[:, -18:].mean() for distance in (0, 20))
    assert itself > 0.3
    assert earlier < itself
    assert second[0, 6:].diagonal(-19, 1, 2)[:, -18:].mean() < 0.1
