"""The registry's rows agree with the methods that they name."""

from __future__ import annotations

from dataclasses import fields

import pytest

from gradellm_engine import GradEllm, InvalidRequestError
from gradellm_engine.methods.gradients.base import GradientSwitches
from gradellm_engine.methods.post_hoc import ObjectiveSwitches
from gradellm_engine.methods.registry import METHODS, method_named

every_method = pytest.mark.parametrize("name", METHODS)


def test_methods_by_name() -> None:
    method = method_named("grad_ellm")
    assert method is METHODS["grad_ellm"]
    assert set(method.switch_names) == {f.name for f in fields(GradEllm)}
    with pytest.raises(InvalidRequestError, match="grad_ellm") as caught:
        method_named("magic")
    assert caught.value.field == "attribution.method"


@every_method
def test_the_cost_is_that_of_how_a_method_is_computed(name: str) -> None:
    """In the pass, post hoc, or without the model."""
    method = METHODS[name]
    assert method.explain is None or method.scores is None
    assert method.cost.completion_only is (method.explain is None and method.scores is None)
    assert (method.cost.forward.count(method.switches(), 10, 5) == 0) is (method.scores is not None)


@every_method
def test_costs_name_switches_and_gradients_have_backward_passes(name: str) -> None:
    method = METHODS[name]
    for passes in (method.cost.forward, method.cost.backward):
        assert {factor for factor, _ in passes.terms if isinstance(factor, str)} <= set(method.switch_names)
    if issubclass(method.switches, GradientSwitches):
        assert method.cost.backward.count(method.switches(), 10, 5) >= 5  # one a step at least
        assert method.cost.needs_graph


@every_method
def test_a_method_of_an_objective_has_a_target(name: str) -> None:
    method = METHODS[name]
    if issubclass(method.switches, ObjectiveSwitches):
        assert method.has_target
