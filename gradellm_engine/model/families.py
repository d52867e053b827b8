"""Which decoder families the engine explains exactly, as a table.

A family belongs here when its attention goes through Transformers' AttentionInterface in every layer and a test
compares it with the oracle. What a family needs beyond the general path is a column. Everything else is refused by
name at load: half an explanation looks like a whole one.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradellm_engine.errors import UnsupportedModelError


@dataclass(frozen=True)
class Family:
    """One row.

    Attributes:
        rotary: whether its attention modules take rotary embeddings as `position_embeddings`, as the `rotary` switch
            needs.
        gates: the layers whose outputs are multiplied with each other, as gate and value of a feed-forward block; none
            where it has no gate, None where they cannot be told apart from outside (experts), for relevance.
        shares: whether Transformers' plan shares it out over ranks so that its explanations stay exact.
        by_tokens: whether all its layers but attention can be computed so that a token's numbers do not depend on what
            tokens are beside it; not where experts take them together, or logits are squashed outside of any layer.
    """

    rotary: bool = True
    gates: tuple[str, ...] | None = ("gate_proj", "up_proj")
    shares: bool = True
    by_tokens: bool = True


_FUSED, _UNGATED, _EXPERTS = ("gate_up_proj",), (), None

FAMILIES: dict[str, Family] = {
    "cohere": Family(shares=False),  # the plan would split heads that its norms of queries and keys need whole
    "cohere2": Family(rotary=False),  # as smollm3
    # It rotates a part of its keys that it keeps apart until then.
    "deepseek_v3": Family(rotary=False, gates=_EXPERTS, by_tokens=False),
    "gemma": Family(),
    "gemma2": Family(by_tokens=False),
    "gemma3_text": Family(),
    "glm": Family(gates=_FUSED),
    "glm4": Family(gates=_FUSED),
    "gpt2": Family(rotary=False, gates=_UNGATED, shares=False),
    "gpt_neox": Family(gates=_UNGATED),
    "gpt_oss": Family(gates=_EXPERTS, by_tokens=False),
    "granite": Family(),
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(gates=_EXPERTS, by_tokens=False),
    "olmo2": Family(),
    "opt": Family(rotary=False, gates=_UNGATED, shares=False),
    "phi": Family(gates=_UNGATED),
    "phi3": Family(gates=_FUSED),
    "qwen2": Family(),
    "qwen3": Family(),
    "qwen3_moe": Family(gates=_EXPERTS, by_tokens=False),
    "smollm3": Family(rotary=False),  # some of its layers have no rotary embedding at all
    "stablelm": Family(shares=False),
    "starcoder2": Family(gates=_UNGATED),
}

_OWN_ATTENTION = "its attention does not go through Transformers' AttentionInterface, so its gradients cannot be read"
_LINEAR_LAYERS = "it has layers without softmax attention, which the method does not define"
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
        UnsupportedModelError: for a family without one, with the reason.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    reason = REFUSED.get(model_type, "no test shows that the engine explains it exactly")
    raise UnsupportedModelError(
        f"the model family {model_type!r} is not supported: {reason}. Supported families: {', '.join(FAMILIES)}"
    )
