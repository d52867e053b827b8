"""`python -m gradellm_ray`: `gradellm evaluate` over a data set, by engines in actors of a Ray cluster.

1. Flags and data are read as by `gradellm evaluate`; a task where an actor could run loads the model and describes it.
2. The actors evaluate the examples; each result is on disk before it is counted (results_file.py).
3. Tables are computed from that file. The same command resumes a run that was interrupted, and `gradellm evaluate
   --merge` and `--tables` read the file like any other.

`--actors 0` runs one engine in this process, without Ray; any number of actors must give the same numbers.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gradellm import __version__
from gradellm.cli import report_error
from gradellm.cli.commands import evaluate
from gradellm.cli.dataset_run import DatasetRun, read_dataset_run, resolve_for_model
from gradellm.cli.evaluate_dataset import print_failures
from gradellm.cli.evaluation_output import write_tables
from gradellm.cli.progress import Progress, print_status
from gradellm.errors import GradellmError
from gradellm.evaluation import statistics
from gradellm.evaluation.names import data_title
from gradellm.evaluation.results_file import ResultsFile
from gradellm.evaluation.run_results import read_run
from gradellm.evaluation.run_spec import PRESETS
from gradellm.evaluation.runner import Server
from gradellm.local.processes import require_server_extra
from gradellm_server import cli_types as kinds

if TYPE_CHECKING:
    from gradellm_ray.evaluator import Evaluator
    from gradellm_ray.job import ActorPool

PROGRAM = ("python", "-m", "gradellm_ray")
_INTERRUPTED, _READER_GONE = 130, 141

_EXAMPLES = """\
examples:
  python -m gradellm_ray --preset sst2 --data sst2.jsonl --methods all --out runs/sst2 --actors 2 --gpus-per-actor 1
  python -m gradellm_ray --preset sst2 --data sst2.jsonl --out runs/sst2 --actors 64 --gpus-per-actor 1 --address auto
  python -m gradellm_ray --preset sst2 --data sst2.jsonl --out runs/sst2 --actors 0      the same numbers, without Ray
"""


@dataclass
class RunStatus:
    """Progress of the run, in examples."""

    total: int
    done_before: int
    done_now: int = 0
    failed_now: int = 0
    began: float = field(default_factory=time.monotonic)
    servers: Sequence[Server] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the evaluation; the exit status is that of `gradellm evaluate`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = argparse.Namespace(arguments=arguments, program=PROGRAM)
    parser = _parser()
    parser.parse_args(arguments, args)
    if args.actors and importlib.util.find_spec("ray") is None:
        parser.error("actors need Ray: pip install 'gradellm[ray]'; --actors 0 runs without it")
    try:
        require_server_extra()
        code = _run(args)
        sys.stdout.flush()
    except GradellmError as error:
        return report_error(error, args)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of the table has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=" ".join(PROGRAM),
        description="Evaluate the faithfulness of explanations over a data set, with engines in Ray actors.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gradellm {__version__}")
    evaluate.add_evaluation(parser)
    group = evaluate.add_data(parser)
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="tokens to generate at most (default: 32)")
    group.add_argument("--system", metavar="TEXT", help="a system message before a prompt template")
    group = parser.add_argument_group("actors")
    group.add_argument(
        "--actors",
        type=_count,
        default=1,
        metavar="N",
        help="engines, each in a process; 0: one in this process, without Ray (default: 1)",
    )
    group.add_argument(
        "--gpus-per-actor",
        type=_share,
        default=0.0,
        metavar="N",
        help="GPUs of an actor; 0.5: two actors share a GPU (default: 0)",
    )
    group.add_argument(
        "--threads",
        type=kinds.count,
        default=1,
        metavar="N",
        help="CPU threads of an actor; last digits depend on it (default: 1)",
    )
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of a Ray cluster, or auto (default: start one on this machine for this run)",
    )
    group = parser.add_argument_group("model", "Its path must be the same on every node where an actor may run.")
    group.add_argument("--model", metavar="M", help="a path or hub id (default: the included demo model)")
    group.add_argument("--revision", help="branch, tag or commit on the hub")
    group.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16", "float64"])
    group.add_argument("--quantize", default="none", choices=["none", "int8", "nf4"])
    group.add_argument("--device", default="auto", help="auto, cpu, cuda; auto is a GPU if there is one")
    group.add_argument("--max-context-tokens", type=kinds.count, metavar="N", help="if less than the model's context")
    group.add_argument(
        "--method-memory",
        type=kinds.size,
        default="4GiB",
        metavar="SIZE",
        help="memory for batches; last digits depend on it (default: 4GiB)",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=("table", "json"), default="table", help="a table (the default), or JSON")
    group.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="auto by default")
    parser.set_defaults(shard=None)
    return parser


def _count(text: str) -> int:
    return 0 if text == "0" else kinds.count(text)


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GPUs") from None
    if not 0 <= number <= 64 or (number > 1 and number != int(number)):  # Ray's rule
        raise argparse.ArgumentTypeError(f"must be 0 to 1, or a whole number up to 64, was {text}")
    return number


def _run(args: argparse.Namespace) -> int:
    evaluate.check_flags(args)
    statistics.require_numpy()
    run = read_dataset_run(args)
    from gradellm_engine import EngineError
    from gradellm_ray.evaluator import EngineOptions, Evaluator

    engine = EngineOptions(
        model=args.model,
        revision=args.revision,
        dtype=args.dtype,
        quantization=args.quantize,
        device=args.device,
        threads=args.threads,
        context_tokens=args.max_context_tokens,
        method_bytes=args.method_memory,
    )
    presets = PRESETS if "all" in (args.methods or ()) else ()
    with ExitStack() as stack:
        source: ActorPool | Evaluator
        try:
            if args.actors:
                if args.address is None:
                    _require_ray_token()
                from gradellm_ray.job import ActorPool

                source = stack.enter_context(
                    ActorPool(engine, args.actors, gpus_per_actor=args.gpus_per_actor, address=args.address)
                )
            else:
                source = Evaluator(engine)
            description = source.describe_model(presets)
        except EngineError as error:
            raise GradellmError(str(error)) from error
        run = _without_unsupported(resolve_for_model(args, run, description.info), description.refusals)
        with ResultsFile(run.output.results, run.spec.settings(run.examples, description.info.model)) as results:
            _evaluate(args, run, source, results)
    return write_tables(args, [read_run(args.out)], run.output)


def _require_ray_token() -> None:
    """Make this run's Ray processes accept commands of this process only. Must be called before Ray is imported.

    They listen on all of the machine's addresses and run any command that they receive.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _without_unsupported(run: DatasetRun, refusals: Mapping[str, str]) -> DatasetRun:
    """Leave out presets that do not support the model."""
    methods = dict(run.spec.methods)
    for name in refusals.keys() & methods.keys():
        print_status(f"{name} is left out: {refusals[name]}")
        del methods[name]
    return replace(run, spec=replace(run.spec, methods=methods))


def _evaluate(args: argparse.Namespace, run: DatasetRun, source: ActorPool | Evaluator, results: ResultsFile) -> None:
    """Evaluate the examples that the results file lacks."""
    remaining = [example for example in run.examples if example.id not in results.done]
    status = RunStatus(len(run.examples), len(run.examples) - len(remaining))
    if status.done_before:
        print_status(f"{status.done_before} of {status.total} examples are done; evaluating the rest")
    progress = Progress(data_title(run.spec.preset.name))
    try:
        for example_id, outcome in source.outcomes(run.spec, remaining) if remaining else ():
            if outcome.record is None:
                status.failed_now += results.append_failure(example_id, outcome.error)
            else:
                status.done_now += results.append(example_id, outcome.record)
            progress.show(status)
    except BaseException:
        progress.close(status)
        done = status.done_before + status.done_now
        print_status(
            f"stopped: {done} of {status.total} examples are done and kept in {results.path}; examples that were "
            "running will be evaluated again; to resume:\n"
            f"  {shlex.join([*PROGRAM, *args.arguments])}"
        )
        raise
    progress.close(status)
    print_failures(results, status.total)


if __name__ == "__main__":
    sys.exit(main())
