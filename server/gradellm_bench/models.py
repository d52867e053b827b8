"""The model to measure: loaded for this engine and for Transformers, over the same tensors."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from gradellm_engine.core.memory_sizing import MIN_KV_TOKENS
from gradellm_engine.engine import Engine
from gradellm_engine.model.checkpoint_check import check_checkpoint
from gradellm_engine.model.loader import LoadedModel, wrap_model
from gradellm_engine.utils.quiet import quiet_transformers

SHAPES: dict[str, dict[str, Any]] = {
    "125m": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama-3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
}


@dataclass(frozen=True)
class BenchModel:
    """A model to measure.

    Attributes:
        loaded: for this engine, without end-of-text tokens, so that all backends decode equally many tokens.
        reference: for Transformers, over the same tensors, so that both read the same memory.
        body_bytes: bytes of the layers' weights, all of which a decode step reads.
        head_bytes: bytes of the LM head's weights.
        use_graphs: whether decode steps run as CUDA graphs on a GPU, and as launch graphs and traces on a CPU, rather
            than eagerly.
    """

    loaded: LoadedModel
    reference: PreTrainedModel
    body_bytes: int
    head_bytes: int
    use_graphs: bool = True
    _last_engine: dict[tuple[int, int], Engine] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        device: torch.device = self.loaded.runner.device
        return device

    def engine(self, *, max_running: int, num_tokens: int) -> Engine:
        """An engine with a KV cache of at least `num_tokens`, all free. An earlier engine can no longer be used.

        The last engine is reused if the size is equal, so that its CUDA graphs need not be captured again.
        """
        size = (max_running, num_tokens)
        if size in self._last_engine:
            self.loaded.runner.pool.evict_all()
        else:
            self._last_engine.clear()
            self._last_engine[size] = Engine(
                self.loaded,
                max_running=max_running,
                max_new_tokens=num_tokens,
                kv_bytes=max(num_tokens, MIN_KV_TOKENS) * self.loaded.runner.bytes_per_token,
                use_graphs=self.use_graphs,
            )
        return self._last_engine[size]

    def prompt(self, rng: Random, num_tokens: int) -> tuple[int, ...]:
        """Random token ids, none of them special."""
        special = set(self.loaded.tokenizer.all_special_ids)
        allowed = [token_id for token_id in range(self.loaded.info.vocab_size) if token_id not in special]
        return tuple(rng.choices(allowed, k=num_tokens))


def random_bench_model(shape: str, *, dtype: torch.dtype, device: torch.device) -> BenchModel:
    """A Llama of a named shape with random weights, made on the device."""
    return _bench_model(*random_llama(shape, dtype=dtype, device=device), f"random {shape}")


def random_llama(
    shape: str, *, dtype: torch.dtype, device: torch.device
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Transformers model with random weights, and a tokenizer with a word for each token: w0, w1, ..."""
    config = LlamaConfig(**SHAPES[shape], bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model, _word_tokenizer(SHAPES[shape]["vocab_size"])


def checkpoint_bench_model(name: str, *, dtype: torch.dtype, device: torch.device) -> BenchModel:
    """A checkpoint, by path or hub id."""
    check_checkpoint(name)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return _bench_model(model.to(device), tokenizer, name)


def _bench_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> BenchModel:
    model.eval().requires_grad_(False)
    reference = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    loaded = replace(wrap_model(model, tokenizer, name=name), end_ids=frozenset())
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    outside = {id(weight): weight.nbytes for weight in (embedding, head)}  # which may be tied
    body_bytes = sum(parameter.nbytes for parameter in model.parameters()) - sum(outside.values())
    return BenchModel(loaded, reference, body_bytes, head.nbytes)


def _word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer with a word for each token; the first is the BOS, EOS and padding token that other libraries need."""
    backend = Tokenizer(WordLevel({f"w{index}": index for index in range(vocab_size)}, unk_token="w0"))  # noqa: S106
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="w0", eos_token="w0", pad_token="w0")  # noqa: S106
