"""The head cut out of the graph: logits and gradients are those of autograd through the whole model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradellm_engine.passes.base import Target
from gradellm_engine.passes.lm_head import LogitHead, signs, token_ids

# Without a contrast, token 0 stands in its column, with the sign 0.
TARGETS = [Target(3, 1), None, Target(2, 2), Target(5), Target(0, 6), Target(0)]
T, WIDTH, VOCABULARY = len(TARGETS), 4, 7


class Opaque(nn.Linear):
    """A head whose weight has no rows to read, as a quantised one's."""


def head_of(kind: type[nn.Linear], *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return kind(WIDTH, VOCABULARY, bias=bias, dtype=torch.float64).requires_grad_(requires_grad=False)


POSTPROCESS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda output: output[0],
    "soft cap": lambda output: (output / 0.3).tanh()[0] * 0.3,
    "scale": lambda output: output[0] * 0.1,
}


@pytest.fixture
def x(normal: Callable[..., Tensor]) -> Tensor:
    """The model's input, by which gradients are taken."""
    return normal(1, 1, T, WIDTH).requires_grad_()


def below(x: Tensor) -> Tensor:
    """The model below the head."""
    return (2 * x).tanh()


def expected_results(head: nn.Module, postprocess: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of the sum of targets minus contrasts."""
    logits = postprocess(head(below(x)))
    total = logits.new_zeros(())
    for row, target in zip(logits, TARGETS, strict=True):
        if target is not None:
            total = total + row[target.token_id]
            total = total if target.contrast_id is None else total - row[target.contrast_id]
    (gradient,) = torch.autograd.grad(total, x)
    return logits.detach(), gradient


@pytest.mark.parametrize("name", POSTPROCESS)
@pytest.mark.parametrize("are_given", [False, True], ids=["targets after", "targets before"])
@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (Opaque, True)])
def test_logits_and_gradients_are_autograds(
    x: Tensor, kind: type[nn.Linear], bias: bool, are_given: bool, name: str
) -> None:
    module, postprocess = head_of(kind, bias=bias), POSTPROCESS[name]
    expected_logits, expected = expected_results(module, postprocess, x)
    ids = token_ids(TARGETS)
    head = LogitHead(module, ids if are_given else None)
    assert head.has_columns == (are_given and kind is nn.Linear)
    with torch.no_grad():
        logits = head.run_model(lambda: postprocess(module(below(x))))
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected_logits.gather(1, ids) if head.has_columns else expected_logits)
    head.backward(ids, signs(TARGETS).double())
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("name", POSTPROCESS)
@pytest.mark.parametrize("are_given", [False, True], ids=["targets after", "targets before"])
def test_hidden_states_of_a_model_without_a_graph(x: Tensor, are_given: bool, name: str) -> None:
    """The model's backward pass is called with the gradient by its hidden states."""
    module, postprocess, ids = head_of(nn.Linear), POSTPROCESS[name], token_ids(TARGETS)
    expected_logits, expected = expected_results(module, postprocess, x)
    hidden, gradients = below(x), list[Tensor]()
    head = LogitHead(module, ids if are_given else None)
    logits = head.read_hidden(hidden.detach(), postprocess, gradients.append)
    torch.testing.assert_close(logits, expected_logits.gather(1, ids) if are_given else expected_logits)
    head.backward(ids, signs(TARGETS).double())
    (gradient,) = torch.autograd.grad(hidden, x, gradients)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("are_given", [False, True])
def test_the_module_is_left_as_it_was(x: Tensor, are_given: bool) -> None:
    """Also with a `forward` of accelerate's, and where the model fails."""
    module = head_of(nn.Linear)
    plain = dict(vars(module))
    LogitHead(module, token_ids(TARGETS) if are_given else None).run_model(lambda: module(x)[0])
    assert vars(module) == plain
    placed = vars(module)["forward"] = module.forward

    def fails() -> Tensor:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        LogitHead(module, token_ids(TARGETS) if are_given else None).run_model(fails)
    assert vars(module)["forward"] is placed
    assert not module._forward_hooks


def test_with_targets_before_the_pass_the_head_multiplies_no_other_row(x: Tensor) -> None:
    module, ids = head_of(nn.Linear), token_ids(TARGETS)
    unused = [row for row in range(VOCABULARY) if row not in ids]
    module.weight.data[unused] = torch.nan
    head = LogitHead(module, ids)
    assert head.run_model(lambda: module(below(x))[0]).isfinite().all()
    head.backward(ids, signs(TARGETS).double())
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_model_that_does_not_call_its_head_is_an_error(x: Tensor) -> None:
    head = LogitHead(head_of(nn.Linear))
    head.run_model(lambda: x[0])
    with pytest.raises(RuntimeError, match="head did not run"):
        head.backward(token_ids(TARGETS), signs(TARGETS))


def test_rows_without_a_target_have_no_sign() -> None:
    assert token_ids(TARGETS).tolist() == [[3, 1], [0, 0], [2, 2], [5, 0], [0, 6], [0, 0]]
    assert signs(TARGETS).tolist() == [[1, -1], [0, 0], [1, -1], [1, 0], [1, -1], [1, 0]]
