"""`python -m gradellm_bench.capacity`: servers and cost for a load, and the resource that limits it first."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from gradellm_bench.bandwidth import read_bandwidth
from gradellm_bench.capacity import document, validation_run
from gradellm_bench.capacity.bench_import import from_bench
from gradellm_bench.capacity.costs import Costs
from gradellm_bench.capacity.limits import Wire, limits
from gradellm_bench.capacity.measurements import Measurements, measure
from gradellm_bench.capacity.planning import ServiceLevel, plan
from gradellm_bench.capacity.replica_simulator import Replica, ReplicaSettings
from gradellm_bench.capacity.report import limit_table, plan_table, validation_table
from gradellm_bench.capacity.request_metrics import Summary
from gradellm_bench.capacity.traffic import Traffic
from gradellm_bench.models import SHAPES, BenchModel, checkpoint_bench_model, random_bench_model
from gradellm_engine.errors import EngineError
from gradellm_engine.model.load_options import DTYPES, resolve_device
from gradellm_engine.model.loader import software_versions
from gradellm_engine.utils.quiet import run_and_exit
from gradellm_engine.utils.threads import use_threads

Number = TypeVar("Number", int, float)
EXIT_USAGE = 2
EXAMPLES = """\
examples:
  python -m gradellm_bench.capacity plan --passes docs/capacity-h100.json --load 50 --prompt-tokens 800 \\
      --answer-tokens 300 --explained 0.3 --gpu-hour 3 --wire docs/capacity-wire.json
  gradellm bench --shape llama-3-8b --json mine.json
  python -m gradellm_bench.capacity plan --bench mine.json --load 50
  python -m gradellm_bench.capacity measure --model ./my-model --json passes.json      (minutes; on your GPU)
  python -m gradellm_bench.capacity trial --model ./my-model --passes passes.json --rates 2 4 --json validation_run.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except (ValueError, EngineError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_USAGE


def _plan(options: argparse.Namespace) -> int:
    measured = Measurements.read(options.passes) if options.passes else from_bench(options.bench)
    costs = Costs.fit(measured)
    traffic = replace(_traffic(options, measured.context_tokens), rate=options.load)
    settings = _settings(options)
    wire = Wire.read(options.wire) if options.wire else None
    promise = ServiceLevel(options.first_token, options.gap / 1e3, options.refused)

    def load_of(run: Summary) -> float:
        if wire is None:
            return 0.0
        return wire.interpreter(run.tokens_per_second, run.vectors_per_second, traffic.prompt_tokens)

    found = plan(
        costs, settings, traffic, promise,
        spare=options.spare, gpus=options.gpus, gpu_hour=options.gpu_hour, load_of=load_of,
    )  # fmt: skip
    print(", ".join(filter(None, measured.machine.values())))
    print(f"\n{plan_table([found])}")
    print(f"\nAbove {found.each:.2f} requests a second per server: {found.breaks}.")
    if options.max_running > max(costs.models["step"].sizes):
        most = max(costs.models["step"].sizes)
        print(f"Passes were measured up to {most} streams; larger batches are extrapolated.")
    if wire is not None:
        resources = limits(found, traffic, costs, settings, wire, clients=options.clients, nic_gbit=options.nic_gbit)
        print(f"\n{limit_table(resources)}")
    return 0


def _measure(options: argparse.Namespace) -> int:
    bench_model = _bench_model(options)
    runner, info = bench_model.loaded.runner, bench_model.loaded.info
    device = torch.cuda.get_device_name(runner.device) if runner.processor == "cuda" else "CPU"
    machine = {
        "model": info.name, "dtype": info.dtype, "device": device,
        **{name: f"{name} {version}" for name, version in software_versions().items()},
    }  # fmt: skip
    measured = Measurements(
        machine, runner.processor, runner.bytes_per_token, bench_model.body_bytes + bench_model.head_bytes,
        read_bandwidth(runner.device), info.context_tokens,
    )  # fmt: skip
    for passed in measure(
        bench_model, counts=options.counts, contexts=options.contexts, chunk_sizes=options.chunk_sizes,
        steps=options.steps, progress=lambda stage: print(stage, file=sys.stderr, flush=True),
    ):  # fmt: skip
        measured.passes.append(passed)
        measured.write(options.json)  # after each pass, so that a failure loses nothing
    for kind, model in Costs.fit(measured).models.items():
        print(f"{kind}: the model is within {model.error:.0%} of the measurements")
    return 0


def _validate(options: argparse.Namespace) -> int:
    measured = Measurements.read(options.passes)
    costs = Costs.fit(measured)
    bench_model = _bench_model(options)
    settings = _settings(options)
    engine = bench_model.engine(max_running=options.max_running, num_tokens=options.kv_tokens)
    found: list[dict[str, Any]] = []
    for rate in options.rates:
        traffic = replace(_traffic(options, measured.context_tokens), rate=rate, evaluations=0.0)
        run = validation_run.ValidationRun(
            f"{rate:g} requests a second", traffic, settings, int(rate * options.seconds) + 1, options.seed
        )
        bench_model.loaded.runner.pool.evict_all()
        found.append(
            {**asdict(run), "real": asdict(validation_run.real(bench_model, engine, run)), "machine": measured.machine}
        )
        found[-1]["simulated"] = asdict(validation_run.simulated(Replica(costs, settings), run))
        print(validation_table(found[-1:]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _document(options: argparse.Namespace) -> int:
    document.write(options.folder)
    return 0


def _bench_model(options: argparse.Namespace) -> BenchModel:
    device = resolve_device(options.device)
    dtype = DTYPES[options.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    use_threads(options.threads)
    if options.model:
        return checkpoint_bench_model(options.model, dtype=dtype, device=device)
    return random_bench_model(options.shape, dtype=dtype, device=device)


def _traffic(options: argparse.Namespace, context_tokens: int) -> Traffic:
    return Traffic(
        1.0, options.prompt_tokens, options.answer_tokens, options.spread,
        max(options.max_new_tokens, options.answer_tokens), context_tokens, options.explained, options.chunked,
        options.evaluations,
    )  # fmt: skip


def _settings(options: argparse.Namespace) -> ReplicaSettings:
    return ReplicaSettings(options.max_running, options.kv_tokens, options.max_queued)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gradellm_bench.capacity",
        description="Servers and cost for a load, and the resource that limits it first.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    plan_parser = _command(commands, "plan", _plan, "servers, GPUs, cost and latency for a load")
    _add_plan_options(plan_parser)
    trial_parser = _command(commands, "trial", _validate, "the same requests on the real scheduler and simulated")
    trial_parser.add_argument(
        "--passes", type=Path, required=True, metavar="FILE", help="a file that `measure` wrote on this machine"
    )
    trial_parser.add_argument(
        "--rates", type=_positive, nargs="+", required=True, metavar="N", help="requests a second"
    )
    trial_parser.add_argument(
        "--seconds", type=_positive, default=30.0, metavar="S", help="duration of arrivals (default: 30)"
    )
    trial_parser.add_argument("--seed", type=int, default=0, help="of lengths and arrival times (default: 0)")
    trial_parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here, too")
    for command in (plan_parser, trial_parser):
        _add_traffic(command)
    measure_parser = _command(commands, "measure", _measure, "time the scheduler's passes on this machine")
    measure_parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    measure_parser.add_argument("--counts", type=_count, nargs="+", default=[1, 4, 16, 32, 64], metavar="N")
    measure_parser.add_argument("--contexts", type=_count, nargs="+", default=[128, 1024, 4096], metavar="N")
    measure_parser.add_argument("--chunk-sizes", type=_count, nargs="+", default=[16, 64, 256, 1024, 2048], metavar="N")
    measure_parser.add_argument(
        "--steps", type=_count, default=8, metavar="N", help="repetitions of each pass (default: 8)"
    )
    for command in (measure_parser, trial_parser):
        command.add_argument("--shape", choices=list(SHAPES), default="125m", help="a random Llama (default: 125m)")
        command.add_argument("--model", metavar="PATH_OR_HUB_ID", help="a checkpoint instead")
        command.add_argument("--dtype", choices=list(DTYPES), help="default: float32 on a CPU, bfloat16 on a GPU")
        command.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU where there is one)")
        command.add_argument("--threads", type=_count, metavar="N", help="CPU threads")
    document_parser = _command(
        commands, "document", _document, "docs/capacity.md's tables, docs/capacity.json and the plot"
    )
    document_parser.add_argument("--folder", type=Path, default=Path("docs"), help="default: docs")
    return parser


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--passes", type=Path, metavar="FILE", help="a file that `measure` wrote")
    source.add_argument("--bench", type=Path, metavar="FILE", help="a file that `gradellm bench --json FILE` wrote")
    parser.add_argument("--load", type=_positive, required=True, metavar="N", help="requests a second to all servers")
    parser.add_argument("--wire", type=Path, metavar="FILE", help="a file that deploy/capacity/wire.py wrote")
    parser.add_argument(
        "--first-token",
        type=_positive,
        default=2.0,
        metavar="S",
        help="time to first token, 95th percentile (default: 2)",
    )
    parser.add_argument(
        "--gap", type=_positive, default=100.0, metavar="MS", help="time between tokens, 95th percentile (default: 100)"
    )
    parser.add_argument(
        "--refused", type=_share, default=0.001, metavar="SHARE", help="rejected requests at most (default: 0.001)"
    )
    parser.add_argument("--spare", type=_count, default=1, metavar="N", help="servers that may be down (default: 1)")
    parser.add_argument("--gpus", type=_count, default=1, metavar="N", help="GPUs of a server (default: 1)")
    parser.add_argument("--gpu-hour", type=_positive, metavar="PRICE", help="price of a GPU for an hour")
    parser.add_argument("--clients", type=_count, default=8, metavar="N", help="client processes (default: 8)")
    parser.add_argument(
        "--nic-gbit", type=_positive, default=25.0, metavar="N", help="network of a server (default: 25)"
    )


def _command(
    commands: Any,  # noqa: ANN401  (argparse's own, which is private)
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _add_traffic(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt-tokens", type=_count, default=800, metavar="N", help="mean prompt length (default: 800)"
    )
    parser.add_argument(
        "--answer-tokens", type=_count, default=300, metavar="N", help="mean answer length (default: 300)"
    )
    parser.add_argument(
        "--spread", type=float, default=0.6, help="standard deviation of a length's logarithm (default: 0.6)"
    )
    parser.add_argument("--max-new-tokens", type=_count, default=1024, metavar="N", help="of requests (default: 1024)")
    parser.add_argument("--explained", type=_share, default=0.3, metavar="SHARE", help="of requests (default: 0.3)")
    parser.add_argument("--chunked", type=_share, default=0.5, metavar="SHARE", help="of the explained (default: 0.5)")
    parser.add_argument("--evaluations", type=_share, default=0.0, metavar="SHARE", help="of requests (default: 0)")
    parser.add_argument("--max-running", type=_count, default=64, metavar="N", help="of a server (default: 64)")
    parser.add_argument("--max-queued", type=_count, default=64, metavar="N", help="of a server (default: 64)")
    parser.add_argument("--kv-tokens", type=_count, default=235_000, metavar="N", help="of a server (default: 235,000)")


def _count(text: str) -> int:
    return _above(text, int(text) if text.isdecimal() else None)


def _positive(text: str) -> float:
    try:
        return _above(text, float(text))
    except ValueError:
        _refuse(text, "a number above 0")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    return value if 0 <= value <= 1 else _refuse(text, "a share between 0 and 1")


def _above(text: str, value: Number | None) -> Number:
    return value if value is not None and value >= 0 else _refuse(text, "a number of at least 0")


def _refuse(text: str, wanted: str) -> NoReturn:
    raise argparse.ArgumentTypeError(f"must be {wanted}, was {text}")


if __name__ == "__main__":
    run_and_exit(main)
