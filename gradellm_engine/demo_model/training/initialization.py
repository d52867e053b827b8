"""Initial weights with previous-token and induction heads, so that lookup and copying are quick to learn.

Answering a question about a passage takes a chain of heads: a value attends to the word before it, the same value in
the question attends to that value, and the last position reads off the word. Copying is a chain, too: every word
attends to the word before it, and the word just written attends to the position that followed its earlier mention. From
random weights a model of this size learnt neither chain in half an hour on two cores, because no part of a chain lowers
the loss before the others exist. So the initial weights contain all parts but the last; they depend on no word and no
task, and what they are used for is learnt.

1. Embeddings are large compared with the blocks' first outputs, so that the residual stream keeps the token. The last
   norm's weight compensates in the logits.
2. Same token: in every layer but the first, a query projection equals its group's key projection (after Trockman and
   Kolter 2023, arXiv 2305.09828), so that a position attends to itself and to its token's earlier mentions. The
   second layer's first group has another use, see 4.
3. Previous token: all embeddings share one component, m. In the first layer's first group, keys hold k = c for every m,
   and queries are c turned back by one position, so that rotary embedding scores a key at distance d by
   |c|^2 cos((d - 1) theta), summed over the four highest frequencies: most at d = 1.
4. Next token: that group takes a projection R of the previous token, m left out, and writes it along directions D. In
   the second layer's first group, keys read D and queries are R of the token itself, so that a position attends to
   what followed its token's earlier mentions: the match of an induction head (Olsson et al. 2022, arXiv 2209.11895).
"""

import torch
from transformers import LlamaForCausalLM

_EMBEDDING_SCALE = 0.5
_SAME_TOKEN_SCALE = 0.08
_OUTPUT_SCALE = 0.02
_PREVIOUS_TOKEN_FREQUENCIES = 4
_PREVIOUS_TOKEN_SCORE = 6.0  # of one frequency at distance one, for tokens whose embedding is half shared component
_TAKEN_IN_SCALE = 1.5  # of the previous token, against 1 for the token itself
_NEXT_TOKEN_SCALE = 1.4  # of queries and keys: scores of about 6 for a match, and 1 at random, before rotation


@torch.no_grad()
def initialize(model: LlamaForCausalLM) -> None:
    """Write these weights into an untrained model; all others stay as they are."""
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
    _attend_to_next_token(model, shared)


def _attend_to_previous_token(model: LlamaForCausalLM, shared: torch.Tensor) -> None:
    """Point 3, in the first layer; a rotary frequency rotates the dimensions i and i + head_dim / 2 together."""
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


def _attend_to_next_token(model: LlamaForCausalLM, shared: torch.Tensor) -> None:
    """Point 4, in the first groups of the first two layers."""
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    width, queries_a_group = model.config.head_dim, model.config.num_attention_heads // model.config.num_key_value_heads
    reading = torch.nn.init.orthogonal_(torch.empty(width, shared.numel()))
    reading -= torch.outer(reading @ shared, shared)
    writing = torch.nn.init.orthogonal_(torch.empty(shared.numel(), width))
    first.v_proj.weight[:width] = reading * _TAKEN_IN_SCALE
    first.o_proj.weight[:, : queries_a_group * width] = writing.repeat(1, queries_a_group) / queries_a_group
    second.k_proj.weight[:width] = writing.T * _NEXT_TOKEN_SCALE
    second.q_proj.weight[: queries_a_group * width] = reading.repeat(queries_a_group, 1) * _NEXT_TOKEN_SCALE
