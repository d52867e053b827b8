"""The response of GetServerInfo: model, methods, limits, versions and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradellm.v1 import explainer_pb2 as pb
from gradellm_engine import MAX_EVALUATION_SEQUENCES, MAX_EVALUATION_STEP_TOKENS, METHODS, Engine, Method
from gradellm_server.rpc.settings_to_wire import model_info, versions
from gradellm_server.rpc.wire_enums import PRESET_NUMBERS

ESTIMATE_PROMPT_TOKENS, ESTIMATE_NEW_TOKENS = 256, 32  # of the request whose cost is estimated for each method


def server_info(engine: Engine, limits: Mapping[str, Any], default_preset: str) -> pb.GetServerInfoResponse:
    """Describe what is served; `limits` are the server's, in addition to the engine's."""
    memory = engine.memory
    return pb.GetServerInfoResponse(
        model=model_info(engine),
        methods=[_method_info(method, engine) for method in METHODS.values()],
        limits=pb.Limits(
            max_prompt_tokens=engine.max_prompt_tokens,
            max_new_tokens=engine.max_new_tokens,
            max_prompt_characters=engine.prompt_limits.characters,
            max_messages=engine.prompt_limits.messages,
            max_segments=engine.prompt_limits.segments,
            max_gap_seconds=engine.scheduler.max_gap,
            kv_bytes=engine.kv_bytes,
            kv_tokens=engine.kv_tokens,
            method_bytes=engine.method_bytes,
            max_evaluation_sequences=MAX_EVALUATION_SEQUENCES,
            max_evaluation_step_tokens=MAX_EVALUATION_STEP_TOKENS,
            **limits,
        ),
        versions=versions(),
        default_attribution=PRESET_NUMBERS[default_preset],
        recommended_preset=PRESET_NUMBERS[engine.concrete_preset("recommended")],
        memory=pb.Memory(
            limit_bytes=memory.limit or 0,
            weights_bytes=memory.weights,
            packed_weights_bytes=memory.packed_weights,
            kv_cache_bytes=memory.kv_cache,
            method_bytes=memory.methods,
            resident_bytes=memory.resident,
        ),
    )


def _method_info(method: Method, engine: Engine) -> pb.MethodInfo:
    estimate = engine.estimate(method.switches(), ESTIMATE_PROMPT_TOKENS, ESTIMATE_NEW_TOKENS)
    return pb.MethodInfo(
        name=method.name,
        description=method.description,
        streams=method.streams,
        switches=method.switch_names,
        forward_passes=str(method.cost.forward),
        backward_passes=str(method.cost.backward),
        reads_completion_alone=method.cost.completion_only,
        has_target=method.has_target,
        error=method.error,
        refusal=engine.refusal(method),
        estimate=pb.Estimate(
            prompt_tokens=ESTIMATE_PROMPT_TOKENS,
            completion_tokens=ESTIMATE_NEW_TOKENS,
            seconds=estimate.seconds,
            bytes=estimate.bytes,
        ),
    )
