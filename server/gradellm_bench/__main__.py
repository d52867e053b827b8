"""`python -m gradellm_bench`, which `gradellm bench` runs."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gradellm_bench.backends import BACKENDS, Backend
from gradellm_bench.bandwidth import read_bandwidth
from gradellm_bench.latency import latencies
from gradellm_bench.models import SHAPES, BenchModel, checkpoint_bench_model, random_bench_model
from gradellm_bench.report import (
    Report,
    admission_fact,
    headline,
    latency_table,
    memory_fact,
    plot,
    reuse_fact,
    throughput_table,
)
from gradellm_bench.served.throughput import (
    FIRST_TURN,
    LONG_PROMPT,
    SECOND_TURN,
    SHORT_PROMPT,
    admission,
    memory,
    reuse,
    throughputs,
)
from gradellm_engine.errors import EngineError
from gradellm_engine.model.load_options import DTYPES, resolve_device
from gradellm_engine.model.loader import software_versions
from gradellm_engine.utils.quiet import run_and_exit
from gradellm_engine.utils.threads import use_threads

PARTS = ("latency", "throughput", "admission", "reuse", "memory")
ADMISSION_TOKENS = 128  # of running streams: they must outlast the prompt that comes in
EXIT_USAGE, EXIT_FAILED = 2, 70
EXAMPLES = """\
backends, for --backends:
{backends}

examples:
  gradellm bench                                          all parts on a random 125M-parameter Llama (minutes)
  gradellm bench --parts latency --prompts 64 512         a few minutes
  gradellm bench --model ./my-model --json here.json      your own model
  gradellm bench --shape llama-3-8b --dtype bfloat16      on a GPU
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its tables as they are finished; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    backends = _backends(options.backends)
    if halved := [backend.name for backend in backends if options.new_tokens % backend.chunk_size]:
        parser.error(f"--new-tokens {options.new_tokens} are not whole chunks of {', '.join(halved)}")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'gradellm[plots]'")
    if options.plot and options.plot.suffix not in (".png", ".svg"):
        parser.error(f"--plot {options.plot} must end in .png or .svg")
    for file in (options.json, options.plot):
        if file is not None and not file.parent.is_dir():
            parser.error(f"{file} cannot be written: there is no folder {file.parent}")
    use_threads(options.threads)
    try:
        bench_model = replace(_bench_model(options), use_graphs=not options.eager)
    except (EngineError, OSError, ValueError) as error:  # OSError and ValueError are Transformers'
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE
    context = bench_model.loaded.info.context_tokens
    for part in options.parts:
        if (needed := _max_tokens_of(part, options)) > context:
            parser.error(
                f"the part {part} needs {needed} tokens, the model's context is {context}: "
                "give shorter --prompts, or --parts without it"
            )
    if unsupported := [
        backend.name for backend in backends if bench_model.loaded.info.family in backend.families_without
    ]:
        if options.backends:
            parser.error(f"{', '.join(unsupported)} cannot run a model of the family {bench_model.loaded.info.family}")
        backends = [backend for backend in backends if backend.name not in unsupported]
    gc.collect()
    gc.freeze()  # as the server does
    report = Report(_machine(bench_model), read_bandwidth(bench_model.device))
    print(headline(report), flush=True)
    try:
        for table in _measure(report, bench_model, backends, options):
            _show_progress("")
            print(f"\n{table}", flush=True)
            report.machine["steps"] = f"decode steps {_steps(bench_model)}"
            if options.json:
                report.write_json(options.json)  # after each table, so that a failure loses nothing
    except (EngineError, torch.OutOfMemoryError) as error:
        _show_progress("")
        print(f"error: {' '.join(str(error).split())}; the parts above are complete", file=sys.stderr)
        return EXIT_FAILED
    print(f"\n{report.machine['steps']}", flush=True)
    if options.plot:
        plot(report, options.plot)
    return 0


def _measure(
    report: Report, bench_model: BenchModel, backends: Sequence[Backend], options: argparse.Namespace
) -> Iterator[str]:
    """Run the parts, fill the report, and yield a table or sentence after each."""
    parts, new_tokens, rounds = options.parts, options.new_tokens, options.rounds
    if "latency" in parts:
        for row in latencies(
            bench_model,
            backends,
            prompt_lengths=options.prompts,
            new_tokens=new_tokens,
            rounds=rounds,
            bandwidth=report.bandwidth,
            progress=_show_progress,
        ):
            report.latencies += row
            yield latency_table(row)
    if "throughput" in parts:
        for together in throughputs(
            bench_model,
            backends,
            prompt_lengths=options.stream_prompts,
            concurrency=options.concurrency,
            new_tokens=new_tokens,
            rounds=rounds,
            bandwidth=report.bandwidth,
            progress=_show_progress,
        ):
            report.throughputs += together
            yield throughput_table(together)
    if "admission" in parts:
        _show_progress("a long prompt is admitted")
        report.admission = admission(bench_model, streams=4, new_tokens=ADMISSION_TOKENS, rounds=rounds)
        yield admission_fact(report.admission)
    if "reuse" in parts:
        _show_progress("a conversation of two turns")
        report.reuse = reuse(bench_model, new_tokens=new_tokens, rounds=rounds)
        yield reuse_fact(report.reuse)
    if "memory" in parts:
        report.memory = memory(
            bench_model,
            prompt_tokens=max(options.prompts),
            new_tokens=new_tokens,
            requests=options.requests,
            progress=_show_progress,
        )
        yield memory_fact(report.memory)


def _max_tokens_of(part: str, options: argparse.Namespace) -> int:
    """Tokens of the longest sequence that a part runs."""
    needed: dict[str, int] = {
        "latency": max(options.prompts) + options.new_tokens,
        "throughput": max(options.stream_prompts) + options.new_tokens,
        "admission": LONG_PROMPT + 1,
        "reuse": FIRST_TURN + SECOND_TURN + 2 * options.new_tokens,
        "memory": max(options.prompts) + options.new_tokens,
    }
    return needed[part]


def _bench_model(options: argparse.Namespace) -> BenchModel:
    device = resolve_device(options.device)
    dtype = DTYPES[options.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    if options.model:
        _show_progress(f"loading {options.model}")
        return checkpoint_bench_model(options.model, dtype=dtype, device=device)
    _show_progress(f"making random weights of shape {options.shape}")
    return random_bench_model(options.shape, dtype=dtype, device=device)


def _machine(bench_model: BenchModel) -> dict[str, str]:
    info, device = bench_model.loaded.info, bench_model.device
    is_gpu = device.type == "cuda"
    return {
        "model": f"{info.name}, {info.num_parameters / 1e6:,.1f}M parameters",
        "dtype": info.dtype,
        "device": torch.cuda.get_device_name(device) if is_gpu else f"{platform.machine()} CPU",
        "threads": "" if is_gpu else f"{torch.get_num_threads()} threads",
        **{package: f"{package} {version}" for package, version in software_versions().items()},
    }


def _steps(bench_model: BenchModel) -> str:
    """How decode steps were executed."""
    runner = bench_model.loaded.runner
    if runner.cpu_traces is not None and runner.cpu_traces.is_possible:
        return "as CPU traces"
    if runner.cuda_graphs is None or not runner.cuda_graphs.is_possible:
        return "eagerly"
    return f"as CUDA graphs, {runner.execution_mode}"


def _backends(names: Sequence[str] | None) -> list[Backend]:
    """The chosen backends, or all whose packages are installed."""
    if names is not None:
        return [BACKENDS[name] for name in names]
    return [backend for backend in BACKENDS.values() if backend.is_installed]


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {backend.name:<13} {backend.description}" for backend in BACKENDS.values())
    parser = argparse.ArgumentParser(
        prog="gradellm bench",
        description="Measure the cost of an explained token on this machine, and of the alternatives.",
        epilog=EXAMPLES.format(backends=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model = parser.add_argument_group("model")
    model.add_argument("--shape", choices=list(SHAPES), default="125m", help="a random Llama (default: 125m)")
    model.add_argument("--model", metavar="PATH_OR_HUB_ID", help="a checkpoint instead")
    model.add_argument("--dtype", choices=list(DTYPES), help="default: float32 on a CPU, bfloat16 on a GPU")
    model.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    model.add_argument(
        "--threads", type=_count, metavar="N", help="CPU threads (default: one for each core that it may use)"
    )
    model.add_argument(
        "--eager",
        action="store_true",
        help="run decode steps eagerly: without CUDA graphs on a GPU, without traces on a CPU",
    )
    _add_measurements(parser.add_argument_group("measurements"))
    out = parser.add_argument_group("output")
    out.add_argument("--json", type=Path, metavar="FILE", help="every figure of every round")
    out.add_argument("--plot", type=Path, metavar="FILE", help="PNG or SVG; needs the extra [plots]")
    return parser


class _DeprecatedBackends(argparse.Action):
    """`--ways`, which warns and sets `--backends`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        print("warning: --ways is deprecated, use --backends", file=sys.stderr)
        setattr(namespace, self.dest, values)


def _add_measurements(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    what.add_argument(
        "--backends",
        nargs="+",
        choices=list(BACKENDS),
        metavar="BACKEND",
        help="see below (default: all that are installed)",
    )
    what.add_argument(
        "--ways",  # deprecated: the flag's name in 0.1
        dest="backends",
        action=_DeprecatedBackends,
        nargs="+",
        choices=list(BACKENDS),
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )
    what.add_argument(
        "--prompts",
        type=_at_least_two,
        nargs="+",
        metavar="N",
        default=[64, 512, 2048],
        help="tokens of prompts (default: 64 512 2048)",
    )
    what.add_argument(
        "--new-tokens",
        type=_at_least_two,
        metavar="N",
        default=64,
        help="tokens decoded in a round; whole chunks (default: 64)",
    )
    what.add_argument(
        "--rounds", type=_count, metavar="N", default=5, help="results are medians of the rounds (default: 5)"
    )
    what.add_argument(
        "--concurrency",
        type=_count,
        nargs="+",
        metavar="N",
        default=[1, 4, 16],
        help="streams at once (default: 1 4 16)",
    )
    what.add_argument(
        "--stream-prompts",
        type=_at_least_two,
        nargs="+",
        metavar="N",
        default=[SHORT_PROMPT],
        help=f"tokens of prompts of streams at once (default: {SHORT_PROMPT})",
    )
    what.add_argument(
        "--requests", type=_count, metavar="N", default=1000, help="short requests of the part memory (default: 1000)"
    )


def _count(text: str, least: int = 1) -> int:
    if not (text.isdecimal() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"must be at least {least}, was {text}")
    return int(text)


def _at_least_two(text: str) -> int:
    """At least 2 tokens: one token has no gap, and a prompt's last token belongs to the first decode step."""
    return _count(text, least=2)


def _show_progress(stage: str) -> None:
    """Progress, on one line, if standard error is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{stage}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_and_exit(main)
