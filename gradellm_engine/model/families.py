"""The decoder families that the engine explains exactly, as a table.

A family is supported if its attention goes through Transformers' AttentionInterface in every layer and a test compares
its scores with the oracle's. Properties that differ between families are columns. Unsupported families fail at load,
because a partial attribution cannot be distinguished from a correct one.

A family's name is the `model_type` of its configuration. The test is `tests/engine/model/test_families.py`, on the tiny
model that `tests/support/tiny_models.py` has of each family.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradellm_engine.errors import UnsupportedModelError


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        rotary: whether all attention modules take rotary embeddings as `position_embeddings`, which the unrotated
            similarities of Grad-ELLM need.
        gates: the layers whose outputs are multiplied with each other, as gate and value of a feed-forward block; empty
            for a block without a gate, None where the layers cannot be found from outside (experts). For relevance.
        supports_tensor_parallel: whether Transformers' tensor-parallel plan keeps explanations exact.
        supports_batch_invariance: whether all layers but attention can be computed batch-invariantly; not where experts
            process the tokens of a batch together, or logits are soft-capped outside of any layer.
    """

    rotary: bool = True
    gates: tuple[str, ...] | None = ("gate_proj", "up_proj")
    supports_tensor_parallel: bool = True
    supports_batch_invariance: bool = True


_FUSED, _UNGATED, _EXPERTS = ("gate_up_proj",), (), None

FAMILIES: dict[str, Family] = {
    # Tensor parallelism would split heads that cohere's norms of queries and keys need whole.
    "cohere": Family(supports_tensor_parallel=False),
    "cohere2": Family(rotary=False),  # as smollm3
    # deepseek_v3 rotates a part of the keys, which it keeps separate until then.
    "deepseek_v3": Family(rotary=False, gates=_EXPERTS, supports_batch_invariance=False),
    "gemma": Family(),
    "gemma2": Family(supports_batch_invariance=False),
    "gemma3_text": Family(),
    "glm": Family(gates=_FUSED),
    "glm4": Family(gates=_FUSED),
    "gpt2": Family(rotary=False, gates=_UNGATED, supports_tensor_parallel=False),
    "gpt_neox": Family(gates=_UNGATED),
    "gpt_oss": Family(gates=_EXPERTS, supports_batch_invariance=False),
    "granite": Family(),
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(gates=_EXPERTS, supports_batch_invariance=False),
    "olmo2": Family(),
    "opt": Family(rotary=False, gates=_UNGATED, supports_tensor_parallel=False),
    "phi": Family(gates=_UNGATED),
    "phi3": Family(gates=_FUSED),
    "qwen2": Family(),
    "qwen3": Family(),
    "qwen3_moe": Family(gates=_EXPERTS, supports_batch_invariance=False),
    "smollm3": Family(rotary=False),  # some layers have no rotary embedding
    "stablelm": Family(supports_tensor_parallel=False),
    "starcoder2": Family(gates=_UNGATED),
}

_OWN_ATTENTION = "its attention does not go through Transformers' AttentionInterface, so its gradients cannot be read"
_LINEAR_LAYERS = "it has layers without softmax attention, for which the method is not defined"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("falcon", "bloom", "mpt", "gptj", "gpt_neo", "codegen", "xglm"), _OWN_ATTENTION),
    **dict.fromkeys(
        (
            "mamba",
            "mamba2",
            "rwkv",
            "xlstm",
            "jamba",
            "bamba",
            "falcon_h1",
            "zamba",
            "zamba2",
            "nemotron_h",
            "qwen3_next",
        ),
        _LINEAR_LAYERS,
    ),
}


def family_of(model_type: str) -> Family:
    """The row of a model type.

    Raises:
        UnsupportedModelError: with the reason, for a family without a row.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = REFUSED.get(model_type, "no test shows that the engine explains it exactly")
    raise UnsupportedModelError(
        f"the model family {model_type!r} is not supported: {reason}. Supported families: {', '.join(FAMILIES)}"
    )
