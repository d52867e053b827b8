"""The model that is measured: once for this engine, once as Transformers runs it, over the same tensors."""

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

from gradellm_engine.engine import Engine
from gradellm_engine.model.checkpoint_check import check_checkpoint
from gradellm_engine.model.loader import LoadedModel, assemble
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
    """What is measured.

    Attributes:
        loaded: as this engine has it; no token ends its completions, so that all ways decode equally many.
        reference: as Transformers runs it, over the same tensors: neither reads from a warmer cache.
        body_bytes: of the layers' weights, all of which a decode step reads.
        head_bytes: of the language-model head's.
        record_steps: whether a GPU replays decode steps as CUDA graphs, and a CPU runs them as straight lines.
    """

    loaded: LoadedModel
    reference: PreTrainedModel
    body_bytes: int
    head_bytes: int
    use_graphs: bool = True
    _last_engine: dict[tuple[int, int], Engine] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.loaded.runner.device
        return device

    def engine(self, *, max_running: int, num_tokens: int) -> Engine:
        """An engine over it with room for so many tokens, all free. The one before can no longer be used.

        One of the same size is the same one: what was recorded on its memory need not be recorded again.
        """
        size = (max_running, num_tokens)
        if size in self._last_engine:
            self.loaded.runner.pool.forget()
        else:
            self._last_engine.clear()
            self._last_engine[size] = Engine(
                self.loaded,
                max_running=max_running,
                max_new_tokens=num_tokens,
                kv_bytes=num_tokens * self.loaded.runner.bytes_per_token,
                use_graphs=self.use_graphs,
            )
        return self._last_engine[size]

    def prompt(self, rng: Random, num_tokens: int) -> tuple[int, ...]:
        """Random tokens, the same for equal generators; none is special."""
        special = set(self.loaded.tokenizer.all_special_ids)
        allowed = [token_id for token_id in range(self.loaded.info.vocab_size) if token_id not in special]
        return tuple(rng.choices(allowed, k=num_tokens))


def random_bench_model(shape: str, *, dtype: torch.dtype, device: torch.device) -> BenchModel:
    """A Llama of a named shape whose weights are random, made where it computes."""
    return _bench_model(*random_llama(shape, dtype=dtype, device=device), f"random {shape}")


def random_llama(
    shape: str, *, dtype: torch.dtype, device: torch.device
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """As Transformers has it, with a tokenizer that has a made-up word a token: w0, w1, ..."""
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
    """A checkpoint by path or hub id."""
    check_checkpoint(name)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return _bench_model(model.to(device), tokenizer, name)


def _bench_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> BenchModel:
    model.eval().requires_grad_(False)
    reference = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    loaded = replace(assemble(model, tokenizer, name=name), end_ids=frozenset())
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    outside = {id(weight): weight.nbytes for weight in (embedding, head)}  # they may be one
    body_bytes = sum(parameter.nbytes for parameter in model.parameters()) - sum(outside.values())
    return BenchModel(loaded, reference, body_bytes, head.nbytes)


def _word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One made-up word a token; the first is all the special ones that other libraries ask for."""
    backend = Tokenizer(WordLevel({f"w{index}": index for index in range(vocab_size)}, unk_token="w0"))  # noqa: S106
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="w0", eos_token="w0", pad_token="w0")  # noqa: S106
