"""The sampling of a Generate request that is resumed on another server: as the first one resolved it."""

from __future__ import annotations

from gradellm.v1 import explainer_pb2 as pb

__all__ = ["copy_sampling", "ignored_fields"]

_ALWAYS_SET = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop")  # by servers of any age


def copy_sampling(sampling: pb.Sampling, request: pb.GenerateRequest) -> None:
    """Set every field of a request that the settings have: servers may have other defaults."""
    for name in _ALWAYS_SET[:-1]:
        setattr(request, name, getattr(sampling, name))
    for repeated in ("stop", "stop_token_ids", "logit_bias"):
        request.ClearField(repeated)
    request.stop.extend(sampling.stop)
    request.stop_token_ids.extend(sampling.stop_token_ids)
    request.logit_bias.update(sampling.logit_bias)
    for field, value in sampling.ListFields():  # optional ones with a value of 0, too
        if field.name not in (*_ALWAYS_SET, "stop_token_ids", "logit_bias"):
            setattr(request, field.name, value)


def ignored_fields(sent: pb.GenerateRequest, used: pb.Sampling) -> list[str]:
    """Return the fields of sampling that a request sets, and its server, which is older, has not read."""
    sent_names, used_names = ({field.name for field, _ in message.ListFields()} for message in (sent, used))
    newer = [name for name in pb.Sampling.DESCRIPTOR.fields_by_name if name not in _ALWAYS_SET]
    return [name for name in newer if name in sent_names - used_names]
