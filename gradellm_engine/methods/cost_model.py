"""What passes over whole sequences take of a model, found by trying short ones.

A graph keeps tensors that grow with the tokens, and attention's weights, which grow with their square: both are
counted in three short passes, so that no family needs a formula. Time has a share a pass and a share a token, from the
shortest and the longest of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradellm_engine.errors import InvalidRequestError
from gradellm_engine.methods.base import Method
from gradellm_engine.methods.post_hoc import PASS_TOKENS
from gradellm_engine.model.runner import ModelRunner
from gradellm_engine.params import Switches
from gradellm_engine.passes.full_sequence import FullSequenceAttention

_LENGTHS = (8, 16, 32)


@dataclass(frozen=True)
class ModelCost:
    """Of one model.

    Attributes:
        graph_bytes: of a graph over T tokens: constant, times T, times T squared.
        logit_bytes: of one step's logits.
        num_layers: of the model.
        forward_seconds: of a pass: constant, and a token.
        backward_seconds: of a backward pass, likewise.
    """

    graph_bytes: tuple[float, float, float]
    logit_bytes: int
    num_layers: int
    forward_seconds: tuple[float, float]
    backward_seconds: tuple[float, float]

    def bytes_of(self, num_tokens: int, num_steps: int, graph: bool) -> int:
        """Of a pass over one sequence, and of going back through it as far as is done at once."""
        constant, linear, square = self.graph_bytes
        whole = max(0.0, constant + linear * num_tokens + square * num_tokens**2)
        a_layer = whole / self.num_layers
        logits = 3 * num_steps * self.logit_bytes  # as they are, in float32, and normalised or their gradient
        if not graph:
            return int(2 * a_layer + logits)
        gradients = max(1, min(num_steps, PASS_TOKENS // num_tokens))
        return int(whole + logits + gradients * (2 * a_layer + num_steps * self.logit_bytes))


@dataclass(frozen=True)
class Estimate:
    """What a request would take.

    Attributes:
        forward_passes: of the model.
        backward_passes: likewise.
        seconds: on an idle server.
        bytes: of memory beside the model and its keys and values.
    """

    forward_passes: float
    backward_passes: float
    seconds: float
    bytes: int


def model_cost(runner: ModelRunner) -> ModelCost:
    """Try it."""
    sizes = [_graph_bytes(runner, length) for length in _LENGTHS]
    powers = torch.tensor([[1.0, length, length**2] for length in _LENGTHS], dtype=torch.float64)
    constant, linear, square = torch.linalg.solve(powers, torch.tensor(sizes, dtype=torch.float64)).tolist()
    forward, backward, logits = _timed(runner)
    return ModelCost(
        graph_bytes=(constant, linear, square),
        logit_bytes=logits.shape[-1] * max(4, logits.itemsize),
        num_layers=runner.num_layers,
        forward_seconds=forward,
        backward_seconds=backward,
    )


def estimate(method: Method, switches: Switches, of: ModelCost, m: int, n: int) -> Estimate:
    """Of a method, for m tokens of a prompt and n of a completion."""
    forward, backward = method.cost.forward.count(switches, m, n), method.cost.backward.count(switches, m, n)
    tokens = n if method.cost.of_completion_alone else m + n
    needed = 0 if method.explain is None else of.bytes_of(m + n, n, method.cost.needs_graph)
    passes = ((forward, of.forward_seconds), (backward, of.backward_seconds))
    seconds = sum(count * (constant + tokens * a_token) for count, (constant, a_token) in passes)
    return Estimate(forward, backward, seconds, needed)


def check_memory(method: Method, switches: Switches, of: ModelCost, m: int, n: int, memory: int) -> None:
    """Refuse what would not fit.

    Raises:
        InvalidRequestError: with the estimate, and the longest prompt that fits.
    """
    needed = estimate(method, switches, of, m, n).bytes
    if needed <= memory:
        return
    fitting = _most(m, lambda length: estimate(method, switches, of, length, n).bytes <= memory)
    remedy = f"a prompt of up to {fitting} tokens fits" if fitting else "no prompt fits; give a shorter completion"
    raise InvalidRequestError(
        "attribution.method",
        f"{method.name} of {n} tokens after a prompt of {m} needs about {needed:,} bytes; "
        f"this server lends methods {memory:,}; {remedy}",
    )


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number below `limit` that fits, 0 for none; what is larger needs more."""
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _pass(runner: ModelRunner, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Embeddings that require a gradient, and the logits after the last of them."""
    x = runner.embed([0] * num_tokens)[None].clone().requires_grad_()
    positions = torch.arange(num_tokens, device=runner.device)
    with torch.enable_grad():
        return x, runner.full_sequence_logits(x, positions, positions[-1:], FullSequenceAttention())


def _graph_bytes(runner: ModelRunner, num_tokens: int) -> int:
    """What autograd keeps, parameters not counted."""
    parameters = {_address(parameter) for _, parameter in runner.named_parameters()}
    kept: dict[int | None, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[_address(tensor)] = tensor  # kept alive, so that its address is not given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        _pass(runner, num_tokens)
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in kept.items()
        if address is not None and address not in parameters
    )


def _address(tensor: Tensor) -> int | None:
    """Of a tensor's memory; None for quantised weights, which are several tensors in the guise of one."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return None


def _timed(runner: ModelRunner) -> tuple[tuple[float, float], tuple[float, float], Tensor]:
    """Seconds of forward and backward passes, a pass and a token, and some logits."""
    short, long = _LENGTHS[0], _LENGTHS[-1]
    # The shorter time of two: the first one finds memory and kernels.
    runs = {length: [_seconds(runner, length) for _ in range(2)] for length in (short, long)}
    forward, backward = (
        _line(short, min(run[i] for run in runs[short]), long, min(run[i] for run in runs[long])) for i in (0, 1)
    )
    return forward, backward, _pass(runner, 1)[1].detach()


def _seconds(runner: ModelRunner, num_tokens: int) -> tuple[float, float]:
    """Of a forward and of a backward pass."""
    began = time.perf_counter()
    x, logits = _pass(runner, num_tokens)
    _wait(runner)
    middle = time.perf_counter()
    torch.autograd.grad(logits.float().amax(), x)
    _wait(runner)
    return middle - began, time.perf_counter() - middle


def _line(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float]:
    """Constant and slope of the line through two points; neither below zero, for times that noise turned round."""
    slope = max(0.0, (y1 - y0) / (x1 - x0))
    return max(0.0, y1 - slope * x1), slope


def _wait(runner: ModelRunner) -> None:
    if runner.device.type == "cuda":
        torch.cuda.synchronize(runner.device)
