"""Initial weights from which looking things up is quick to learn.

A question about a passage is answered by a chain: a value takes in the word before it, the same value in the question
finds it again, and what it took in is read off. From the usual random weights a model of this size did not find that
chain in half an hour on two cores: no part of it pays before the others are there. So the first two parts are laid out
in the initial weights, knowing nothing of words or tasks; what they are used for is learnt.

1. Embeddings are large against what blocks add at first, so that a position goes on knowing its token. The last norm's
   weight makes up for it in the logits.
2. Same token: in every layer but the first, a query projection equals its group's key projection (after Trockman and
   Kolter 2023, arXiv 2305.09828), so that a position attends to itself and to its token's earlier mentions.
3. Previous token: all embeddings share one component, m. In the first layer's first group, keys hold k = c for every m,
   and queries are c turned back by one position, so that rotary embedding scores a key at distance d by
   |c|^2 cos((d - 1) theta), summed over the four highest frequencies: most at d = 1.
"""

import torch
from transformers import LlamaForCausalLM

_EMBEDDING_SCALE = 0.5
_SAME_TOKEN_SCALE = 0.08
_OUTPUT_SCALE = 0.02
_PREVIOUS_TOKEN_FREQUENCIES = 4
_PREVIOUS_TOKEN_SCORE = 6.0  # of one frequency at distance one, for tokens whose embedding is half shared component


@torch.no_grad()
def initialize(model: LlamaForCausalLM) -> None:
    """Write these weights into an untrained model; what is not named above stays as it is."""
    embeddings = model.model.embed_tokens.weight
    width = embeddings.shape[1]
    shared = torch.nn.functional.normalize(torch.randn(width), dim=0)
    embeddings.normal_(std=_EMBEDDING_SCALE).add_(shared * _EMBEDDING_SCALE * width**0.5)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.weight.normal_(std=_OUTPUT_SCALE)
        layer.mlp.down_proj.weight.normal_(std=_OUTPUT_SCALE)
        if index > 0:
            keys = layer.self_attn.k_proj.weight.normal_(std=_SAME_TOKEN_SCALE)
            groups = keys.unflatten(0, (model.config.num_key_value_heads, 1, -1))
            queries_a_group = model.config.num_attention_heads // model.config.num_key_value_heads
            layer.self_attn.q_proj.weight.copy_(groups.expand(-1, queries_a_group, -1, -1).flatten(0, 2))
    _attend_to_previous_token(model, shared)


def _attend_to_previous_token(model: LlamaForCausalLM, shared: torch.Tensor) -> None:
    """Lay out point 3 in the first layer; a rotary frequency turns the dimensions i and i + head_dim / 2 together."""
    attention, config = model.model.layers[0].self_attn, model.config
    width, half = config.head_dim, config.head_dim // 2
    theta = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    # A normalized embedding has length sqrt(hidden size), and half of its square lies along `shared`.
    length = (_PREVIOUS_TOKEN_SCORE * width**0.5) ** 0.5 / (0.5 * config.hidden_size) ** 0.5
    c = torch.where(torch.arange(half) < _PREVIOUS_TOKEN_FREQUENCIES, length, 0.0)
    key = torch.cat([c, torch.zeros(half)])
    query = torch.cat([c * theta.cos(), -c * theta.sin()])
    attention.k_proj.weight[:width] = torch.outer(key, shared)
    queries_a_group = config.num_attention_heads // config.num_key_value_heads
    attention.q_proj.weight[: queries_a_group * width] = torch.outer(query.repeat(queries_a_group), shared)
