"""Model, versions and settings of an explanation against those of a server."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from client.explanation.verification.conftest import complete, settings_of, with_model, with_provenance, with_settings
from gradellm.explanation.verification.provenance import mismatches, other_model
from gradellm.explanation.verification.verdict import Findings
from gradellm.models import AttributionSettings, EvaluationSettings, ModelInfo

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("then", "now", "named"),
    [
        ({"weights_sha256": A}, {"weights_sha256": A}, ""),
        ({"weights_sha256": A}, {"weights_sha256": B}, "weights bbbbbbbbbbbb"),
        ({"weights_sha256": A}, {"weights_sha256": ""}, "weights unknown"),
        ({"config_sha256": A}, {"config_sha256": B}, "configuration bbbbbbbbbbbb"),
        ({"config_sha256": ""}, {"config_sha256": B}, ""),  # an older file
        ({"config_sha256": A}, {"config_sha256": ""}, ""),  # an older server
        ({"dtype": "float32"}, {"dtype": "bfloat16"}, ""),  # how it is served
    ],
)
def test_hashes_identify_a_model(then: dict[str, Any], now: dict[str, Any], named: str) -> None:
    stored = with_model(complete(), **then)
    message = other_model(stored, replace(stored.provenance.model, **now))
    assert bool(message) == bool(named)
    assert named in message


def changed(field: str, value: Any) -> Any:
    """Another value of a field of the model or of the settings."""
    if isinstance(value, bool):
        return not value
    return {int: 99, tuple: (99,)}.get(type(value), f"other {field}")


def test_every_field_of_the_model_is_compared() -> None:
    stored = with_model(complete(), has_tools=True, tool_call_parser="hermes")
    for field in fields(ModelInfo):
        was = getattr(stored.provenance.model, field.name)
        now = with_model(stored, **{field.name: changed(field.name, was)})
        (found,) = mismatches(with_model(stored, config_sha256="x").provenance
                              if field.name == "config_sha256" else stored.provenance,
                              now.provenance, Findings())  # fmt: skip
        assert found.what == f"model.{field.name}"
        assert found.now == str(changed(field.name, was))


def test_every_setting_is_compared_or_named() -> None:
    """The settings that shape the output alone are compared by the tokens, the sources and the rows."""
    stored = with_settings(complete(), objective="logit", aggregation="norm", steps=1, samples=1, seed=1, layer=1,
                           baseline_ids=(1,))  # fmt: skip
    by_rows = {"sources", "resolution", "top_k_sources"}
    for field in fields(AttributionSettings):
        findings = Findings()
        value = changed(field.name, getattr(settings_of(stored), field.name))
        found = mismatches(stored.provenance, with_settings(stored, **{field.name: value}).provenance, findings)
        named = {f"provenance.{item.what}" for item in found} | {item.what for item in findings.not_checked}
        assert (f"provenance.attribution.{field.name}" in named) == (field.name not in by_rows), field.name


def test_selected_tokens_are_compared_as_far_as_the_completion_reaches() -> None:
    stored, replayed = with_settings(complete(), tokens=(0, 2, 90)), with_settings(complete(), tokens=(0, 2))
    assert mismatches(stored.provenance, replayed.provenance, Findings()) == ()
    (found,) = mismatches(stored.provenance, with_settings(complete(), tokens=(0, 1)).provenance, Findings())
    assert (found.what, found.then, found.now) == ("attribution.tokens", "(0, 2)", "(0, 1)")


def test_fields_that_an_older_file_lacks_are_not_checked() -> None:
    now = with_model(with_settings(complete(), objective="logit"), config_sha256=A)
    findings = Findings()
    assert mismatches(complete().provenance, now.provenance, findings) == ()
    skipped = {item.what for item in findings.not_checked if item.why == "the file does not have it"}
    assert skipped == {"provenance.model.config_sha256", "provenance.attribution.objective"}


def test_versions_of_either_side_are_compared() -> None:
    then = with_provenance(complete(), versions={"torch": "1", "numpy": "2", "same": "3"}).provenance
    now = with_provenance(complete(), versions={"torch": "2", "triton": "3", "same": "3"}).provenance
    assert [(item.what, item.then, item.now) for item in mismatches(then, now, Findings())] == [
        ("versions.numpy", "2", ""),
        ("versions.torch", "1", "2"),
        ("versions.triton", "", "3"),
    ]


def test_settings_of_an_evaluation_are_not_checked() -> None:
    evaluation = EvaluationSettings((), (), (), (), None, None, None, None, None, None, raw_scores=False, rationale=())
    findings = Findings()
    provenance = complete().provenance
    assert mismatches(replace(provenance, evaluation=evaluation), provenance, findings) == ()
    assert "provenance.evaluation" in [item.what for item in findings.not_checked]
