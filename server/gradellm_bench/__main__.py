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
from gradellm_engine.model.loader import DTYPES, resolve_device, software_versions
from gradellm_engine.utils.quiet import run_and_leave
from gradellm_engine.utils.threads import use_threads

PARTS = ("latency", "throughput", "admission", "reuse", "memory")
ADMISSION_TOKENS = 128  # of running streams: they must outlast the prompt that comes in
EXIT_USAGE, EXIT_FAILED = 2, 70
EXAMPLES = """\
ways:
{ways}

examples:
  gradellm bench                                          all parts on a random 125M-parameter Llama (minutes)
  gradellm bench --parts latency --prompts 64 512         a few minutes
  gradellm bench --model ./my-model --json here.json      your own model
  gradellm bench --shape llama-3-8b --dtype bfloat16      on a GPU
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench and print its tables as they come; the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    ways = _ways(options.ways)
    if halved := [way.name for way in ways if options.new_tokens % way.chunk_size]:
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
    except (EngineError, OSError, ValueError) as error:  # the last two are Transformers'
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE
    context = bench_model.loaded.info.context_tokens
    for part in options.parts:
        if (needed := _context_of(part, options)) > context:
            parser.error(
                f"the part {part} needs {needed} tokens, the model's context is {context}: "
                "say shorter --prompts, or --parts without it"
            )
    if refusing := [way.name for way in ways if bench_model.loaded.info.family in way.families_without]:
        if options.ways:
            parser.error(f"{', '.join(refusing)} cannot run a model of the family {bench_model.loaded.info.family}")
        ways = [way for way in ways if way.name not in refusing]
    gc.collect()
    gc.freeze()  # as the server does
    report = Report(_machine(bench_model), read_bandwidth(bench_model.device))
    print(headline(report), flush=True)
    try:
        for table in _measure(report, bench_model, ways, options):
            _say("")
            print(f"\n{table}", flush=True)
            report.machine["steps"] = f"decode steps {_steps(bench_model)}"
            if options.json:
                report.write_json(options.json)  # now: what was measured is kept, whatever comes
    except (EngineError, torch.OutOfMemoryError) as error:
        _say("")
        print(f"error: {' '.join(str(error).split())}; the parts above are whole", file=sys.stderr)
        return EXIT_FAILED
    print(f"\n{report.machine['steps']}", flush=True)
    if options.plot:
        plot(report, options.plot)
    return 0


def _measure(
    report: Report, bench_model: BenchModel, ways: Sequence[Backend], options: argparse.Namespace
) -> Iterator[str]:
    """Fill the report, part after part; yields what there is to print of each."""
    parts, new_tokens, rounds = options.parts, options.new_tokens, options.rounds
    if "latency" in parts:
        for row in latencies(
            bench_model,
            ways,
            prompt_lengths=options.prompts,
            new_tokens=new_tokens,
            rounds=rounds,
            bandwidth=report.bandwidth,
            progress=_say,
        ):
            report.latencies += row
            yield latency_table(row)
    if "throughput" in parts:
        for together in throughputs(
            bench_model,
            ways,
            prompt_lengths=options.stream_prompts,
            concurrency=options.concurrency,
            new_tokens=new_tokens,
            rounds=rounds,
            bandwidth=report.bandwidth,
            progress=_say,
        ):
            report.throughputs += together
            yield throughput_table(together)
    if "admission" in parts:
        _say("a long prompt comes in")
        report.admission = admission(bench_model, streams=4, new_tokens=ADMISSION_TOKENS, rounds=rounds)
        yield admission_fact(report.admission)
    if "reuse" in parts:
        _say("a conversation of two turns")
        report.reuse = reuse(bench_model, new_tokens=new_tokens, rounds=rounds)
        yield reuse_fact(report.reuse)
    if "memory" in parts:
        report.memory = memory(
            bench_model,
            prompt_tokens=max(options.prompts),
            new_tokens=new_tokens,
            requests=options.requests,
            progress=_say,
        )
        yield memory_fact(report.memory)


def _context_of(part: str, options: argparse.Namespace) -> int:
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
        _say(f"loading {options.model}")
        return checkpoint_bench_model(options.model, dtype=dtype, device=device)
    _say(f"making random weights of shape {options.shape}")
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
    """How decode steps ran."""
    runner = bench_model.loaded.runner
    if runner.cpu_traces is not None and runner.cpu_traces.is_possible:
        return "written down as straight lines of operations"
    if runner.cuda_graphs is None or not runner.cuda_graphs.is_possible:
        return "call by call"
    return f"as CUDA graphs, {runner.kernels}"


def _ways(names: Sequence[str] | None) -> list[Backend]:
    """Those that were asked for, or all that are installed."""
    if names is not None:
        return [BACKENDS[name] for name in names]
    return [way for way in BACKENDS.values() if way.is_installed]


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {way.name:<13} {way.description}" for way in BACKENDS.values())
    made = argparse.ArgumentParser(
        prog="gradellm bench",
        description="Measure what an explained token costs on this machine, beside what one would use instead.",
        epilog=EXAMPLES.format(ways=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model = made.add_argument_group("model")
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
        help="run decode steps call by call: on a GPU not as CUDA graphs, on a CPU not as straight lines",
    )
    what = made.add_argument_group("what is measured")
    what.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)} (default: all)"
    )
    what.add_argument(
        "--ways", nargs="+", choices=list(BACKENDS), metavar="WAY", help="see below (default: all that are installed)"
    )
    what.add_argument(
        "--prompts", type=_some, nargs="+", metavar="N", default=[64, 512, 2048], help="tokens (default: 64 512 2048)"
    )
    what.add_argument(
        "--new-tokens", type=_some, metavar="N", default=64, help="decoded in a round; whole chunks (default: 64)"
    )
    what.add_argument("--rounds", type=_count, metavar="N", default=5, help="figures are their medians (default: 5)")
    what.add_argument(
        "--concurrency", type=_count, nargs="+", metavar="N", default=[1, 4, 16], help="streams (default: 1 4 16)"
    )
    what.add_argument(
        "--stream-prompts",
        type=_some,
        nargs="+",
        metavar="N",
        default=[SHORT_PROMPT],
        help=f"tokens of the prompts of streams that run together (default: {SHORT_PROMPT})",
    )
    what.add_argument(
        "--requests", type=_count, metavar="N", default=1000, help="short requests, for memory (default: 1000)"
    )
    out = made.add_argument_group("output")
    out.add_argument("--json", type=Path, metavar="FILE", help="every figure of every round")
    out.add_argument("--plot", type=Path, metavar="FILE", help="PNG or SVG; needs the extra [plots]")
    return made


def _count(text: str, least: int = 1) -> int:
    if not (text.isdecimal() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"must be at least {least}, was {text}")
    return int(text)


def _some(text: str) -> int:
    """More than one token: there is no gap between fewer, and of a prompt, the last one belongs to the first step."""
    return _count(text, least=2)


def _say(stage: str) -> None:
    """Progress, on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{stage}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_and_leave(main)
