"""Compares model, versions and settings."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gradellm.explanation.verification.fields import is_unset
from gradellm.explanation.verification.verdict import Mismatch
from gradellm.models import AttributionSettings, ModelInfo

if TYPE_CHECKING:
    from gradellm.explanation.explanation import Explanation
    from gradellm.explanation.verification.verdict import Findings
    from gradellm.models import Provenance

__all__ = ["mismatches", "other_model"]

_IDENTITY = {"weights_sha256": "weights", "config_sha256": "configuration"}
"""The fields of `ModelInfo` that identify a model, with their names in messages; the others say how it is served."""
_DELIVERY = ("delivery", "chunk_size")
_NOT_COMPARED = ("sources", "resolution", "top_k_sources", "preset", *_DELIVERY)


def other_model(stored: Explanation, now: ModelInfo) -> str:
    """Return how a server's model differs from the explanation's; empty if it is the same model."""
    then = stored.provenance.model
    for name, title in _IDENTITY.items():
        was, is_now = getattr(then, name), getattr(now, name)
        if was != is_now and (name == "weights_sha256" or (was and is_now)):  # older files have no config_sha256
            return (
                f"the server hosts another model, {now.name} ({title} {is_now[:12] or 'unknown'}); the explanation is "
                f"of {then.name} ({title} {was[:12] or 'unknown'})"
            )
    return ""


def mismatches(then: Provenance, now: Provenance, findings: Findings) -> tuple[Mismatch, ...]:
    """Return the fields of the provenance that differ."""
    pairs = [
        (f"model.{field.name}", getattr(then.model, field.name), getattr(now.model, field.name))
        for field in fields(ModelInfo)
        if not _is_skipped(field, then.model, now.model, "model", findings)
    ]
    packages = sorted(then.versions.keys() | now.versions.keys())
    pairs += [(f"versions.{name}", then.versions.get(name, ""), now.versions.get(name, "")) for name in packages]
    if then.attribution is not None and now.attribution is not None:
        pairs += [
            (
                f"attribution.{field.name}",
                _stored(field, then.attribution, now.attribution),
                getattr(now.attribution, field.name),
            )
            for field in fields(AttributionSettings)
            if field.name not in _NOT_COMPARED
            and not _is_skipped(field, then.attribution, now.attribution, "attribution", findings)
        ]
        findings.skip(
            "it affects when scores are sent, not their values",
            *(f"provenance.attribution.{name}" for name in _DELIVERY),
        )
        findings.skip("the resolved switches are compared instead", "provenance.attribution.preset")
    if then.evaluation is not None:
        findings.skip("it does not belong to an explanation", "provenance.evaluation")
    return tuple(Mismatch(what, str(was), str(is_now)) for what, was, is_now in pairs if was != is_now)


def _stored(field: Any, then: AttributionSettings, now: AttributionSettings) -> object:  # noqa: ANN401
    """Return a stored setting; of selected tokens those that the completion has, which alone are replayed."""
    return then.tokens[: len(now.tokens)] if field.name == "tokens" and now.tokens else getattr(then, field.name)


def _is_skipped(field: Any, then: object, now: object, where: str, findings: Findings) -> bool:  # noqa: ANN401
    """Record and return whether an older file lacks a field that the server sends."""
    was = getattr(then, field.name)
    if not is_unset(field, was) or was == getattr(now, field.name):
        return False
    findings.skip("the file does not have it", f"provenance.{where}.{field.name}")
    return True
