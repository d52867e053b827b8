"""Commands of the study: `citations` runs a model over generated chats, `citations-report` prints tables."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

from gradellm import Client
from gradellm_bench.capacity.document import BEGIN, put
from gradellm_bench.study.citation_report import JUDGED_ON, kinds_table, load, passages, table
from gradellm_bench.study.citations import METHODS, explained, judged
from gradellm_bench.study.document_chats import GENERATORS, MAIN_ASKS, Asks, document_chat
from gradellm_bench.study.results import ResultsFile

DEFAULT_GENERATORS = ("boxes", "notes")
ESTIMATE_EVERY = 10  # chats


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    run = commands.add_parser("citations", help="run a model over generated chats with documents")
    run.add_argument("--model", required=True, metavar="PATH", help="checkpoint folder")
    run.add_argument("--dtype", default="float32", metavar="D", help="of computation (default: %(default)s)")
    run.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    run.add_argument("--seeds", type=int, default=200, metavar="N", help="chats of each kind (default: %(default)s)")
    run.add_argument("--generators", nargs="+", choices=GENERATORS, default=DEFAULT_GENERATORS, metavar="GENERATOR")
    run.add_argument("--asks", nargs="+", choices=get_args(Asks), default=MAIN_ASKS, metavar="ASKS")
    run.add_argument("--hours", type=float, default=float("inf"), metavar="H", help="end after so long")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    run.set_defaults(run=measure)
    tables = commands.add_parser("citations-report", help="print the tables of a folder of results")
    tables.add_argument("folder", type=Path)
    tables.add_argument("--page", type=Path, metavar="FILE", help="put the table between its markers, too")
    tables.add_argument(
        "--generator", choices=GENERATORS, default=JUDGED_ON, help="of the judged chats (default: %(default)s)"
    )
    tables.set_defaults(run=report)


def chats(
    seeds: int, generators: Iterable[str] = DEFAULT_GENERATORS, kinds: Iterable[Asks] = MAIN_ASKS
) -> Iterator[tuple[str, Asks, int]]:
    """Generator, kind and seed of all chats, so that a run that is ended early has some of each kind."""
    for seed in range(seeds):
        for asks in kinds:
            for generator in generators:
                yield generator, asks, seed


def measure(options: argparse.Namespace) -> int:
    """Run a model, and continue where the last run ended."""
    methods = {name: METHODS[name] for name in options.methods}
    name = Path(options.model).name
    settings = {"model": name, "dtype": options.dtype, "methods": list(methods)}
    file = ResultsFile(options.out / f"{name}.jsonl", settings)
    done = file.ids()
    wanted = chats(options.seeds, options.generators, options.asks)
    left = [chat for chat in wanted if row_id(*chat) not in done]
    began = time.monotonic()
    with Client.local(model=options.model, dtype=options.dtype) as client:
        for count, (generator, asks, seed) in enumerate(left):
            hours = (time.monotonic() - began) / 3600
            if hours > options.hours:
                print(f"ended in time, {len(left) - count} chats left", file=sys.stderr)
                return 0
            chat = document_chat(generator, seed, asks)
            row = {"id": row_id(generator, asks, seed), "generator": generator, "asks": asks}
            if explanations := explained(client, chat, methods):
                row |= {"documents": list(chat.documents)} | judged(chat, explanations)
            file.add(row)
            if (count + 1) % ESTIMATE_EVERY == 0:
                rest = hours / (count + 1) * (len(left) - count - 1)
                print(f"{count + 1} of {len(left)} chats, {rest:.2f} hours left", file=sys.stderr)
    return 0


def row_id(generator: str, asks: str, seed: int) -> str:
    """The name of a chat, unique in a file."""
    return f"{generator}-{asks}-{seed}"


def report(options: argparse.Namespace) -> int:
    """Print the tables of a folder."""
    data = load(options.folder)
    name = f"study {options.folder.resolve().name}"
    if options.generator != JUDGED_ON:
        name += f" {options.generator}"
    for place, text in (
        (name, table(data, options.generator)),
        (f"{name} kinds", kinds_table(data, options.generator)),
    ):
        print(f"{text}\n")
        if options.page is not None and BEGIN.format(place) in options.page.read_text():
            options.page.write_text(put(options.page.read_text(), place, text))
    for (model, method), share in passages(options.folder).items():
        print(f"passage is the fact: {model}, {method}: {share}")
    return 0
