"""Generated functions give for other numbers what the traced function gives."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradellm_engine.compilation.tracer import (
    CommonSubexpressions,
    NotTraceable,
    Tracer,
    codegen,
    eliminate_dead_code,
)

WEIGHT = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
HIDDEN = torch.tensor([True, False, True, False])


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """The generated function of a function of one tensor."""
    tracer = Tracer()
    parameter = tracer.new(x)
    with tracer:
        result = tracer.value(function(x))
    run = codegen([parameter], eliminate_dead_code(tracer.operations, [result]), [result], tracer.constants)
    return lambda x: run(x)[0]


def gradient_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def gradient(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        (result,) = torch.autograd.grad(function(leaf).sum(), leaf)
        return result

    return gradient


def in_place(x: Tensor) -> Tensor:
    y = x * 2
    y[..., 1:].masked_fill_(~HIDDEN[1:], -torch.inf)
    y.mul_(3).add_(x)
    return y.softmax(-1)


def several(x: Tensor) -> Tensor:
    a, b = torch.split(x @ WEIGHT.t(), [2, 4], -1)
    values, _ = b.max(-1)
    return torch.cat((a, b[..., :2]), -1) * values[..., None]


def constants(x: Tensor) -> Tensor:
    columns = WEIGHT.t().reshape(4, 2, 3)[:, 0]
    return x @ columns + torch.arange(3) + torch.tensor([1.0, 2.0, 3.0])


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: torch.nn.functional.linear(x, WEIGHT),
    "saved results": lambda x: x.exp().tanh().sigmoid().softmax(-1).rsqrt(),
    "infinite": lambda x: x.clamp(min=-torch.inf).masked_fill(HIDDEN, torch.inf).nan_to_num(posinf=3.0),
    "type": lambda x: (x.to(torch.float64) / 3).to(torch.float32).to(torch.bfloat16),
    "in place": in_place,
    "several": several,
    "constants": constants,
    "unused": lambda x: (x.sin(), x.cos())[1],
    "nothing": lambda x: x.detach().view(x.shape),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_inputs(name: str) -> None:
    function = FUNCTIONS[name]
    first, second = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    run = traced(function, first)
    for x in (first, second):
        assert torch.equal(run(x.clone()), function(x.clone()))


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"in place", "infinite", "nothing"}))
def test_gradients(name: str) -> None:
    function = gradient_of(FUNCTIONS[name])
    first, second = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)) + 2
    run = traced(function, first)
    for x in (first, second):
        assert torch.equal(run(x), function(x))


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x * float(x.max()), "_local_scalar_dense"),
        (lambda x: x[x > 0], "depends on data"),
        (lambda x: x + torch.rand(4), "draws"),
        (lambda x: WEIGHT.clone().copy_(WEIGHT) if WEIGHT.add_(0) is None else x, "writes to a constant"),
    ],
)
def test_data_dependent_functions_are_not_traceable(function: Callable[[Tensor], Tensor], why: str) -> None:
    with pytest.raises(NotTraceable, match=why):
        traced(function, torch.ones(3, 4))


def test_a_tensor_of_an_unrecorded_operation_is_not_traceable() -> None:
    tracer = Tracer()
    x = torch.ones(3, 4)
    tracer.new(x)
    with tracer:
        y = x + 1
        with tracer.pause():
            unseen = y[0]
        with pytest.raises(NotTraceable, match="was not recorded"):
            unseen + 1


def test_a_missing_parameter_is_an_error() -> None:
    tracer = Tracer()
    x, y = torch.ones(2, 3, 4)
    input_value, _ = tracer.new(x), tracer.new(y)
    with tracer:
        result = tracer.value(x + y)
    with pytest.raises(NotTraceable, match="another part of the trace"):
        codegen([input_value], tracer.operations, [result], tracer.constants)


def test_python_functions_are_called_at_each_run() -> None:
    sums: list[float] = []

    def add_sum(x: Tensor) -> Tensor:
        sums.append(float(x.sum()))  # data-dependent, which is allowed here
        return x + sums[-1]

    tracer = Tracer()
    x = torch.ones(3, 4)
    input_value = tracer.new(x)
    with tracer:
        doubled = x * 2
        with tracer.pause():
            answer = add_sum(doubled)
        tracer.call(add_sum, doubled, results=answer)
        result = tracer.value(answer * 2)
    run = codegen([input_value], eliminate_dead_code(tracer.operations, [result]), [result], tracer.constants)
    assert torch.equal(run(x + 1)[0], 2 * (4.0 + 48.0) * torch.ones(3, 4))
    assert sums == [24.0, 48.0]


def test_tensors_are_released_after_their_last_use() -> None:
    alive: list[weakref.ref[Tensor]] = []
    gone: list[bool] = []

    def look(x: Tensor) -> Tensor:
        gone.append(all(each() is None for each in alive[:-1]))
        alive.append(weakref.ref(x))
        return x + 1

    tracer = Tracer()
    x = torch.ones(3)
    input_value, y = tracer.new(x), x
    with tracer:
        for _ in range(4):
            y = y * 2
            with tracer.pause():
                answer = look(y)
            tracer.call(look, y, results=answer)
            y = answer
    run = codegen([input_value], tracer.operations, [tracer.value(y)], tracer.constants)
    del tracer, answer, y
    alive.clear()
    gone.clear()
    run(x)
    assert gone == [True] * 4


def without_repetitions(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tracer, Callable[[Tensor], Tensor], int]:
    """A traced function whose repeated operations are computed once, and how many operations are left."""
    tracer = Tracer()
    parameter = tracer.new(x)
    with tracer:
        result = tracer.value(function(x))
    common = CommonSubexpressions(tracer.written)
    kept = common.eliminate(tracer.operations)
    result = common.substitutes.get(result, result)
    run = codegen([parameter], eliminate_dead_code(kept, [result]), [result], tracer.constants)
    return tracer, lambda x: run(x)[0], len(kept)


def rotary_factors_of_each_layer(x: Tensor) -> Tensor:
    y = x
    for _ in range(3):  # the same signs and repetitions each time, of the same x
        signed = torch.cat((-x[..., :2], x[..., 2:]), -1)
        y = y * signed + x.softmax(-1)
    return y


def written_to_between(x: Tensor) -> Tensor:
    a = x * 2
    b = x * 2  # not `a`: that is written to
    a.add_(1)
    return a * b


def other_arguments(x: Tensor) -> Tensor:
    return (x + 1) * (x + 1.5) * x.sum(0) * x.sum(1, keepdim=True)


def read_again_after_a_write(x: Tensor) -> Tensor:
    a = x * 3
    before = a[:, :2].sum()
    a[:, 0].mul_(5)
    return before + a[:, :2].sum()


@pytest.mark.parametrize(
    ("function", "is_shorter"),
    [
        (rotary_factors_of_each_layer, True),
        (written_to_between, False),
        (other_arguments, False),
        (read_again_after_a_write, False),
    ],
)
def test_repeated_operations_run_once(function: Callable[[Tensor], Tensor], is_shorter: bool) -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    tracer, run, num_left = without_repetitions(function, x)
    assert (num_left < len(tracer.operations)) == is_shorter
    for number in range(3):
        other = x + number
        assert torch.equal(run(other), function(other))
