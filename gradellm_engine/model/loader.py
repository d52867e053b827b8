"""Loads a model from a folder or from the hub: a decoder that the engine explains exactly, or a clear refusal.

The configuration is read and checked before the weights, so that an unsupported family or setting is refused within
seconds. Safetensors only, no remote code.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from gradellm_engine.demo_model import CHECKPOINT as DEMO_CHECKPOINT
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.errors import UnsupportedModelError
from gradellm_engine.layers.batch_invariant import NAME as BATCH_INVARIANT
from gradellm_engine.layers.rotary_switch import context_limit
from gradellm_engine.model import checkpoint
from gradellm_engine.model.attention_interface import ATTENTION_KERNEL
from gradellm_engine.model.checkpoint_check import CONFIG, check_checkpoint, check_config, config_sha256, read_json
from gradellm_engine.model.families import Family, family_of
from gradellm_engine.model.generation_config import end_ids
from gradellm_engine.model.load_options import (
    check_batch_invariant,
    check_context_tokens,
    check_memory,
    check_placement,
    check_shares,
    resolve_device,
    resolve_dtype,
)
from gradellm_engine.model.quantization import Quantization, check_gradients, quantization_config
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.model.self_checks import (
    as_dtype_error,
    check_logits,
    eager_logits,
    is_batch_variant,
    runner_logits,
)
from gradellm_engine.tokenization.chat_template import has_tools
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.tools import call_parser

DEMO_NAME = "gradellm demo model"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ModelInfo:
    """A model's description: everything that is needed to load the same model again.

    Attributes:
        name: the path or hub id.
        revision: the hub's commit, empty for a path.
        family: the configuration's model type.
        weights_sha256: a hash of the weight files.
        tokenizer_sha256: a hash of the tokenizer's serialisation.
        chat_template_sha256: empty without a chat template.
        dtype: of the weights, and of the activations, except for bfloat16 on a CPU (`gradellm_engine.layers.widening`).
        quantization: how weights are stored: none (in `dtype`), int8, nf4, or the checkpoint's own method.
        device: of the weights; several, joined with commas.
        attention_kernel: the attention implementation.
        num_layers: decoder layers.
        num_heads: query heads a layer.
        num_key_value_heads: key-value heads a layer.
        num_parameters: in total.
        vocab_size: the limit of token ids.
        context_tokens: the limit of prompt and completion together.
        has_chat_template: whether the model takes messages.
        has_tools: whether its chat template has tools.
        tool_call_parser: the form of its calls of tools, by the look of the template; empty where it is none of ours.
        config_sha256: a hash of the other settings that affect numbers and tokens: config.json without names, versions
            and stored dtype, and the tokens that begin and end a text. Empty for a model not loaded from files.
    """

    name: str
    revision: str
    family: str
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str
    dtype: str
    quantization: str
    device: str
    attention_kernel: str
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    num_parameters: int
    vocab_size: int
    context_tokens: int
    has_chat_template: bool
    config_sha256: str = ""
    has_tools: bool = False
    tool_call_parser: str = ""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, ready to generate and explain."""

    info: ModelInfo
    family: Family
    runner: ModelRunner
    tokenizer: PreTrainedTokenizerBase
    encoder: TextEncoder
    end_ids: frozenset[int]
    generation_config: GenerationConfig | None = None


def load_model(
    name: str | None = None,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    quantization: Quantization = Quantization.NONE,
    device: str = "auto",
    device_map: str | None = None,
    ranks: ProcessGroup | None = None,
    context_tokens: int | None = None,
    batch_invariant: bool = False,
    memory_bytes: int | None = None,
    progress: Progress = lambda stage: None,
) -> LoadedModel:
    """Load a decoder with its tokenizer.

    Args:
        name: a local folder or a hub id; None for the demo model.
        revision: the hub's branch, tag or commit.
        dtype: auto (float32 on a CPU, the checkpoint's own elsewhere), or a name of `DTYPES`.
        quantization: how weights are stored; activations have `dtype`.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...
        device_map: accelerate's, such as auto or balanced, to spread a model over devices; not with `device`.
        ranks: the tensor-parallel process group; every rank calls this with the same arguments.
        context_tokens: a limit below the model's own.
        batch_invariant: whether results must not depend on batch composition.
        memory_bytes: a limit of the memory of this process, on its device; packed copies of weights keep to it.
        progress: called with each stage as it begins.

    Raises:
        ModelLoadError: naming the file or setting at fault.
        UnsupportedModelError: for a family that cannot be explained exactly.
    """
    shown, name = (DEMO_NAME, str(DEMO_CHECKPOINT)) if name is None else (name, name)  # not the path on this machine
    check_placement(device, device_map, quantization, ranks)
    check_checkpoint(name)
    torch_device, source = resolve_device(device), _read_config(name, revision)
    torch_dtype = resolve_dtype(dtype, torch_device)
    quantized = source.quantization if quantization is Quantization.NONE else str(quantization)
    if batch_invariant:
        check_batch_invariant(source.config, source.family, torch_device, torch_dtype, quantized, device_map, ranks)
    _check_ranks(source, ranks)
    check_context_tokens(source.config, context_tokens, progress)
    files = _read_files(source, torch_dtype, ranks, progress)
    _check_memory(memory_bytes, files, torch_dtype, quantized, progress)
    model = _load_model_weights(source, torch_dtype, quantization, device_map or {"": torch_device}, ranks)
    progress("checking its attention against Transformers' own")
    return wrap_model(
        model,
        files.tokenizer,
        name=shown,
        revision=source.commit,
        weights_sha256=files.weights_sha256,
        config_sha256=files.config_sha256,
        quantization=quantized,
        context_tokens=context_tokens,
        ranks=ranks,
        batch_invariant=batch_invariant,
        memory_bytes=memory_bytes,
    )


def _check_ranks(source: _Source, ranks: ProcessGroup | None) -> None:
    """Refuse a model that cannot be shared by the ranks."""
    if ranks is not None:
        check_shares(source.config, source.family, ranks.size)


def _check_memory(
    memory_bytes: int | None, files: _Files, dtype: torch.dtype | str, quantized: str, progress: Progress
) -> None:
    """Refuse a limit that the weights exceed, and say how much is loaded."""
    if memory_bytes is not None and quantized == str(Quantization.NONE):  # else the files need not be opened again
        check_memory(memory_bytes, checkpoint.num_elements(files.weights), dtype)
    progress(f"loading {sum(path.stat().st_size for path in files.weights) / 1e6:,.1f} MB of weights")


@dataclass(frozen=True)
class _Source:
    """A checkpoint whose configuration is read.

    Attributes:
        name: the folder or hub id.
        revision: as it was requested.
        config: Transformers' configuration.
        family: its row in the table of families.
        stored: the content of config.json.
    """

    name: str
    revision: str | None
    config: Any
    family: Family
    stored: dict[str, Any]

    @property
    def commit(self) -> str:
        """The hub's commit; empty for a folder."""
        return str(getattr(self.config, "_commit_hash", None) or "")

    @property
    def quantization(self) -> str:
        """How the checkpoint's weights are quantised, as its configuration names it; none where they are not."""
        config: Any = getattr(self.config, "quantization_config", None)
        method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
        return str(Quantization.NONE) if config is None else str(getattr(method, "value", method))


@dataclass(frozen=True)
class _Files:
    """A checkpoint's tokenizer, and its weight files, found whole."""

    tokenizer: PreTrainedTokenizerBase
    weights: list[Path]
    weights_sha256: str
    config_sha256: str


def _read_config(name: str, revision: str | None) -> _Source:
    """Read and check a checkpoint's configuration.

    Raises:
        ModelLoadError: if it cannot be read, or describes something else than a decoder.
        UnsupportedModelError: for a family that cannot be explained exactly.
    """
    checkpoint.check_adapter(name, revision)
    with checkpoint.as_load_error(name, "model"):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    family = family_of(config.model_type)
    file = checkpoint.find_file(name, CONFIG, revision)
    stored = {} if file is None else read_json(file)
    check_config(name, stored)
    return _Source(name, revision, config, family, stored)


def _read_files(source: _Source, dtype: torch.dtype | str, ranks: ProcessGroup | None, progress: Progress) -> _Files:
    """Load the tokenizer, and check and hash the weight files; on all ranks alike.

    Raises:
        ModelLoadError: if a file is missing or damaged, or the ranks have different ones.
    """
    name, revision = source.name, source.revision
    progress(f"reading the tokenizer of {name}")
    tokenizer = checkpoint.load_tokenizer(name, revision)
    progress(f"checking the weights of {name}")
    weights = checkpoint.weight_files(name, revision)
    files = _Files(
        tokenizer,
        weights,
        checkpoint.sha256_of_files(weights),
        config_sha256(source.stored, checkpoint.text_ends(name, revision, tokenizer)),
    )
    checkpoint.check_size(name, source.config, weights)
    if ranks is not None:
        same = {
            "weights": files.weights_sha256,
            "configurations": files.config_sha256,
            "tokenizers": checkpoint.sha256_of_tokenizer(tokenizer),
            "chat templates": checkpoint.sha256_of_text(tokenizer.chat_template),
            "dtypes": str(dtype),
        }
        versions = {f"versions of {package}": version for package, version in software_versions().items()}
        ranks.assert_equal(same | versions)
    return files


def _load_model_weights(
    source: _Source,
    dtype: torch.dtype | str,
    quantization: Quantization,
    placement: str | dict[str, torch.device],
    ranks: ProcessGroup | None,
) -> PreTrainedModel:
    model = checkpoint.load_weights(
        source.name,
        revision=source.revision,
        dtype=dtype,
        quantization=quantization_config(quantization, dtype),
        placement=placement,
        ranks=ranks,
    )
    if ranks is None:  # with tensor parallelism, weights are never quantised
        check_gradients(model)
    return model


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    revision: str = "",
    weights_sha256: str = "",
    config_sha256: str = "",
    quantization: str = str(Quantization.NONE),
    context_tokens: int | None = None,
    ranks: ProcessGroup | None = None,
    batch_invariant: bool = False,
    memory_bytes: int | None = None,
) -> LoadedModel:
    """Wrap a model that is in memory, after checking its logits against Transformers' eager attention.

    Raises:
        ModelLoadError: if its logits are not finite.
        UnsupportedModelError: for a family that cannot be explained exactly.
    """
    config = model.config.get_text_config(decoder=True)
    family = family_of(model.config.model_type)
    num_parameters = int(model.num_parameters())  # of all ranks, until the runner makes the shards local
    runner = _checked_runner(model, ranks, batch_invariant=batch_invariant, memory_bytes=memory_bytes)
    num_heads = int(config.num_attention_heads)
    info = ModelInfo(
        name=name,
        revision=revision,
        family=model.config.model_type,
        weights_sha256=weights_sha256,
        tokenizer_sha256=checkpoint.sha256_of_tokenizer(tokenizer),
        chat_template_sha256=checkpoint.sha256_of_text(tokenizer.chat_template),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=quantization,
        device=_devices(model, ranks),
        attention_kernel=f"{ATTENTION_KERNEL}, {BATCH_INVARIANT}" if batch_invariant else ATTENTION_KERNEL,
        num_layers=runner.num_layers,
        num_heads=num_heads,
        num_key_value_heads=int(getattr(config, "num_key_value_heads", None) or num_heads),
        num_parameters=num_parameters,
        vocab_size=int(model.get_input_embeddings().weight.shape[0]),
        context_tokens=context_tokens or context_limit(model.config).num_tokens,
        has_chat_template=bool(tokenizer.chat_template),
        has_tools=has_tools(tokenizer),
        tool_call_parser=call_parser(str(tokenizer.chat_template)) if has_tools(tokenizer) else "",
        config_sha256=config_sha256,
    )
    generation: Any = model.generation_config
    return LoadedModel(
        info, family, runner, tokenizer, TextEncoder(tokenizer), end_ids(generation, tokenizer), generation
    )


def _checked_runner(
    model: PreTrainedModel, ranks: ProcessGroup | None, *, batch_invariant: bool, memory_bytes: int | None
) -> ModelRunner:
    """A runner over the model, if its logits for a few tokens match Transformers' eager attention.

    A family's row in the table rests on tests with tiny models; this checks the model itself.

    Raises:
        ModelLoadError: if an operation does not support the model's dtype, or logits are not finite.
        UnsupportedModelError: if logits differ, or depend on the batch although they must not.
    """
    with as_dtype_error(model) if ranks is None else nullcontext():  # a lost rank is a RuntimeError, too
        expected = eager_logits(model)
        runner = ModelRunner(model, ranks, batch_invariant=batch_invariant, memory_bytes=memory_bytes)
        actual = runner_logits(runner, model)
    check_logits(model, actual, expected)
    if batch_invariant and is_batch_variant(runner, model.config.get_text_config(decoder=True).vocab_size):
        raise UnsupportedModelError(
            f"{type(model).__name__}: on this processor results depend on the rest of the batch; "
            "leave batch-invariant results off"
        )
    return runner


def _devices(model: PreTrainedModel, ranks: ProcessGroup | None) -> str:
    """The devices of its weights, joined with commas; with tensor parallelism their kind and the number of ranks."""
    local = ",".join(sorted({str(parameter.device) for parameter in model.parameters()}))
    return local if ranks is None else f"{local.partition(':')[0]} of {ranks.size} ranks"


def software_versions() -> dict[str, str]:
    """Versions of the packages whose arithmetic and tokens decide the results."""
    import tokenizers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
