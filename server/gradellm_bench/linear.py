"""Weight bandwidth of each GEMM kernel: `python -m gradellm_bench.linear`; with `--step`, a step by each packed layout.

The kernel thresholds of `gradellm_engine.layers.gemm` come from this table. Each figure is gigabytes of weights read
per second, the median of some rounds over more layers than the caches hold. A plain sum is printed for comparison.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gradellm_bench.bandwidth import read_bandwidth
from gradellm_engine.cpu_kernels.team import has_kernels
from gradellm_engine.layers.gemm import GemmWeight, Kernel
from gradellm_engine.layers.packing import Packing, own_packing, packings
from gradellm_engine.utils.quiet import run_and_exit
from gradellm_engine.utils.threads import use_threads

SHAPES = ((256, 768), (768, 768), (1280, 768), (4096, 768), (768, 2048), (32000, 768))
ROWS = (1, 2, 3, 4, 8, 16, 32, 64, 128)
STEP_SHAPES = {(960, 576): 30, (576, 576): 30, (3072, 576): 30, (576, 1536): 30, (49152, 576): 1}  # SmolLM2-135M's
STEP_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
BYTES = 3 * 10**8  # weights of the layers of one figure together
ROUNDS = 5


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description="Measure GEMM kernels of linear layers, in gigabytes of weights a second."
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: one for each core)")
    parser.add_argument(
        "--step",
        action="store_true",
        help="products of one step of SmolLM2-135M by each packed layout, in milliseconds",
    )
    options = parser.parse_args()
    use_threads(options.threads)
    bandwidth = read_bandwidth(torch.device("cpu"))
    print(f"a sum reads {bandwidth / 1e9:.1f} GB/s")
    if options.step:
        print(step_table(STEP_SHAPES, bandwidth))
        return
    kernels = list(Kernel)
    names = " | ".join(
        f"{direction} {kernel.name.lower()}" for direction in ("forward", "backward") for kernel in kernels
    )
    print(f"| out x in | rows | {names} |")
    print(f"| --- | ---: |{' ---: |' * 2 * len(kernels)}")
    with torch.no_grad():
        for shape in SHAPES:
            count = max(2, BYTES // (4 * shape[0] * shape[1]))
            weights = [GemmWeight(torch.randn(shape) / 32, None) for _ in range(count)]
            for weight in weights:
                if weight.can_be_packed:
                    weight.pack()
                    weight.pack_transposed()
            for rows in ROWS:
                x, g = torch.randn(1, rows, shape[1]), torch.randn(1, rows, shape[0])
                figures = [_speed(weights, kernel, GemmWeight.product, x) for kernel in kernels]
                figures += [_speed(weights, kernel, GemmWeight.gradient, g) for kernel in kernels]
                print(f"| {shape[0]} x {shape[1]} | {rows} | {' | '.join(f'{f:.1f}' for f in figures)} |", flush=True)


def step_table(shapes: Mapping[tuple[int, int], int], bandwidth: float, row_counts: Sequence[int] = STEP_ROWS) -> str:
    """Milliseconds of all products of a step, the shortest of some rounds that alternate between layouts; in Markdown.

    Inputs are in float32. Weights are, too, except in the layouts that name another dtype.

    Args:
        shapes: how many weights of each shape a step reads.
        bandwidth: bytes a second, for the time that reading all weights takes.
        row_counts: rows of a step.
    """
    layouts: dict[str, Packing | None] = {each.library: each for each in packings(torch.float32)} | {"torch": None}
    layouts |= {each.library: each for each in smaller_weights()}
    weights = [torch.randn(shape) / 32 for shape, count in shapes.items() for _ in range(count)]
    packed = {name: [w if each is None else each.pack(w) for w in weights] for name, each in layouts.items()}
    floor = 1000 * sum(weight.nbytes for weight in weights) / bandwidth
    lines = [f"| rows | floor | {' | '.join(layouts)} |", f"| ---: | ---: |{' ---: |' * len(layouts)}"]
    for rows in row_counts:
        inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1]) for weight in weights}
        rounds = [
            [_step_seconds(layout, weights, packed[name], inputs) for name, layout in layouts.items()]
            for _ in range(ROUNDS)
        ]
        figures = [f"{1000 * min(seconds):.0f}" for seconds in zip(*rounds, strict=True)]
        lines.append(f"| {rows} | {floor:.0f} | {' | '.join(figures)} |")
    return "\n".join(lines)


def smaller_weights() -> list[Packing]:
    """Products with weights of fewer bits, bfloat16 and int8; torch's kernel for int8 is torchao's on CPUs."""
    bfloat16 = torch.bfloat16

    def quantize(weight: Tensor) -> Tensor:
        return (weight * 127 / weight.abs().amax(1, keepdim=True)).round().to(torch.int8)

    def int8_product(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch._weight_int8pack_mm(x.to(bfloat16), packed, torch.ones(len(packed), dtype=bfloat16))

    def bfloat16_product(x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x.to(bfloat16), packed)

    found = [
        Packing("torch, bfloat16", lambda weight: weight.to(bfloat16), bfloat16_product),
        Packing("torch, int8", quantize, int8_product),
    ]
    if has_kernels():
        own = own_packing()
        found.append(Packing(f"{own.library}, bfloat16", lambda weight: own.pack(weight.to(bfloat16)), own.product))
    return found


def _step_seconds(
    layout: Packing | None, weights: Sequence[Tensor], packed: Sequence[Tensor], inputs: Mapping[int, Tensor]
) -> float:
    """All products once, by a layout, or by torch's own product."""
    start = time.perf_counter()
    with torch.no_grad():
        for weight, copy in zip(weights, packed, strict=True):
            x = inputs[weight.shape[1]]
            if layout is None:
                torch.nn.functional.linear(x, weight)
            else:
                layout.product(x, copy, weight, None)
    return time.perf_counter() - start


def _speed(
    weights: list[GemmWeight], kernel: Kernel, use: Callable[[GemmWeight, Tensor], Tensor], rows: Tensor
) -> float:
    """Gigabytes a second when each weight is used once by this kernel, regardless of the kernel selection."""
    seconds = []
    for weight in weights:
        weight.kernel = lambda x: kernel  # type: ignore[method-assign]
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for weight in weights:
            use(weight, rows)
        seconds.append(time.perf_counter() - start)
    return sum(weight.weight.nbytes for weight in weights) / statistics.median(seconds) / 1e9


if __name__ == "__main__":
    run_and_exit(main)
