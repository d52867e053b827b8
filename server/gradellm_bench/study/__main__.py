"""`python -m gradellm_bench.study`: which attribution method explains real models best.

`measure` runs one model over some data sets, and continues where the last run ended; `prototypes` measures candidate
formulas, too, and prints paired differences; `report` prints tables. The hours that are left are printed after the
first rows, and `--hours` ends a run in time. `citations` and `citations-report` do the same for citations of documents.
`masked` draws pictures without their words.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradellm_bench.capacity.document import BEGIN, put
from gradellm_bench.study.candidates import CANDIDATES, PROTOTYPE_BASELINES, chosen
from gradellm_bench.study.citation_commands import add_parsers
from gradellm_bench.study.examples import DATASETS
from gradellm_bench.study.masked import add_parser
from gradellm_bench.study.measure import SoftGrid, measure_row
from gradellm_bench.study.prototypes.scores import CANDIDATES as FORMULAS
from gradellm_bench.study.prototypes.scores import chosen as chosen_formulas
from gradellm_bench.study.prototypes.scores import score_fn
from gradellm_bench.study.report import (
    METRICS,
    Key,
    Values,
    load,
    overview_table,
    paired_table,
    rank_table,
    soft_table,
    table,
)
from gradellm_bench.study.results import ResultsFile
from gradellm_engine import Engine

EXIT_FAILED = 70
ESTIMATE_EVERY = 10  # rows
OVERVIEW_COSTS = {
    "relevance_head_abs_no_sink": "a step",
    "paper": "a step",
    "attention": "a step",
    "saliency": "a pass over the text",
    "relevance": "a pass over the text",
    "value_zeroing": "a pass over the text for each layer",
}
"""What a method of the README's table computes beside the text."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gradellm_bench.study", description=__doc__)
    commands = parser.add_subparsers(required=True)
    measure = commands.add_parser("measure", help="run a model over data sets")
    _add_run(measure, f"default: all of {', '.join(CANDIDATES)}", list(CANDIDATES))
    measure.set_defaults(run=_measure, formulas=[])
    prototypes = commands.add_parser("prototypes", help="the same, with formulas that the engine does not have")
    _add_run(prototypes, f"default: {' '.join(PROTOTYPE_BASELINES)}", list(PROTOTYPE_BASELINES))
    prototypes.add_argument("--formulas", nargs="+", metavar="NAME", help=f"default: all of {', '.join(FORMULAS)}")
    prototypes.set_defaults(run=_prototypes)
    report = commands.add_parser("report", help="print the tables of a folder of results")
    report.add_argument("folder", type=Path)
    report.add_argument("--against", metavar="METHOD", help="print paired differences from this method")
    report.add_argument("--methods", nargs="+", metavar="METHOD", help="rows of the tables (default: all)")
    report.add_argument("--rows", choices=("all", "even", "odd"), default="all")
    report.add_argument(
        "--page", type=Path, metavar="FILE", help="put the tables that this page has markers for between them, too"
    )
    report.add_argument("--mark", default="study", metavar="NAME", help="of the page's markers (default: %(default)s)")
    report.set_defaults(run=_report)
    add_parsers(commands)
    add_parser(commands)
    return parser


def _add_run(parser: argparse.ArgumentParser, methods: str, default: Sequence[str]) -> None:
    """Arguments of a run over data sets."""
    parser.add_argument("--model", type=Path, required=True, metavar="PATH", help="checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the data sets' files")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, required=True)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", default=default, help=methods)
    parser.add_argument("--rows", type=int, default=100, metavar="N", help="of a data set (default: %(default)s)")
    parser.add_argument("--soft", action="store_true", help="pi-Soft metrics, too, which take most of the time")
    parser.add_argument("--pis", nargs="+", type=float, default=list(SoftGrid.pis), metavar="PI")
    parser.add_argument("--samples", type=int, default=SoftGrid.samples, metavar="N", help="masks for each pi")
    parser.add_argument("--hours", type=float, default=float("inf"), metavar="H", help="end after so long")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")


def _measure(options: argparse.Namespace) -> int:
    methods, formulas = chosen(options.methods), chosen_formulas(options.formulas)
    grid = SoftGrid(tuple(options.pis), options.samples) if options.soft else None
    ends = time.monotonic() + 3600 * options.hours
    engine = Engine.load(str(options.model), dtype="float32", max_running=1)
    for dataset in options.datasets:
        examples = DATASETS[dataset](options.data, engine.info.has_chat_template)[: options.rows]
        settings = {
            "model": options.model.name,
            "weights": engine.info.weights_sha256[:12],
            "dataset": dataset,
            "methods": [*methods, *formulas],
            "soft": None if grid is None else {"pis": list(grid.pis), "samples": grid.samples},
        }
        name = f"{options.model.name}-{dataset}{'-soft' if options.soft else ''}.jsonl"
        file = ResultsFile(options.out / name, settings)
        done = file.ids()
        left = [(number, example) for number, example in enumerate(examples) if example.id not in done]
        began = time.monotonic()
        for count, (number, example) in enumerate(left):
            if time.monotonic() > ends:
                print(f"{dataset}: ended in time, {len(left) - count} rows left", file=sys.stderr)
                return 0
            row = measure_row(engine, example, methods, grid, score_fn(engine.model, formulas) if formulas else None)
            file.add({"id": example.id, "number": number} | (row or {}))
            engine.model.runner.pool.evict_all()  # rows have nothing in common
            if (count + 1) % ESTIMATE_EVERY == 0:
                hours = (time.monotonic() - began) / (count + 1) * (len(left) - count - 1) / 3600
                print(f"{dataset}: {count + 1} of {len(left)} rows, {hours:.2f} hours left", file=sys.stderr)
    return 0


def _prototypes(options: argparse.Namespace) -> int:
    """Measure, and compare with the first of the methods."""
    _measure(options)
    _print_tables(load(options.out), None, options.methods[0], None, "")
    return 0


def _report(options: argparse.Namespace) -> int:
    parity = {"all": None, "even": 0, "odd": 1}[options.rows]
    data = load(options.folder, parity)
    _print_tables(data, options.methods, options.against, options.page, options.mark)
    text = rank_table(data)
    print(f"## Mean rank\n\n{text}")
    _put(options.page, f"{options.mark} ranks", text)
    return 0


def _print_tables(
    data: Mapping[Key, Values], names: Sequence[str] | None, against: str | None, page: Path | None, mark: str
) -> None:
    """Print a table of each metric, of all methods or of `names`, and put it in a page."""
    for metric in METRICS:
        if text := table(data, metric, names) if against is None else paired_table(data, metric, against, names):
            print(f"## {metric}\n\n{text}\n")
            _put(page, f"{mark} {metric}", text)
    if against is None and page is not None:
        _put(page, f"{mark} why", overview_table(data, OVERVIEW_COSTS))
    if against is not None and (text := soft_table(data, against, names)):
        print(f"## pi_soft_ns and pi_soft_nc, means over data sets\n\n{text}\n")
        _put(page, f"{mark} pi_soft", text)


def _put(page: Path | None, name: str, text: str) -> None:
    """Put a table in a page that has a place for it."""
    if page is not None and BEGIN.format(name) in page.read_text():
        page.write_text(put(page.read_text(), name, text))


if __name__ == "__main__":
    sys.exit(main())
