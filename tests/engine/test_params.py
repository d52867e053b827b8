"""Parameters validate themselves, and name the invalid field."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from gradellm_engine import (
    AttributionSettings,
    Contrast,
    GradEllm,
    Gradient,
    InvalidRequestError,
    Loosening,
    Magnitude,
    NormaliseOver,
    Rectify,
    Resolution,
    Rotary,
    Similarity,
    Sink,
    Sources,
    TokenSelection,
)
from gradellm_engine.params import PRESETS, RECOMMENDED_PRESET


def test_presets_are_those_of_the_method() -> None:
    paper = {
        "loosening": "min_max",
        "layers": None,
        "similarity": "dot",
        "rotary": "rotated",
        "rectify": "per_layer",
        "magnitude": "signed_sum",
        "normalise_over": "visible",
        "sink": "keep",
        "gradient": "true",
    }
    table: dict[str, dict[str, Any]] = {
        "paper": {},
        "unloosened": {"loosening": "none"},
        "grad_eclip": {"similarity": "cosine", "rotary": "unrotated"},
        "knockout": {"loosening": "none", "rectify": "none", "magnitude": "knockout"},
        "head_abs_no_sink": {"loosening": "none", "rectify": "none", "magnitude": "head_abs", "sink": "exclude"},
        "step_relevance": {
            "loosening": "none",
            "rectify": "none",
            "magnitude": "head_abs",
            "sink": "exclude",
            "gradient": "relevance",
        },
    }
    table["recommended"] = table[RECOMMENDED_PRESET]
    assert set(PRESETS) == set(table)
    for name, changes in table.items():
        preset = GradEllm.preset(name)
        assert {f.name: getattr(preset, f.name) for f in fields(preset)} == {**paper, **changes}
    assert GradEllm() == GradEllm.preset("paper")


def test_switches_override_a_preset() -> None:
    assert GradEllm.preset("grad_eclip", layers=2, rotary=Rotary.ROTATED) == GradEllm(
        similarity=Similarity.COSINE, layers=2
    )
    with pytest.raises(InvalidRequestError) as caught:
        GradEllm.preset("knockout", similarity=Similarity.COSINE)
    assert caught.value.field == "attribution.similarity"
    with pytest.raises(InvalidRequestError, match="paper, unloosened, grad_eclip, knockout") as caught:
        GradEllm.preset("grad_elm")
    assert caught.value.field == "attribution.preset"


def test_exactly_the_defined_combinations_are_valid() -> None:
    names = ("loosening", "similarity", "rotary", "rectify", "magnitude", "normalise_over", "sink", "gradient")
    enums = (Loosening, Similarity, Rotary, Rectify, Magnitude, NormaliseOver, Sink, Gradient)
    for values in itertools.product(*enums):
        switches: dict[str, Any] = dict(zip(names, values, strict=True))
        at_fault = set()
        if switches["loosening"] == "none":
            defaults = {"similarity": "dot", "rotary": "rotated", "normalise_over": "visible"}
            at_fault |= {name for name, value in defaults.items() if switches[name] != value}
        if switches["rectify"] == "per_head" and switches["loosening"] != "none":
            at_fault.add("rectify")
        rectifies = {"none", "per_head"} if switches["magnitude"] == "knockout" else {"none"}
        is_defined = switches["loosening"] == "none" and switches["rectify"] in rectifies
        if switches["magnitude"] != "signed_sum" and not is_defined:
            at_fault.add("magnitude")
        if not at_fault:
            GradEllm(**switches)
            continue
        with pytest.raises(InvalidRequestError) as caught:
            GradEllm(**switches)
        assert caught.value.field.removeprefix("attribution.") in at_fault


@pytest.mark.parametrize("name", [f.name for f in fields(GradEllm) if f.name != "layers"])
@pytest.mark.parametrize("value", ["none", "cosine", None, 3])
def test_a_switch_that_is_not_an_enum_member_is_refused(name: str, value: Any) -> None:
    """A string equals a StrEnum member, but the computation compares with `is`."""
    with pytest.raises(InvalidRequestError) as caught:
        GradEllm.preset("paper", **{name: value})
    assert caught.value.field == f"attribution.{name}"


@pytest.mark.parametrize(
    ("layers", "selected"),
    [(None, (0, 1, 2, 3)), (1, (3,)), (3, (1, 2, 3)), (4, (0, 1, 2, 3)), ((2, 0), (0, 2)), ((3,), (3,))],
)
def test_layers_are_resolved_for_a_model_of_four(
    layers: int | tuple[int, ...] | None, selected: tuple[int, ...]
) -> None:
    assert GradEllm(layers=layers).selected_layers(4) == selected


@pytest.mark.parametrize("layers", [0, -1, (), (1, 1)])
def test_layers_that_no_model_has_are_refused(layers: int | tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        GradEllm(layers=layers)
    assert caught.value.field == "attribution.layers"


@pytest.mark.parametrize("layers", [5, (4,), (0, -1)])
def test_layers_that_this_model_does_not_have_are_refused(layers: int | tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        GradEllm(layers=layers).selected_layers(4)
    assert caught.value.field == "attribution.layers"


def test_a_contrast_has_exactly_one_field() -> None:
    goods: list[dict[str, Any]] = [{"token_id": 0}, {"text": "no"}, {"runner_up": True}]
    for good in goods:
        Contrast(**good)
    bad: list[dict[str, Any]] = [
        {},
        {"token_id": 0, "runner_up": True},
        {"text": "a", "token_id": 1},
        {"text": "", "runner_up": True},
    ]
    for both in bad:
        with pytest.raises(InvalidRequestError) as caught:
            Contrast(**both)
        assert caught.value.field == "attribution.contrast"
    with pytest.raises(InvalidRequestError) as caught:
        Contrast(text="")
    assert caught.value.field == "attribution.contrast.text"


@pytest.mark.parametrize(
    ("field", "build"),
    [
        ("top_k_sources", lambda: AttributionSettings(top_k_sources=0)),
        ("sources", lambda: AttributionSettings(sources="prefix")),  # type: ignore[arg-type]
        ("resolution", lambda: AttributionSettings(resolution="word")),  # type: ignore[arg-type]
    ],
)
def test_invalid_attribution_is_named(field: str, build: Callable[[], AttributionSettings]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        build()
    assert caught.value.field == f"attribution.{field}"


def test_the_defaults() -> None:
    settings = AttributionSettings()
    assert settings.method == GradEllm.preset("paper")
    assert (settings.sources, settings.resolution, settings.top_k_sources) == (Sources.PROMPT, Resolution.TOKEN, None)
    assert settings.target_token_id is None
    assert settings.contrast is None


def test_a_selection_of_tokens_is_sorted_and_has_each_once() -> None:
    assert TokenSelection((4, 0, 4)).indexes == (0, 4)
    assert TokenSelection((4, 0, 4)) == TokenSelection((0, 4))


@pytest.mark.parametrize(
    ("indexes", "spans", "field"),
    [
        ((), (), "tokens"),
        ((2, -1), (), "tokens.indexes"),
        ((), ((0, 2), (3, 3)), "tokens.spans[1]"),
        ((), ((-1, 2),), "tokens.spans[0]"),
    ],
)
def test_a_selection_without_a_token_is_refused(
    indexes: tuple[int, ...], spans: tuple[tuple[int, int], ...], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        TokenSelection(indexes, spans)
    assert caught.value.field == f"attribution.{field}"


def test_selected_tokens_are_explained() -> None:
    every, some = AttributionSettings(), AttributionSettings(tokens=TokenSelection((2, 5)))
    assert all(every.explains(index) for index in range(9))
    assert [index for index in range(9) if some.explains(index)] == [2, 5]
    assert (every.first_explained(1, 4), some.first_explained(1, 4), some.first_explained(3, 4)) == (1, 2, 4)
