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
5. Two back, on request (`two_back`): the first layer's second group is turned back by two positions and writes R of
   that token along directions E. In the second layer's second and third groups keys read E, and queries read D and E,
   so that a position attends to what came two tokens after earlier mentions of the token before it ("Ben likes" to
   "Ben likes red"), and of the token two before it ("Ben who likes").
"""

from typing import TypeAlias

import torch
from transformers import LlamaForCausalLM, Qwen3ForCausalLM

Decoder: TypeAlias = LlamaForCausalLM | Qwen3ForCausalLM
"""Families whose modules have the same names."""

_EMBEDDING_SCALE = 0.5
_SAME_TOKEN_SCALE = 0.08
_OUTPUT_SCALE = 0.02
_PREVIOUS_TOKEN_FREQUENCIES = 4
_PREVIOUS_TOKEN_SCORE = 6.0  # of one frequency at distance one, for tokens whose embedding is half shared component
_TAKEN_IN_SCALE = 1.5  # of the previous token, against 1 for the token itself
_NEXT_TOKEN_SCALE = 1.4  # of queries and keys: scores of about 6 for a match, and 1 at random, before rotation


@torch.no_grad()
def initialize(model: Decoder, *, two_back: bool = False) -> None:
    """Write these weights into an untrained model, point 5 with `two_back` only; all others stay as they are."""
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
    _attend_back(model, shared, group=0, distance=1)
    reading = torch.nn.init.orthogonal_(torch.empty(model.config.head_dim, width))
    reading -= torch.outer(reading @ shared, shared)
    previous = _write_along(model, reading, group=0)
    _match(model, group=0, keys=previous.T, queries=reading)
    if two_back:
        _attend_back(model, shared, group=1, distance=2)
        before = _write_along(model, reading, group=1)
        _match(model, group=1, keys=before.T, queries=previous.T)
        _match(model, group=2, keys=before.T, queries=before.T)


def _attend_back(model: Decoder, shared: torch.Tensor, *, group: int, distance: int) -> None:
    """Point 3, in the first layer; a rotary frequency rotates the dimensions i and i + head_dim / 2 together."""
    attention, config = model.model.layers[0].self_attn, model.config
    width, half = config.head_dim, config.head_dim // 2
    theta = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    # A normalized embedding has length sqrt(hidden size), and half of its square lies along `shared`.
    length = (_PREVIOUS_TOKEN_SCORE * width**0.5) ** 0.5 / (0.5 * config.hidden_size) ** 0.5
    c = torch.where(torch.arange(half) < _PREVIOUS_TOKEN_FREQUENCIES, length, 0.0)
    key = torch.cat([c, torch.zeros(half)])
    query = torch.cat([c * (distance * theta).cos(), -c * (distance * theta).sin()])
    queries_a_group = _queries_a_group(model)
    attention.k_proj.weight[_rows(model, group)] = torch.outer(key, shared)
    attention.q_proj.weight[_rows(model, group, queries_a_group)] = torch.outer(query.repeat(queries_a_group), shared)


def _write_along(model: Decoder, reading: torch.Tensor, *, group: int) -> torch.Tensor:
    """Let a group of the first layer take `reading` of tokens, and write it along directions that are returned."""
    attention, queries_a_group = model.model.layers[0].self_attn, _queries_a_group(model)
    writing = torch.nn.init.orthogonal_(torch.empty(reading.shape[1], reading.shape[0]))
    attention.v_proj.weight[_rows(model, group)] = reading * _TAKEN_IN_SCALE
    attention.o_proj.weight[:, _rows(model, group, queries_a_group)] = (
        writing.repeat(1, queries_a_group) / queries_a_group
    )
    return writing


def _match(model: Decoder, *, group: int, keys: torch.Tensor, queries: torch.Tensor) -> None:
    """Let keys and queries of a group of the second layer read the residual stream. [head width, width] each"""
    attention, queries_a_group = model.model.layers[1].self_attn, _queries_a_group(model)
    attention.k_proj.weight[_rows(model, group)] = keys * _NEXT_TOKEN_SCALE
    attention.q_proj.weight[_rows(model, group, queries_a_group)] = (
        queries.repeat(queries_a_group, 1) * _NEXT_TOKEN_SCALE
    )


def _rows(model: Decoder, group: int, heads: int = 1) -> slice:
    """The rows of a projection that belong to a group of `heads` heads."""
    width = model.config.head_dim * heads
    return slice(group * width, (group + 1) * width)


def _queries_a_group(model: Decoder) -> int:
    return int(model.config.num_attention_heads // model.config.num_key_value_heads)
