"""The data-set side of `gradellm evaluate`.

1. What can be known to be wrong is said: flags, the data, where results go. Then the servers are asked what they serve.
2. Examples go to the servers and come back into the results file (evaluation/runner.py).
3. Tables and the figure are made of that file. The same command, given again, goes on where it stopped.
4. Of a shard there is a results file alone; tables come when the shards are merged.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gradellm.aio import AsyncClient
from gradellm.cli import options
from gradellm.cli.progress import Progress
from gradellm.errors import InvalidRequestError
from gradellm.evaluation import figures, statistics
from gradellm.evaluation.datasets import DataError, load_rows, sample
from gradellm.evaluation.presets import PRESETS as DATA_PRESETS
from gradellm.evaluation.presets import custom_preset
from gradellm.evaluation.results_file import ResultsFile, ResultsFileError
from gradellm.evaluation.run_results import Output, data_title, read_run
from gradellm.evaluation.run_spec import PIS, PLAUSIBILITY, PRESETS, Plan, did_you_mean, named_methods
from gradellm.evaluation.runner import PATIENCE_SECONDS, Runner, ask_servers, close
from gradellm.evaluation.shards import Shard, merged, missing_ids, num_missing, results_files, write_merged
from gradellm.evaluation.tables.tables import tables
from gradellm.rendering.terminal import use_color, visible
from gradellm.transport import calls

if TYPE_CHECKING:
    import argparse
    from collections.abc import Coroutine, Iterator, Sequence

    from gradellm.evaluation.datasets import Example, Rows
    from gradellm.evaluation.presets import Preset
    from gradellm.evaluation.run_results import Run
    from gradellm.evaluation.run_spec import Methods
    from gradellm.evaluation.runner import Server
    from gradellm.evaluation.tables.tables import Table
    from gradellm.models import ServerInfo

__all__ = [
    "Asked",
    "check_folder",
    "evaluate",
    "for_model",
    "made",
    "make_tables",
    "merge",
    "read_asked",
    "say",
    "tell_failures",
]

_OF_A_TEMPLATE = ("system", "label_words", "columns", "first_sentences")
_INTERRUPTED = 130
_SECONDS_TO_LEAVE = 5.0


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate a data set, and make tables of what came out."""
    shard = None if args.shard is None else Shard.of(args.shard)
    if shard is None:
        statistics.require_numpy()
    asked = read_asked(args, shard)
    with _targets(args) as targets:
        _interruptible(_evaluated(args, asked, targets, shard))
    if shard is not None:
        say(
            f"shard {shard} is done; when all are: gradellm evaluate --merge {args.out} --out DIR makes one run of them"
        )
        return 0
    return made(args, [read_run(args.out)], asked.output)


@dataclass(frozen=True)
class Asked:
    """What a run over a data set is asked, as far as flags and data tell."""

    plan: Plan
    """Its methods are a stand-in, for only the model knows what there is; and it may have no chat template."""
    source: str
    """Where the data is."""
    examples: tuple[Example, ...]
    output: Output


def read_asked(args: argparse.Namespace, shard: Shard | None = None) -> Asked:
    """Read flags and data, say what is wrong with them, and see that results can be written."""
    preset, source = _preset(args)
    if not args.out:
        raise InvalidRequestError.of("out", "must be given: the folder where results and tables go, or X.jsonl")
    rows = load_rows(source, preset, chat=not args.raw)
    examples = _chosen(args, rows)
    plan = _plan(args, preset)
    _check_rationales(plan, examples)
    with suppress(InvalidRequestError):  # of one example alone, it is that one's failure
        calls.evaluate(*plan.request(examples[0]))
    output = Output.of(args.out) if shard is None else shard.output(args.out)
    check_folder(output.results.parent)
    _write_bad_rows(output, rows)
    return Asked(plan, source, examples, output)


def for_model(args: argparse.Namespace, asked: Asked, info: ServerInfo) -> Asked:
    """Return what is asked of a model that is known: its methods, and raw texts where it has no chat template."""
    chat = info.model.has_chat_template and not args.raw
    if chat != asked.plan.chat:
        say(f"{info.model.name} has no chat template: prompts are raw texts")
        asked = replace(asked, examples=_chosen(args, load_rows(asked.source, asked.plan.preset, chat=chat)))
    methods = named_methods(args.methods or ["paper"], info, asked.plan.metrics)
    return replace(asked, plan=replace(asked.plan, chat=chat, methods=methods))


def _preset(args: argparse.Namespace) -> tuple[Preset, str]:
    """The prompt, and where the data is."""
    if args.preset is not None and args.prompt_template is not None:
        raise InvalidRequestError.of("prompt_template", f"is a prompt of your own, and {args.preset} has one; give one")
    if args.preset is not None:
        options.refuse(args, _OF_A_TEMPLATE, "--preset, which has its own; it belongs to --prompt-template")
        if args.preset not in DATA_PRESETS:
            raise InvalidRequestError.of("preset", did_you_mean("preset", args.preset, DATA_PRESETS))
        preset = replace(DATA_PRESETS[args.preset], name=args.name or args.preset)
        source = args.data or str(preset.hub)
    elif args.prompt_template is not None:
        if args.data is None:
            raise InvalidRequestError.of("data", "must be given with --prompt-template: a file, or hub:ID:SPLIT")
        source = args.data
        preset = custom_preset(
            args.prompt_template,
            system=args.system,
            columns=args.columns,
            label_words=args.label_words or (),
            name=args.name or Path(source.rpartition(":")[2] if source.startswith("hub:") else source).stem,
        )
        if args.first_sentences:
            taken = [column for columns in preset.columns.values() for column in columns if isinstance(column, str)]
            preset = replace(preset, sentences=dict.fromkeys(taken, args.first_sentences))
    else:
        raise InvalidRequestError.of(
            "preset", f"must be given with --data, one of {', '.join(DATA_PRESETS)}; or a --prompt-template of your own"
        )
    if preset.label_words and args.max_new_tokens is not None:
        raise InvalidRequestError.of("max_new_tokens", "has no meaning where label words are the answers")
    if args.balance and args.sample is None:
        raise InvalidRequestError.of("balance", "needs --sample: how many examples, in equal parts of each label")
    if args.balance and not preset.label_words:
        raise InvalidRequestError.of("balance", f"needs label words, and {preset.name} has none")
    return preset, source


def _chosen(args: argparse.Namespace, rows: Rows) -> tuple[Example, ...]:
    if args.sample is None:
        return rows.examples
    return sample(rows.examples, args.sample, args.seed or 0, balance_by_label=bool(args.balance))


def _plan(args: argparse.Namespace, preset: Preset) -> Plan:
    """The run, but for what only the server knows: its methods, and whether it has a chat template."""
    said = {
        "metrics": tuple(args.metrics or ("pi_soft_ns", "pi_soft_nc")),
        "pis": tuple(args.pis or PIS),
        "raw_scores": bool(args.raw_scores),
        "balance": bool(args.balance),
        "chat": not args.raw,
        **options.given(args, "samples", "stride", "offset", "seed", "perturb", "removal", "max_new_tokens", "sample"),
    }
    return Plan(preset, {"random": {"method": "random"}}, **cast("Any", said))


def _check_rationales(plan: Plan, examples: Sequence[Example]) -> None:
    asked = [metric for metric in plan.metrics if metric in PLAUSIBILITY]
    if asked and not any(example.rationale for example in examples):
        raise InvalidRequestError.of(
            "metrics",
            f"{asked[0]} compares with human rationales, and no example has one; leave it out, or name the "
            "column that holds them: --columns rationale=COLUMN",
        )


def check_folder(folder: Path) -> None:
    """Make the folder, and see that it can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsFileError(f"the folder {folder} cannot be made: {error.strerror}; choose another") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ResultsFileError(f"the folder {folder} cannot be written to; choose another")


def _write_bad_rows(output: Output, rows: Rows) -> None:
    """List what cannot be asked."""
    path = output.file("bad_rows.txt")
    if not rows.bad:
        path.unlink(missing_ok=True)
        return
    _write(path, "".join(f"{row.origin}: {row.reason}\n" for row in rows.bad))
    first = rows.bad[0]
    count = "1 row" if len(rows.bad) == 1 else f"{len(rows.bad):,} rows"
    say(f"{count} cannot be asked, listed in {path}; the first: {first.origin} {first.reason}")


@contextmanager
def _targets(args: argparse.Namespace) -> Iterator[list[str]]:
    """The servers to ask; one that is started for this run, where none is given."""
    targets = [target.strip() for target in (args.target or "").split(",") if target.strip()]
    if twice := [target for target in targets if targets.count(target) > 1]:
        raise InvalidRequestError.of("target", f"{twice[0]} is there twice; --concurrency says how much one does")
    if targets:
        options.own_server(args)
        yield targets
        return
    with options.connected(args) as client:
        yield [client.target]


async def _evaluated(args: argparse.Namespace, asked: Asked, targets: Sequence[str], shard: Shard | None) -> None:
    """Run what is left."""
    connect = partial(AsyncClient, **options.security(args), retry=None)  # the runner has a patience of its own
    servers = await ask_servers(targets, connect)
    try:
        for server in servers:
            if not server.is_up:
                say(f"{server.target} does not answer, and is asked again: {server.reason}")
        info = next(server.info for server in servers if server.info is not None)
        asked = for_model(args, asked, info)
        plan, examples = asked.plan, asked.examples
        if "all" in (args.methods or ()):
            plan = replace(plan, methods=await _possible(plan.methods, servers))
    except BaseException:
        await close(servers)
        raise
    with ResultsFile(asked.output.results, plan.settings(examples, info.model)) as kept:
        progress = Progress(data_title(plan.preset.name))
        runner = Runner(
            servers,
            plan,
            examples if shard is None else shard.of_all(examples),
            kept,
            connect=connect,
            concurrency=args.concurrency or 2,
            patience=PATIENCE_SECONDS if args.patience is None else args.patience,
            timeout=args.timeout,
            show=progress.show,
            tell=progress.tell,
        )
        if runner.done_before:
            say(f"{runner.where_it_stands}; the others follow")
        try:
            await runner.run()
        except BaseException as error:
            progress.close(runner)
            if not isinstance(error, InvalidRequestError):
                what = "interrupted" if isinstance(error, asyncio.CancelledError) else "stopped"
                say(f"{what}: {runner.where_it_stands}; this goes on from there:\n  {_command(args)}")
            raise
        progress.close(runner)
        tell_failures(runner.results, runner.total)


async def _possible(methods: Methods, servers: Sequence[Server]) -> Methods:
    """Leave out presets that the model cannot be explained by: what "all" is, is found by trying."""
    client = next(server.client for server in servers if server.is_up)
    found = {}
    for name, keywords in methods.items():
        if name in PRESETS:
            try:
                await client.attribute("a", completion="a", **cast("Any", keywords))
            except InvalidRequestError as error:
                say(f"{name} is left out: {error}")
                continue
        found[name] = keywords
    return found


def tell_failures(results: ResultsFile, total: int) -> None:
    """Say how many examples failed, and why the first did."""
    if failed := results.failed:
        one, why = next(iter(failed.items()))
        count = "1 example" if len(failed) == 1 else f"{len(failed):,} examples"
        say(f"{count} of {total:,} failed, the first: {one}: {why}")


def _interruptible(work: Coroutine[Any, Any, Any]) -> None:
    """Run to the end, or until an interrupt: then in order, and at once at the second."""
    interrupted = False

    async def guarded() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        before = signal.getsignal(signal.SIGINT)

        def interrupt() -> None:
            nonlocal interrupted
            if interrupted or task is None:
                os._exit(_INTERRUPTED)
            interrupted = True
            leave_late = threading.Timer(_SECONDS_TO_LEAVE, os._exit, (_INTERRUPTED,))
            leave_late.daemon = True
            leave_late.start()
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


# --- shards -----------------------------------------------------------------------------------------------------------


def merge(args: argparse.Namespace) -> int:
    """Make one run of its shards, and tables; 1 where examples are missing."""
    statistics.require_numpy()
    if not args.out:
        raise InvalidRequestError.of("out", "must be given: the folder where the run and its tables go, or X.jsonl")
    files = results_files(args.merge)
    results = merged(files)
    lacks = num_missing(results)
    ids: list[str] = []
    if any(getattr(args, name) is not None for name in ("preset", "data", "prompt_template")):
        preset, source = _preset(args)
        prompt = results.settings.get("prompt")
        rows = load_rows(source, preset, chat=isinstance(prompt, dict) and prompt.get("form") == "chat")
        ids = missing_ids(results, _chosen(args, rows))
    output = Output.of(args.out)
    check_folder(output.results.parent)
    write_merged(output, results, files)
    listed = output.file("missing.txt")
    listed.unlink(missing_ok=True)
    say(f"{len(files)} results files with {len(results.done):,} examples are one, {output.results}")
    if ids:
        _write(listed, "".join(f"{one}\n" for one in ids))
    if lacks:
        where = f", listed in {listed}" if ids else "; with the run's --data and prompt, their ids are listed"
        are = "1 example is" if lacks == 1 else f"{lacks:,} examples are"
        say(f"{are} missing{where}: run the shards again that have not ended, and merge once more")
    code = made(args, [read_run(args.out)], output)
    return 1 if lacks else code


# --- tables -----------------------------------------------------------------------------------------------------------


def make_tables(args: argparse.Namespace) -> int:
    """Make tables of runs that are there."""
    statistics.require_numpy()
    output = Output.of(args.out) if args.out else None
    if output is not None:
        check_folder(output.results.parent)
    return made(args, [read_run(place) for place in args.tables], output)


def made(args: argparse.Namespace, runs: Sequence[Run], output: Output | None) -> int:
    """Write tables and figures, and print the first table."""
    found = tables(runs, _command(args))
    if not found:
        raise DataError(f"{runs[0].path} has no number to make a table of: no step could be measured")
    files = [] if output is None else [*_written(found, output), *_drawn(runs, output)]
    if args.format == "json":
        print(found[0].to_json(), end="")
        return 0
    color = use_color(args.color, sys.stdout, os.environ)
    first = found[0]
    heading = f"{first.title[0].upper()}{first.title[1:]}"
    print(f"\x1b[1m{heading}\x1b[0m" if color else heading)
    print(_subtitle(first), end="\n\n")
    print(first.to_text(color=color))
    for line in (*first.against_random(), *first.notes[:1]):
        print(options.wrapped(line))
    if files:
        say(f"\nwritten to {Path(files[0]).parent}: {', '.join(Path(file).name for file in files)}")
    return 0


def _subtitle(table: Table) -> str:
    """Whose numbers they are, and of how many examples."""
    panels = [panel.title for panel in table.panels]
    counts = [f"{run.title} n = {len(run.records):,}" for panel in table.panels for run in panel.runs]
    return visible(f"{', '.join(panels)}; {', '.join(counts)}; 95 % intervals by bootstrap over examples")


def _written(found: Sequence[Table], output: Output) -> list[Path]:
    files = []
    for table in found:
        for kind, text in ((".md", table.to_markdown()), (".csv", table.to_csv()), (".json", table.to_json())):
            files.append(output.file(table.name + kind))
            _write(files[-1], text)
    return files


def _drawn(runs: Sequence[Run], output: Output) -> list[Path]:
    """Draw figure 2 of each data set."""
    if missing := figures.can_draw():
        say(f"figure2 is left out: {missing}")
        return []
    files = []
    for place, run in enumerate(runs, 1):
        figure = figures.run_figure(run)
        if figure is None:
            continue
        name = "figure2" if len(runs) == 1 else f"figure2-{place}-{run.settings['preset']}"
        for kind in (".png", ".svg"):
            files.append(output.file(name + kind))
            figures.save(figure, files[-1])
    return files


def _write(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")  # a row's names may be anything
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ResultsFileError(f"{path} cannot be written: {error.strerror}") from error


def _command(args: argparse.Namespace) -> str:
    return shlex.join([*getattr(args, "program", ("gradellm",)), *args.arguments])


def say(text: str) -> None:
    """Tell a person something, on standard error."""
    print("\n".join(map(visible, text.split("\n"))), file=sys.stderr, flush=True)
