"""Weight bandwidth of each GEMM kernel: `python -m gradellm_bench.linear`.

The kernel thresholds of `gradellm_engine.layers.gemm` come from this table. Each figure is gigabytes of weights read
per second, the median of some rounds over more layers than the caches hold. A plain sum is printed for comparison.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gradellm_bench.bandwidth import read_bandwidth
from gradellm_engine.layers.gemm import GemmWeight, Kernel
from gradellm_engine.utils.quiet import run_and_exit
from gradellm_engine.utils.threads import use_threads

SHAPES = ((256, 768), (768, 768), (1280, 768), (4096, 768), (768, 2048), (32000, 768))
ROWS = (1, 2, 3, 4, 8, 16, 32, 64, 128)
BYTES = 3 * 10**8  # weights of the layers of one figure together
ROUNDS = 5


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description="Measure GEMM kernels of linear layers, in gigabytes of weights a second."
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: one for each core)")
    options = parser.parse_args()
    use_threads(options.threads)
    print(f"a sum reads {read_bandwidth(torch.device('cpu')) / 1e9:.1f} GB/s")
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
