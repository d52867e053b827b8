"""Reads a checkpoint: its weight files, their hashes and sizes, its weights and its tokenizer.

Safetensors only, no remote code. Every error names the file or the weight at fault.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from gradellm_engine.distributed.process_group import ProcessGroup
from gradellm_engine.errors import ModelLoadError, one_line
from gradellm_engine.model.checkpoint_check import ADAPTER_FILES, INDEX, MERGE, TOKENIZER, WEIGHTS, read_json
from gradellm_engine.tokenization.tokenizer_check import difference_from, tokenizer_from_file
from gradellm_engine.utils.quiet import quiet_transformers
from gradellm_engine.utils.threads import available_cpus

# Buffers of old checkpoints that hold no weight, and that Transformers' own list of them lacks: a constant of GPT-2's
# mask. (Transformers leaves out of its report what a family's _keys_to_ignore_on_load_unexpected names.)
_HARMLESS = re.compile(r"\.attn\.masked_bias$")


@contextmanager
def as_load_error(name: str, part: str) -> Iterator[None]:
    """Turn an error of Transformers about a part of a model, such as its tokenizer, into one line.

    Transformers' own notices stay off standard error meanwhile.

    Raises:
        ModelLoadError: for any error within the context.
    """
    try:
        with quiet_transformers():
            yield
    except Exception as error:  # its class depends on the files' content
        if Path(name).exists():
            raise ModelLoadError(f"{name} holds no {part} that Transformers can read: {one_line(error)}") from error
        raise ModelLoadError(
            f"{name!r} is neither a local folder nor a model that the hub provides: {one_line(error)}"
        ) from error


def find_file(name: str, file: str, revision: str | None) -> Path | None:
    """The local path of one of a model's files, downloaded if need be; None if the model has no such file."""
    path = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def check_adapter(name: str, revision: str | None) -> None:
    """Refuse an adapter on the hub: Transformers would load its base model, and perhaps the adapter.

    Raises:
        ModelLoadError: with what to do.
    """
    if Path(name).exists():
        return  # `check_checkpoint` has checked the folder
    with as_load_error(name, "model"):
        found = find_file(name, ADAPTER_FILES[0], revision)
    if found is not None:
        raise ModelLoadError(f"{name} is an adapter, or holds one ({ADAPTER_FILES[0]}); {MERGE}")


def load_tokenizer(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer that the model was trained with: that of tokenizer.json, where there is one.

    Transformers builds some tokenizers by the class that tokenizer_config.json names, and takes only the vocabulary
    from tokenizer.json. Another class splits texts differently, so that the model reads tokens that it was not trained
    on; the file therefore has precedence over the class's name.

    Raises:
        ModelLoadError: if there is no tokenizer, or it tokenizes differently from tokenizer.json.
    """
    with as_load_error(name, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
        file = find_file(name, TOKENIZER, revision)
        if file is not None:
            stored = Tokenizer.from_file(str(file))
            if not tokenizer.is_fast or difference_from(stored, tokenizer) is not None:
                generic: Any = PreTrainedTokenizerFast.from_pretrained(name, revision=revision, trust_remote_code=False)
                tokenizer = tokenizer_from_file(stored, generic, tokenizer)
    if not tokenizer.is_fast:
        raise ModelLoadError(f"{name} has no tokenizer.json; without it, tokens cannot be located in the text")
    if file is not None and (difference := difference_from(stored, tokenizer)) is not None:
        raise ModelLoadError(
            f"{name}: no tokenizer with the settings of tokenizer_config.json matches {TOKENIZER}: {difference}; the "
            "two files do not belong together: take both from the original model"
        )
    return tokenizer


def text_ends(name: str, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokens that begin and end a text, from generation_config.json and the tokenizer; for the config's hash."""
    file = find_file(name, "generation_config.json", revision)
    generation = {} if file is None else read_json(file)
    return {
        "generation": generation.get("eos_token_id"),
        "begin": tokenizer.bos_token,  # chat templates write it
        "end": tokenizer.eos_token,
    }


def weight_files(name: str, revision: str | None) -> list[Path]:
    """The paths of the checkpoint's weight files, each of which safetensors can open.

    Raises:
        ModelLoadError: if there are no safetensors files, some are missing, or one is truncated or corrupt.
    """
    with as_load_error(name, "weights"):
        index, single = (find_file(name, file, revision) for file in (INDEX, WEIGHTS))
    if single is not None:
        if index is not None:
            _check_one_set(name, _shards(index), revision)
        files = [single]
    elif index is not None:
        shards = _shards(index)
        with as_load_error(name, "weights"):
            paths = [(file, find_file(name, file, revision)) for file in shards]
        missing = [file for file, path in paths if path is None]
        if missing:
            raise ModelLoadError(f"{name} lacks {', '.join(missing)}, which {index.name} names")
        files = [path for _, path in paths if path is not None]
    else:
        raise ModelLoadError(f"{name} has no {WEIGHTS}; weights in other formats are not loaded")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{file} is corrupt or cut off: {one_line(error)}") from error
    return files


def _check_one_set(name: str, shards: Sequence[str], revision: str | None) -> None:
    """Refuse a single weight file together with shards: it is unclear which of the two is meant.

    Raises:
        ModelLoadError: naming the shards.
    """
    with as_load_error(name, "weights"):
        present = [file for file in shards if file != WEIGHTS and find_file(name, file, revision) is not None]
    if present:
        raise ModelLoadError(
            f"{name} holds two sets of weights: {WEIGHTS}, and {', '.join(present[:3])}, which {INDEX} names; remove "
            "the set that is not meant"
        )


def _shards(index: Path) -> list[str]:
    """The files that an index names.

    Raises:
        ModelLoadError: if it is not an index.
    """
    try:
        return sorted({str(file) for file in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ModelLoadError(f"{index} is corrupt: {one_line(error)}") from error


def check_size(name: str, config: Any, files: list[Path]) -> None:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """Refuse a configuration that describes far more parameters than the files hold, before they are allocated.

    Raises:
        ModelLoadError: with both numbers.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # packed weights: the files' elements are not parameters
    try:
        with torch.device("meta"):
            described = AutoModelForCausalLM.from_config(config).num_parameters()
    except Exception as error:  # its class depends on the configuration's content
        raise ModelLoadError(f"{name} cannot be loaded: {one_line(error)}") from error
    held = num_elements(files)
    if described > 2 * held:
        raise ModelLoadError(
            f"{name}: config.json describes {described:,} parameters, the weight files hold {held:,}: "
            "they do not belong together"
        )


def num_elements(files: list[Path]) -> int:
    """Numbers in all tensors of weight files."""
    held = 0
    for file in files:
        with safe_open(file, framework="pt") as opened:
            held += sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118 (no dict)
    return held


def load_weights(
    name: str,
    *,
    revision: str | None,
    dtype: torch.dtype | str,
    quantization: Any,  # noqa: ANN401 (a Transformers QuantizationConfig)
    placement: str | dict[str, torch.device],
    ranks: ProcessGroup | None,
) -> PreTrainedModel:
    """The model with its weights.

    Args:
        name: a local folder or a hub id.
        revision: the hub's branch, tag or commit.
        dtype: of the weights.
        quantization: how Transformers quantises them; None for not.
        placement: a device map, without `ranks`.
        ranks: the tensor-parallel process group.

    Raises:
        ModelLoadError: if the files and the configuration do not describe the same weights.
    """
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
                ignore_mismatched_sizes=True,  # the report has them, and they are refused by name
                quantization_config=quantization,
                **where,
            )
    except Exception as error:  # of any class, from Transformers, safetensors or accelerate
        raise ModelLoadError(f"{name} cannot be loaded: {one_line(error)}") from error
    _check_report(name, report, model)
    loaded: PreTrainedModel = model
    return loaded


def _check_report(name: str, report: dict[str, Any], model: PreTrainedModel) -> None:
    """Refuse what Transformers only warns of: it initialises missing weights at random, and drops unexpected ones.

    Raises:
        ModelLoadError: naming the weights.
    """
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
    if model.config.get_text_config(decoder=True).tie_word_embeddings and _has_untied_head(model):
        raise ModelLoadError(
            f"{name}: config.json says tie_word_embeddings, and the weight files hold a language-model head that is "
            "not the embedding; set tie_word_embeddings to false if that head is meant, else remove it"
        )


def _hint(unexpected: Sequence[str], config: Any) -> str:  # noqa: ANN401 (Transformers' PretrainedConfig)
    """Which setting of config.json may be wrong, given the weights that it does not describe."""
    text = config.get_text_config(decoder=True)
    layers = [int(found[1]) for key in unexpected if (found := re.search(r"\b(?:layers|h)\.(\d+)\.", key))]
    if layers and max(layers) >= (count := text.num_hidden_layers):
        return f"num_hidden_layers is {count}, and they hold layer {max(layers)}"
    disabled = [
        f"{name} is {json.dumps(getattr(text, name))}"
        for name in ("attention_bias", "mlp_bias", "use_bias", "use_qkv_bias", "qk_layernorm", "use_qk_norm")
        if getattr(text, name, None) is False
    ]
    return f"{', '.join(disabled) or 'config.json'} may be of another model; take both from the original model"


def _has_untied_head(model: PreTrainedModel) -> bool:
    """Whether Transformers found a head that differs from the embedding that it should be tied to."""
    keys: Any = getattr(type(model), "_tied_weights_keys", None)
    return bool(keys) and not model.all_tied_weights_keys


def sha256_of_files(files: list[Path]) -> str:
    """One hash over the files' own hashes and names, in the order of their names."""
    files = sorted(files, key=lambda file: file.name)
    with ThreadPoolExecutor(max(1, min(len(files), available_cpus()))) as threads:  # hashlib releases the GIL
        hashes = list(threads.map(_sha256_of_file, files))
    return sha256_of_text("".join(f"{file.name} {digest}\n" for file, digest in zip(files, hashes, strict=True)))


def _sha256_of_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sha256_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the tokenizer's serialisation."""
    return sha256_of_text(tokenizer.backend_tokenizer.to_str())


def sha256_of_text(text: Any) -> str:  # noqa: ANN401 (a chat template is a string, a dict of strings, or None)
    """A hash of a text, or of the JSON of what is none; empty for an empty or missing one."""
    if not text:
        return ""
    canonical = text if isinstance(text, str) else json.dumps(text, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
