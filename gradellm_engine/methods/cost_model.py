"""Memory and time of passes over whole sequences, measured in short passes of the loaded model.

An autograd graph keeps tensors whose size grows linearly with the number of tokens, and attention weights, whose size
grows with its square. The three coefficients are solved from the graphs of three short passes, so no model family needs
a formula. Time is a constant a pass plus a time a token, from the shortest and the longest of these passes.
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

_LENGTHS = (8, 16, 32)  # tokens of the measured passes


@dataclass(frozen=True)
class ModelCost:
    """Measured costs of one model.

    Attributes:
        graph_bytes: coefficients a, b, c of an autograd graph over T tokens, a + b T + c T^2 bytes.
        logit_bytes: bytes of one step's logits.
        num_layers: number of layers.
        forward_seconds: of a forward pass: a constant, and seconds a token.
        backward_seconds: of a backward pass: a constant, and seconds a token.
    """

    graph_bytes: tuple[float, float, float]
    logit_bytes: int
    num_layers: int
    forward_seconds: tuple[float, float]
    backward_seconds: tuple[float, float]

    def bytes_of(self, num_tokens: int, num_steps: int, graph: bool) -> int:
        """Bytes of a forward pass over one sequence; with `graph`, also of the backward passes that run together."""
        constant, linear, square = self.graph_bytes
        graph_bytes = max(0.0, constant + linear * num_tokens + square * num_tokens**2)
        bytes_a_layer = graph_bytes / self.num_layers
        logits = 3 * num_steps * self.logit_bytes  # in the model's dtype, in float32, and normalised or their gradient
        if not graph:
            return int(2 * bytes_a_layer + logits)
        gradients = max(1, min(num_steps, PASS_TOKENS // num_tokens))
        return int(graph_bytes + logits + gradients * (2 * bytes_a_layer + num_steps * self.logit_bytes))


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a request.

    Attributes:
        forward_passes: number of forward passes.
        backward_passes: number of backward passes.
        seconds: time on an idle server.
        bytes: memory, without the model and its KV cache.
    """

    forward_passes: float
    backward_passes: float
    seconds: float
    bytes: int


def model_cost(runner: ModelRunner) -> ModelCost:
    """Measure the costs of a model."""
    sizes = [measure_graph_bytes(runner, length) for length in _LENGTHS]
    powers = torch.tensor([[1.0, length, length**2] for length in _LENGTHS], dtype=torch.float64)
    constant, linear, square = torch.linalg.solve(powers, torch.tensor(sizes, dtype=torch.float64)).tolist()
    forward, backward, logits = _measure_seconds(runner)
    return ModelCost(
        graph_bytes=(constant, linear, square),
        logit_bytes=logits.shape[-1] * max(4, logits.itemsize),
        num_layers=runner.num_layers,
        forward_seconds=forward,
        backward_seconds=backward,
    )


def estimate(
    method: Method, switches: Switches, cost: ModelCost, m: int, n: int, num_steps: int | None = None
) -> Estimate:
    """The estimated cost of explaining `num_steps` (None: all) of n completion tokens after m prompt tokens."""
    num_steps = n if num_steps is None else num_steps
    forward, backward = (passes.count(switches, m, num_steps) for passes in (method.cost.forward, method.cost.backward))
    tokens = num_steps if method.cost.completion_only else m + n
    needed = 0 if method.explain is None else cost.bytes_of(m + n, num_steps, method.cost.needs_graph)
    passes = ((forward, cost.forward_seconds), (backward, cost.backward_seconds))
    seconds = sum(count * (constant + tokens * a_token) for count, (constant, a_token) in passes)
    return Estimate(forward, backward, seconds, needed)


def check_memory(
    method: Method, switches: Switches, cost: ModelCost, m: int, n: int, num_steps: int, memory: int
) -> None:
    """Refuse a request that needs more than `memory` bytes; its arguments are those of `estimate`.

    Raises:
        InvalidRequestError: with the estimate, and the longest prompt that fits.
    """

    def needed(prompt_tokens: int) -> int:
        return estimate(method, switches, cost, prompt_tokens, n, num_steps).bytes

    if needed(m) <= memory:
        return
    fitting = _largest(m, lambda length: needed(length) <= memory)
    remedy = f"a prompt of up to {fitting} tokens fits" if fitting else "no prompt fits; give a shorter completion"
    raise InvalidRequestError(
        "attribution.method",
        f"{method.name} of {num_steps} tokens after a prompt of {m} needs about {needed(m):,} bytes; "
        f"this server gives methods {memory:,} bytes; {remedy}, or fewer attribution.tokens",
    )


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number in 1..limit - 1 that fits, 0 where none does, by bisection."""
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _pass(runner: ModelRunner, num_tokens: int) -> tuple[Tensor, Tensor]:
    """A pass with an autograd graph: its embeddings [1, T, h] and the last position's logits."""
    x = runner.embed([0] * num_tokens)[None].clone().requires_grad_()
    positions = torch.arange(num_tokens, device=runner.device)
    with torch.enable_grad():
        return x, runner.full_sequence_logits(x, positions, positions[-1:], FullSequenceAttention())


def measure_graph_bytes(runner: ModelRunner, num_tokens: int) -> int:
    """Bytes that the autograd graph of a pass keeps, without the model's parameters."""
    parameters = {_address(parameter) for _, parameter in runner.named_parameters()}
    kept: dict[int | None, Tensor] = {}

    def record(tensor: Tensor) -> Tensor:
        kept[_address(tensor)] = tensor  # keeps it alive, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        _pass(runner, num_tokens)
    return sum(
        tensor.untyped_storage().nbytes()
        for address, tensor in kept.items()
        if address is not None and address not in parameters
    )


def _address(tensor: Tensor) -> int | None:
    """Address of a tensor's storage; None for quantised weights, tensor subclasses without a storage."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return None


def _measure_seconds(runner: ModelRunner) -> tuple[tuple[float, float], tuple[float, float], Tensor]:
    """Seconds of forward and of backward passes (a constant, and a token), and one row of logits."""
    short, long = _LENGTHS[0], _LENGTHS[-1]
    # The shorter time of two: the first run allocates memory and loads kernels.
    runs = {length: [_time_pass(runner, length) for _ in range(2)] for length in (short, long)}
    forward, backward = (
        fit_line(short, min(run[i] for run in runs[short]), long, min(run[i] for run in runs[long])) for i in (0, 1)
    )
    return forward, backward, _pass(runner, 1)[1].detach()


def _time_pass(runner: ModelRunner, num_tokens: int) -> tuple[float, float]:
    """Seconds of one forward and one backward pass."""
    began = time.perf_counter()
    x, logits = _pass(runner, num_tokens)
    _synchronize(runner)
    middle = time.perf_counter()
    torch.autograd.grad(logits.float().amax(), x)
    _synchronize(runner)
    return middle - began, time.perf_counter() - middle


def fit_line(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float]:
    """Constant and slope of the line through two points, clamped to be at least 0: measured times are noisy."""
    slope = max(0.0, (y1 - y0) / (x1 - x0))
    return max(0.0, y1 - slope * x1), slope


def _synchronize(runner: ModelRunner) -> None:
    if runner.device.type == "cuda":
        torch.cuda.synchronize(runner.device)
