"""From a path or a hub id to a model that the engine can explain, or a clear refusal.

safetensors only, no remote code. The configuration is read first, so that a family that is not supported is refused
before its weights are.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from gradellm_engine.demo_model import CHECKPOINT as DEMO_CHECKPOINT
from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.errors import ModelLoadError, UnsupportedModelError, one_line
from gradellm_engine.layers.batch_invariant import DTYPES as INVARIANT_DTYPES
from gradellm_engine.layers.batch_invariant import NAME as BATCH_INVARIANT
from gradellm_engine.layers.batch_invariant import is_batch_variant
from gradellm_engine.layers.rotary_switch import context_limit, switch_tokens
from gradellm_engine.model.checkpoint_check import (
    ADAPTER_FILES,
    CONFIG,
    INDEX,
    MERGE,
    TOKENIZER,
    WEIGHTS,
    check_checkpoint,
    check_config,
    config_sha256,
    read_json,
)
from gradellm_engine.model.families import Family, family_of
from gradellm_engine.model.quantization import Quantization, check_gradients, quantization_config
from gradellm_engine.model.runner import ATTENTION_KERNEL, ModelRunner
from gradellm_engine.passes.base import SequenceChunk
from gradellm_engine.passes.invariant import SLOT_ALIGNMENT
from gradellm_engine.tokenization.encoder import TextEncoder
from gradellm_engine.tokenization.tokenizer_check import difference_from, tokenizer_from_file
from gradellm_engine.utils.memory import is_out_of_memory
from gradellm_engine.utils.quiet import quiet_transformers
from gradellm_engine.utils.threads import available_cpus

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DEMO_NAME = "gradellm demo model"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ModelInfo:
    """What is loaded, to the point where somebody else can load the same.

    Attributes:
        name: the path or hub id.
        revision: the hub's commit, empty for a path.
        family: the configuration's model type.
        weights_sha256: over the weight files, in the order of their names.
        tokenizer_sha256: over the tokenizer's own serialisation.
        chat_template_sha256: empty where there is none.
        dtype: what the weights are computed in.
        quantization: how they are kept: none (in that dtype), int8, nf4, or what the checkpoint itself says.
        device: where they lie; several, joined with commas.
        attention_kernel: the attention arithmetic that runs.
        num_layers: decoder layers.
        num_heads: query heads a layer.
        num_key_value_heads: key-value heads a layer.
        num_parameters: in all.
        vocab_size: token ids are below this.
        context_tokens: prompt and completion together at most.
        has_chat_template: whether it takes messages.
        config_sha256: over what else decides numbers and tokens: config.json without names, versions and stored dtype,
            and the tokens that begin and end a text. Empty for a model that was not loaded from files.
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


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be explained."""

    info: ModelInfo
    family: Family
    runner: ModelRunner
    tokenizer: PreTrainedTokenizerBase
    encoder: TextEncoder
    end_ids: frozenset[int]


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
    progress: Progress = lambda stage: None,
) -> LoadedModel:
    """Load a decoder with its tokenizer.

    Args:
        name: a local folder or a hub id; None for the demo model.
        revision: the hub's branch, tag or commit.
        dtype: auto (float32 on a CPU, the checkpoint's own elsewhere), or a name of `DTYPES`.
        quantization: how weights are kept; what they are multiplied with has `dtype`.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1, ...
        device_map: accelerate's, such as auto or balanced, to spread a model over devices; not with `device`.
        ranks: processes that share the weights out, this one among them; each calls this alike.
        context_tokens: a smaller limit than the model's own.
        batch_invariant: whether no token's numbers may depend on what is computed beside it.
        progress: is told each stage as it begins.

    Raises:
        ModelLoadError: naming the file or setting that is at fault.
        UnsupportedModelError: for a family that cannot be explained exactly.
    """
    shown = DEMO_NAME if name is None else name  # not where it happens to lie on this machine
    name = str(DEMO_CHECKPOINT) if name is None else name
    if device_map is not None and device != "auto":
        raise ModelLoadError(f"give either a device ({device}) or a device map ({device_map}), not both")
    if ranks is not None:
        _check_ranks(device, device_map, quantization)
    check_checkpoint(name)
    torch_device = resolve_device(device)
    torch_dtype = _dtype(dtype, torch_device)
    _check_adapter(name, revision)
    with _explained(name, "model"):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    family = family_of(config.model_type)  # refused before its weights are read
    config_file = _found(name, CONFIG, revision)
    stored = {} if config_file is None else read_json(config_file)
    check_config(name, stored)
    if batch_invariant:
        own = _own_quantization(config)
        _check_batch_invariant(
            torch_device, torch_dtype, str(quantization) if own == "none" else own, device_map, ranks
        )
        _check_by_tokens(config, family)
    if ranks is not None:
        _check_shares(config, family, ranks.size)
    limit = context_limit(config)
    because = f": {limit.reason}" if limit.reason else ""
    if context_tokens is not None and not 2 <= context_tokens <= limit.num_tokens:
        raise ModelLoadError(
            f"a context of {context_tokens} tokens was asked for; the model takes 2 to {limit.num_tokens}{because}"
        )
    if because:
        progress(f"limiting the context to {limit.num_tokens} tokens{because}")
    progress(f"reading the tokenizer of {name}")
    tokenizer = _load_tokenizer(name, revision)
    progress(f"checking the weights of {name}")
    files = _weight_files(name, revision)
    weights_sha256 = _sha256_of_files(files)
    sha256_of_config = config_sha256(stored, _ends(name, revision, tokenizer))
    _check_size(name, config, files)
    if ranks is not None:
        same = {
            "weights": weights_sha256,
            "configurations": sha256_of_config,
            "tokenizers": _sha256_of_tokenizer(tokenizer),
            "chat templates": _sha256_of_text(tokenizer.chat_template),
            "dtypes": str(torch_dtype),
        }
        ranks.assert_equal(same | {f"versions of {name}": its for name, its in software_versions().items()})
    progress(f"loading {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB of weights")
    model = _load_weights(
        name,
        revision=revision,
        dtype=torch_dtype,
        quantization=quantization_config(quantization, torch_dtype),
        placement=device_map or {"": torch_device},
        ranks=ranks,
    )
    if ranks is None:  # with ranks, weights are never quantised
        check_gradients(model)
    progress("checking its attention against Transformers' own")
    return assemble(
        model,
        tokenizer,
        name=shown,
        revision=str(getattr(config, "_commit_hash", None) or ""),
        weights_sha256=weights_sha256,
        config_sha256=sha256_of_config,
        quantization=str(quantization) if quantization is not Quantization.NONE else _own_quantization(config),
        context_tokens=context_tokens,
        ranks=ranks,
        batch_invariant=batch_invariant,
    )


def _check_ranks(device: str, device_map: str | None, quantization: Quantization) -> None:
    """Refuse what does not go with several ranks.

    Raises:
        ModelLoadError: naming it.
    """
    if device_map is not None:
        raise ModelLoadError(f"ranks have a device each: give no device map ({device_map}) with tensor parallel")
    if device != "auto":
        raise ModelLoadError(f"ranks have a GPU each, or none: leave device at auto, not {device!r}")
    if quantization is not Quantization.NONE:
        raise ModelLoadError(f"weights in {quantization} are not shared out over ranks: give no quantize, or one rank")


def _check_batch_invariant(
    device: torch.device,
    dtype: torch.dtype | str,
    quantization: str,
    device_map: str | None,
    ranks: ProcessGroup | None,
) -> None:
    """Refuse what is not made sure to be the same beside any others.

    Raises:
        ModelLoadError: naming it.
    """
    wrong = None
    if device.type != "cpu" or device_map is not None:
        wrong = f"not on {device_map or device}"
    elif ranks is not None:
        wrong = "not with tensor parallel"
    elif quantization != Quantization.NONE:
        wrong = f"not with weights in {quantization}"
    elif dtype not in INVARIANT_DTYPES:
        wrong = f"not in {str(dtype).removeprefix('torch.')}"
    if wrong is not None:
        raise ModelLoadError(
            f"batch-invariant results come from a CPU in float32 or float64, {wrong}: leave the switch off, or give "
            "--device cpu --dtype float32 without quantised or shared weights"
        )


def _check_by_tokens(config: Any, family: Family) -> None:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """Refuse a model some of whose layers take tokens together.

    Raises:
        ModelLoadError: naming its family.
    """
    if not family.by_tokens or getattr(config.get_text_config(decoder=True), "final_logit_softcapping", None):
        raise ModelLoadError(
            f"the family {config.model_type} has no batch-invariant results: experts take the tokens of all requests "
            "together, or logits are squashed outside of any layer; leave the switch off"
        )


def _check_shares(config: Any, family: Family, size: int) -> None:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """Refuse a model that cannot be shared out evenly.

    Raises:
        ModelLoadError: saying by how many it can be.
    """
    text = config.get_text_config(decoder=True)
    if not family.shares:
        raise ModelLoadError(
            f"the family {config.model_type} cannot be shared out over ranks; use --device-map auto for a model larger "
            "than a GPU"
        )
    heads, groups = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if heads % size or groups % size:
        can = [number for number in range(2, groups + 1) if not (heads % number or groups % number)]
        listed = f"it can be shared out over {', '.join(map(str, can))}" if can else "it cannot be shared out"
        raise ModelLoadError(
            f"{heads} query heads and {groups} key-value heads do not divide by {size} ranks; {listed}"
        )


def assemble(
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
) -> LoadedModel:
    """Take over a model that is in memory, once its attention is found to be that of Transformers.

    Raises:
        ModelLoadError: where its logits are not finite.
        UnsupportedModelError: for a family that cannot be explained exactly.
    """
    config = model.config.get_text_config(decoder=True)
    family = family_of(model.config.model_type)
    num_parameters = int(model.num_parameters())  # of all ranks together, as long as Transformers counts their shares
    runner = _checked_runner(model, ranks, batch_invariant=batch_invariant)
    num_heads = int(config.num_attention_heads)
    info = ModelInfo(
        name=name,
        revision=revision,
        family=model.config.model_type,
        weights_sha256=weights_sha256,
        tokenizer_sha256=_sha256_of_tokenizer(tokenizer),
        chat_template_sha256=_sha256_of_text(tokenizer.chat_template),
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
        config_sha256=config_sha256,
    )
    return LoadedModel(info, family, runner, tokenizer, TextEncoder(tokenizer), _end_ids(model, tokenizer))


def _devices(model: PreTrainedModel, ranks: ProcessGroup | None) -> str:
    """Where its weights lie."""
    own = ",".join(sorted({str(parameter.device) for parameter in model.parameters()}))
    return own if ranks is None else f"{own.partition(':')[0]} of {ranks.size} ranks"


def _own_quantization(config: Any) -> str:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """How a checkpoint's own weights are quantised, as its configuration calls it; none where they are not."""
    its: Any = getattr(config, "quantization_config", None)
    method = its.get("quant_method") if isinstance(its, dict) else getattr(its, "quant_method", None)
    return str(Quantization.NONE) if its is None else str(getattr(method, "value", method))


def software_versions() -> dict[str, str]:
    """Versions of the packages whose arithmetic and tokens decide the results."""
    import tokenizers

    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def resolve_device(name: str) -> torch.device:
    """The device of a name; auto is a GPU where there is one.

    Raises:
        ModelLoadError: where it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ModelLoadError(f"device {name!r} cannot be used: {one_line(error)}") from error
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if name not in DTYPES:
        raise ModelLoadError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


@contextmanager
def _explained(name: str, part: str) -> Iterator[None]:
    """Turn what Transformers raises for a part of a model that is not there or not whole into one line.

    Its own notices stay off standard error.
    """
    try:
        with quiet_transformers():
            yield
    except Exception as error:  # it depends on the files' content
        if Path(name).exists():
            raise ModelLoadError(f"{name} holds no {part} that Transformers can read: {one_line(error)}") from error
        raise ModelLoadError(
            f"{name!r} is neither a folder here nor a model that the hub gives out: {one_line(error)}"
        ) from error


def _found(name: str, file: str, revision: str | None) -> Path | None:
    """Where one of a model's files lies; None where it has none."""
    path = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def _check_adapter(name: str, revision: str | None) -> None:
    """Refuse an adapter of the hub: Transformers would load its base model, and perhaps the adapter.

    Raises:
        ModelLoadError: with what to do.
    """
    if Path(name).exists():
        return  # check_checkpoint has looked
    with _explained(name, "model"):
        found = _found(name, ADAPTER_FILES[0], revision)
    if found is not None:
        raise ModelLoadError(f"{name} is an adapter, or holds one ({ADAPTER_FILES[0]}); {MERGE}")


def _load_tokenizer(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer that the model was trained with: what tokenizer.json says, where there is one.

    Transformers builds some tokenizers by the class that tokenizer_config.json names, and takes from tokenizer.json
    only its vocabulary: another class splits texts otherwise, and the model then reads tokens that it was not trained
    on. The file is preferred to the class's name.

    Raises:
        ModelLoadError: where there is none, or it does not do what tokenizer.json says.
    """
    with _explained(name, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
        file = _found(name, TOKENIZER, revision)
        if file is not None:
            stored = Tokenizer.from_file(str(file))
            if not tokenizer.is_fast or difference_from(stored, tokenizer) is not None:
                own: Any = PreTrainedTokenizerFast.from_pretrained(name, revision=revision, trust_remote_code=False)
                tokenizer = tokenizer_from_file(stored, own, tokenizer)
    if not tokenizer.is_fast:
        raise ModelLoadError(f"{name} has no tokenizer.json; without it, tokens cannot be placed in the text")
    if file is not None and (difference := difference_from(stored, tokenizer)) is not None:
        raise ModelLoadError(
            f"{name}: no tokenizer of tokenizer_config.json's settings does what {TOKENIZER} says: {difference}; the "
            "two files do not belong together: take both from the model that this one was made from"
        )
    return tokenizer


def _ends(name: str, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What begins and ends a text, as files beside config.json and tokenizer.json say it."""
    file = _found(name, "generation_config.json", revision)
    generation = {} if file is None else read_json(file)
    return {
        "generation": generation.get("eos_token_id"),
        "begin": tokenizer.bos_token,  # chat templates write it
        "end": tokenizer.eos_token,
    }


def _weight_files(name: str, revision: str | None) -> list[Path]:
    """The checkpoint's weight files, each one whole.

    Raises:
        ModelLoadError: where there is none in safetensors, or one is cut off or corrupt.
    """
    with _explained(name, "weights"):
        index, single = (_found(name, file, revision) for file in (INDEX, WEIGHTS))
    names = [] if index is None else _shards(index)
    if single is not None:
        with _explained(name, "weights"):
            others = [file for file in names if file != WEIGHTS and _found(name, file, revision) is not None]
        if others:
            raise ModelLoadError(
                f"{name} holds two sets of weights: {WEIGHTS}, and {', '.join(others[:3])}, which {INDEX} names; take "
                "out those that are not meant"
            )
        files = [single]
    elif index is not None:
        with _explained(name, "weights"):
            placed = [(file, _found(name, file, revision)) for file in names]
        missing = [file for file, path in placed if path is None]
        if missing:
            raise ModelLoadError(f"{name} lacks {', '.join(missing)}, which {index.name} names")
        files = [path for _, path in placed if path is not None]
    else:
        raise ModelLoadError(f"{name} has no {WEIGHTS}; weights in other formats are not loaded")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{file} is corrupt or cut off: {one_line(error)}") from error
    return files


def _shards(index: Path) -> list[str]:
    """The files that an index names.

    Raises:
        ModelLoadError: where it is no index.
    """
    try:
        return sorted({str(file) for file in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ModelLoadError(f"{index} is corrupt: {one_line(error)}") from error


def _check_size(name: str, config: Any, files: list[Path]) -> None:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """Refuse a configuration of a model far larger than its weights, before memory is taken for what is not there.

    Raises:
        ModelLoadError: with both sizes.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # packed: elements of its files are not the model's
    try:
        with torch.device("meta"):
            described = AutoModelForCausalLM.from_config(config).num_parameters()
    except Exception as error:  # whatever a configuration's content makes Transformers raise
        raise ModelLoadError(f"{name} cannot be loaded: {one_line(error)}") from error
    held = 0
    for file in files:
        with safe_open(file, framework="pt") as opened:
            held += sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118 (no dict)
    if described > 2 * held:
        raise ModelLoadError(
            f"{name}: config.json describes {described:,} parameters, the weight files hold {held:,}: "
            "they do not belong together"
        )


def _load_weights(
    name: str,
    *,
    revision: str | None,
    dtype: torch.dtype | str,
    quantization: Any,  # noqa: ANN401 (Transformers' configuration of it)
    placement: str | dict[str, torch.device],
    ranks: ProcessGroup | None,
) -> PreTrainedModel:
    where: dict[str, Any] = {"device_map": placement}
    if ranks is not None:
        from transformers.distributed import DistributedConfig

        where = {"distributed_config": DistributedConfig(tp_size=ranks.size, tp_plan="auto")}
    try:
        with quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                name,
                revision=revision,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, and refused by name
                quantization_config=quantization,
                **where,
            )
    except Exception as error:  # whatever a checkpoint's content makes Transformers, safetensors or accelerate raise
        raise ModelLoadError(f"{name} cannot be loaded: {one_line(error)}") from error
    # Transformers fills what it does not find with random numbers and only warns.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelLoadError(f"{name}: {len(missing)} weights are missing, among them {', '.join(missing[:3])}")
    mismatched = sorted((key, list(found), list(wanted)) for key, found, wanted in report["mismatched_keys"])
    if mismatched:
        key, found, wanted = mismatched[0]
        raise ModelLoadError(
            f"{name}: {len(mismatched)} weights have another shape than config.json says, among them {key} "
            f"with {found} instead of {wanted}"
        )
    unexpected = sorted(key for key in report["unexpected_keys"] if not _HARMLESS.search(key))
    if unexpected:
        raise ModelLoadError(
            f"{name}: the weight files hold {len(unexpected)} weights that config.json does not describe, among them "
            f"{', '.join(unexpected[:3])}; without them it would be another model: {_hint(unexpected, model.config)}"
        )
    if model.config.get_text_config(decoder=True).tie_word_embeddings and _has_head_of_its_own(model):
        raise ModelLoadError(
            f"{name}: config.json says tie_word_embeddings, and the weight files hold a language-model head that is "
            "not the embedding; set tie_word_embeddings to false if that head is meant, else take it out"
        )
    loaded: PreTrainedModel = model
    return loaded


# Buffers of old checkpoints that hold no weight and that Transformers' own list of them lacks: a constant of GPT-2's
# mask. (Transformers leaves out of its report what a family's _keys_to_ignore_on_load_unexpected names.)
_HARMLESS = re.compile(r"\.attn\.masked_bias$")


def _hint(unexpected: Sequence[str], config: Any) -> str:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """Which setting of config.json may be wrong, where weights are left over."""
    text = config.get_text_config(decoder=True)
    layers = [int(found[1]) for key in unexpected if (found := re.search(r"\b(?:layers|h)\.(\d+)\.", key))]
    if layers and max(layers) >= (count := text.num_hidden_layers):
        return f"num_hidden_layers is {count}, and they hold layer {max(layers)}"
    said = [
        f"{name} is {json.dumps(getattr(text, name))}"
        for name in ("attention_bias", "mlp_bias", "use_bias", "use_qkv_bias", "qk_layernorm", "use_qk_norm")
        if getattr(text, name, None) is False
    ]
    return f"{', '.join(said) or 'config.json'} may be of another model; take both from where the model came from"


def _has_head_of_its_own(model: PreTrainedModel) -> bool:
    """Whether Transformers found a head that differs from the embedding that it should be tied to."""
    keys: Any = getattr(type(model), "_tied_weights_keys", None)
    return bool(keys) and not model.all_tied_weights_keys


CHECK_TOKENS = 6
CHECK_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


def _checked_runner(model: PreTrainedModel, ranks: ProcessGroup | None, *, batch_invariant: bool) -> ModelRunner:
    """Our decoder over the model, if its logits for a few tokens are those of Transformers' eager attention.

    A family's table row rests on tests with tiny models; this looks at the model itself. Where rotary factors depend on
    a sequence's length, the tokens are also those of a long sequence, beside the short one.
    """
    ids = torch.arange(CHECK_TOKENS) % model.config.get_text_config(decoder=True).vocab_size
    model.eval()
    model.set_attn_implementation("eager")
    if model.dtype is torch.float64:
        with suppress(ValueError):  # it has no experts
            model.set_experts_implementation("eager")  # other ways to multiply with them take float32 at most
    switch = switch_tokens(model.config)
    kinds = [False] if switch is None else [False, True]
    with _of_a_dtype(model) if ranks is None else nullcontext():  # errors of a group of ranks are of many kinds
        with torch.no_grad():
            expected = torch.stack([_own_logits(model, ids, switch if is_long else None) for is_long in kinds])
        runner = ModelRunner(model, ranks, batch_invariant=batch_invariant)
        runner.allocate_pool(len(kinds) * (CHECK_TOKENS + SLOT_ALIGNMENT))
        slots = [runner.pool.allocate_probe(CHECK_TOKENS, is_long=is_long) for is_long in kinds]
        *first, last = ids.tolist()
        for piece in (first[:2], first[2:]):
            runner.read([SequenceChunk.new(slot, piece) for slot in slots])
        actual = runner.step([SequenceChunk.new(slot, [last]) for slot in slots]).float()
    if not expected.isfinite().all():
        raise ModelLoadError("the model's logits are not finite: its weights are damaged, or its dtype overflows")
    error = ((actual - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)).max().item()
    if not error <= CHECK_TOLERANCE[model.dtype]:
        raise UnsupportedModelError(
            f"{type(model).__name__}: logits differ from Transformers' own attention by {error:.2g} (relative)"
        )
    if batch_invariant and is_batch_variant(runner, model.config.get_text_config(decoder=True).vocab_size):
        raise UnsupportedModelError(
            f"{type(model).__name__}: on this processor a token's numbers are others beside other tokens, whatever was "
            "tried; leave batch-invariant results off"
        )
    return runner


@contextmanager
def _of_a_dtype(model: PreTrainedModel) -> Iterator[None]:
    """While the model computes for the first time: operations that do not take numbers of its dtype are one line.

    Raises:
        ModelLoadError: with its family and dtype.
    """
    try:
        yield
    except RuntimeError as error:  # torch has no narrower one
        if is_out_of_memory(error):
            raise
        dtype = str(model.dtype).removeprefix("torch.")
        raise ModelLoadError(
            f"the family {model.config.model_type} cannot be computed in {dtype} on {model.device}: {one_line(error)}; "
            "choose another --dtype, such as float32 or bfloat16"
        ) from error


def _own_logits(model: PreTrainedModel, ids: Tensor, position: int | None) -> Tensor:
    """Transformers' logits after some tokens, in float32; with another one behind them at `position`, if any. [V]

    Its place is all that it matters for: it makes the sequence a long one, and is not seen by those before it.
    """
    positions = torch.arange(len(ids))
    if position is not None:
        ids, positions = torch.cat((ids, ids[:1])), torch.cat((positions, torch.tensor([position])))
    given, at = (each[None].to(model.device) for each in (ids, positions))
    logits: Tensor = model(input_ids=given, position_ids=at, use_cache=False).logits
    return logits[0, CHECK_TOKENS - 1].float()


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a turn."""
    generation: Any = model.generation_config
    given = None if generation is None else generation.eos_token_id
    ids = given if isinstance(given, list) else [given]
    ids = [token_id for token_id in (*ids, tokenizer.eos_token_id) if token_id is not None]
    if not all(isinstance(token_id, int) for token_id in ids):
        raise ModelLoadError(f"the end-of-text tokens of generation_config.json are no token ids: {given!r}")
    return frozenset(ids)


def _sha256_of_files(files: list[Path]) -> str:
    """One hash over the files' own hashes and names: the same however they are split into reads."""
    files = sorted(files, key=lambda file: file.name)
    with ThreadPoolExecutor(max(1, min(len(files), available_cpus()))) as threads:  # hashing holds up no other thread
        hashes = list(threads.map(_sha256_of_file, files))
    lines = (f"{file.name} {its}\n" for file, its in zip(files, hashes, strict=True))
    return _sha256_of_text("".join(lines))


def _sha256_of_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sha256_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    return _sha256_of_text(tokenizer.backend_tokenizer.to_str())


def _sha256_of_text(text: Any) -> str:  # noqa: ANN401 (a template may be a text, several by name, or none)
    if not text:
        return ""
    canonical = text if isinstance(text, str) else json.dumps(text, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
