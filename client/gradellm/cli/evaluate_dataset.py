"""`gradellm evaluate` over a data set: runs, shards, and tables of finished runs.

1. Flags, data and output folder are validated before any server is contacted.
2. Examples are evaluated by the servers and appended to the results file (evaluation/runner.py). The same command
   resumes a stopped run.
3. Tables and figures are made of the results file. A shard writes its results file only; tables are made when all
   shards are merged.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from gradellm.aio import AsyncClient
from gradellm.cli import options
from gradellm.cli.dataset_run import data_preset, read_dataset_run, resolve_for_model, sampled_examples
from gradellm.cli.evaluation_output import check_folder, command_line, write_tables, write_text
from gradellm.cli.progress import Progress, print_status
from gradellm.errors import InvalidRequestError, UnimplementedError
from gradellm.evaluation import statistics
from gradellm.evaluation.datasets import load_rows
from gradellm.evaluation.names import data_title
from gradellm.evaluation.results_file import ResultsFile
from gradellm.evaluation.run_results import Output, read_run
from gradellm.evaluation.run_spec import PRESETS
from gradellm.evaluation.runner import PATIENCE_SECONDS, Runner, close, connect_servers
from gradellm.evaluation.shards import Shard, merge_results, missing_ids, num_missing, results_files, write_merged

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine, Iterator, Sequence

    from gradellm.cli.dataset_run import DatasetRun
    from gradellm.evaluation.run_spec import Methods
    from gradellm.evaluation.runner import Server

__all__ = ["evaluate", "make_tables", "merge", "print_failures"]

_INTERRUPTED = 130
_SECONDS_TO_EXIT = 5.0


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate a data set, or one shard of it, and make tables of a whole run."""
    shard = None if args.shard is None else Shard.of(args.shard)
    if shard is None:
        statistics.require_numpy()
    run = read_dataset_run(args, shard)
    with _targets(args) as targets:
        _run_interruptibly(_evaluate(args, run, targets, shard))
    if shard is not None:
        print_status(
            f"shard {shard} is done; when all are: gradellm evaluate --merge {args.out} --out DIR makes one run of them"
        )
        return 0
    return write_tables(args, [read_run(args.out)], run.output)


@contextmanager
def _targets(args: argparse.Namespace) -> Iterator[list[str]]:
    """The targets of --target; without it, a local server for this run."""
    targets = [target.strip() for target in (args.target or "").split(",") if target.strip()]
    if duplicates := [target for target in targets if targets.count(target) > 1]:
        raise InvalidRequestError.of(
            "target", f"{duplicates[0]} is given twice; --concurrency sets the examples per server"
        )
    if targets:
        options.local_server_keywords(args)
        yield targets
        return
    with options.connect(args) as client:
        yield [client.target]


async def _evaluate(args: argparse.Namespace, run: DatasetRun, targets: Sequence[str], shard: Shard | None) -> None:
    """Evaluate the examples that the results file lacks."""
    connect = partial(AsyncClient, **options.security(args), retry=None)  # the runner has its own retries
    servers = await connect_servers(targets, connect)
    try:
        for server in servers:
            if not server.is_up:
                print_status(f"{server.target} does not answer and will be retried: {server.reason}")
        info = next(server.info for server in servers if server.info is not None)
        run = resolve_for_model(args, run, info)
        spec, examples = run.spec, run.examples
        if "all" in (args.methods or ()):
            spec = replace(spec, methods=await _supported(spec.methods, servers))
    except BaseException:
        await close(servers)
        raise
    with ResultsFile(run.output.results, spec.settings(examples, info.model)) as results:
        progress = Progress(data_title(spec.preset.name))
        runner = Runner(
            servers,
            spec,
            examples if shard is None else shard.of_all(examples),
            results,
            connect=connect,
            concurrency=args.concurrency or 2,
            patience=PATIENCE_SECONDS if args.patience is None else args.patience,
            timeout=args.timeout,
            on_progress=progress.show,
            on_message=progress.message,
        )
        if runner.done_before:
            print_status(f"{runner.summary}; evaluating the rest")
        try:
            await runner.run()
        except BaseException as error:
            progress.close(runner)
            if not isinstance(error, InvalidRequestError):
                how = "interrupted" if isinstance(error, asyncio.CancelledError) else "stopped"
                print_status(f"{how}: {runner.summary}; this command resumes the run:\n  {command_line(args)}")
            raise
        progress.close(runner)
        print_failures(runner.results, runner.total)


async def _supported(methods: Methods, servers: Sequence[Server]) -> Methods:
    """Return "all" methods without the presets that the model does not support, which only a request reveals."""
    client = next(server.client for server in servers if server.is_up)
    supported = {}
    for name, keywords in methods.items():
        if name in PRESETS:
            try:
                await client.attribute("a", completion="a", **cast("Any", keywords))
            except (InvalidRequestError, UnimplementedError) as error:
                print_status(f"{name} is left out: {error}")
                continue
        supported[name] = keywords
    return supported


def print_failures(results: ResultsFile, total: int) -> None:
    """Print how many examples failed, and the error of the first."""
    if failed := results.failed:
        example_id, error = next(iter(failed.items()))
        count = "1 example" if len(failed) == 1 else f"{len(failed):,} examples"
        print_status(f"{count} of {total:,} failed, the first: {example_id}: {error}")


def _run_interruptibly(work: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine. The first SIGINT cancels it, the second ends the process at once."""
    interrupted = False

    async def guarded() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        before = signal.getsignal(signal.SIGINT)

        def interrupt() -> None:
            nonlocal interrupted
            if interrupted or task is None:
                os._exit(_INTERRUPTED)
            interrupted = True
            exit_timer = threading.Timer(_SECONDS_TO_EXIT, os._exit, (_INTERRUPTED,))
            exit_timer.daemon = True
            exit_timer.start()
            task.cancel()

        with suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
            loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            await work
        finally:
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.remove_signal_handler(signal.SIGINT)
                signal.signal(signal.SIGINT, before)

    try:
        asyncio.run(guarded())
    except asyncio.CancelledError:
        if not interrupted:
            raise
    if interrupted:
        raise KeyboardInterrupt


def merge(args: argparse.Namespace) -> int:
    """Merge the results of shards, and make tables. Return 1 if examples are missing."""
    statistics.require_numpy()
    if not args.out:
        raise InvalidRequestError.of("out", "must be given: a folder for the run and its tables, or a file X.jsonl")
    files = results_files(args.merge)
    results = merge_results(files)
    count = num_missing(results)
    ids: list[str] = []
    if any(getattr(args, name) is not None for name in ("preset", "data", "prompt_template")):
        preset, source = data_preset(args)
        prompt = results.settings.get("prompt")
        rows = load_rows(source, preset, chat=isinstance(prompt, dict) and prompt.get("form") == "chat")
        ids = missing_ids(results, sampled_examples(args, rows))
    output = Output.of(args.out)
    check_folder(output.results.parent)
    write_merged(output, results, files)
    missing_file = output.file("missing.txt")
    missing_file.unlink(missing_ok=True)
    print_status(f"{len(files)} results files with {len(results.done):,} examples are merged in {output.results}")
    if ids:
        write_text(missing_file, "".join(f"{example_id}\n" for example_id in ids))
    if count:
        where = f", listed in {missing_file}" if ids else "; add --data and the prompt of the run to list their ids"
        examples = "1 example is" if count == 1 else f"{count:,} examples are"
        print_status(f"{examples} missing{where}: run the unfinished shards again, and merge once more")
    code = write_tables(args, [read_run(args.out)], output)
    return 1 if count else code


def make_tables(args: argparse.Namespace) -> int:
    """Make tables of finished runs."""
    statistics.require_numpy()
    output = Output.of(args.out) if args.out else None
    if output is not None:
        check_folder(output.results.parent)
    return write_tables(args, [read_run(place) for place in args.tables], output)
