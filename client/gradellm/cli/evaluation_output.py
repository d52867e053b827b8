"""Writes and prints the tables and figures of runs."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gradellm.cli import options
from gradellm.cli.progress import print_status
from gradellm.evaluation import figures
from gradellm.evaluation.examples import DataError
from gradellm.evaluation.results_file import ResultsFileError
from gradellm.evaluation.tables.tables import tables
from gradellm.rendering.terminal import use_color, visible

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from gradellm.evaluation.run_results import Output, Run
    from gradellm.evaluation.tables.table import Table

__all__ = ["check_folder", "command_line", "write_tables", "write_text"]


def write_tables(args: argparse.Namespace, runs: Sequence[Run], output: Output | None) -> int:
    """Write tables and figures, if there is an output folder, and print the first table. Return the exit code."""
    found = tables(runs, command_line(args))
    if not found:
        raise DataError(f"{runs[0].path} has no values to make a table of: no step could be measured")
    files = [] if output is None else [*_write_table_files(found, output), *_write_figures(runs, output)]
    first = found[0]
    if args.format == "json":
        print(first.to_json(), end="")
        return 0
    color = use_color(args.color, sys.stdout, os.environ)
    heading = f"{first.title[0].upper()}{first.title[1:]}"
    print(f"\x1b[1m{heading}\x1b[0m" if color else heading)
    print(_subtitle(first), end="\n\n")
    print(first.to_text(color=color))
    for line in (*first.against_random(), *first.notes[:1]):
        print(options.wrap_text(line))
    if files:
        print_status(f"\nwritten to {files[0].parent}: {', '.join(file.name for file in files)}")
    return 0


def _subtitle(table: Table) -> str:
    """Return models, data sets and numbers of examples in one line."""
    panels = [panel.title for panel in table.panels]
    counts = [f"{run.title} n = {len(run.records):,}" for panel in table.panels for run in panel.runs]
    return visible(f"{', '.join(panels)}; {', '.join(counts)}; 95 % intervals by bootstrap over examples")


def _write_table_files(found: Sequence[Table], output: Output) -> list[Path]:
    files = []
    for table in found:
        for suffix, text in ((".md", table.to_markdown()), (".csv", table.to_csv()), (".json", table.to_json())):
            files.append(output.file(table.name + suffix))
            write_text(files[-1], text)
    return files


def _write_figures(runs: Sequence[Run], output: Output) -> list[Path]:
    """Draw the paper's figure 2 for each data set."""
    if missing := figures.missing_package():
        print_status(f"figure2 is left out: {missing}")
        return []
    files = []
    for number, run in enumerate(runs, 1):
        figure = figures.run_figure(run)
        if figure is None:
            continue
        name = "figure2" if len(runs) == 1 else f"figure2-{number}-{run.settings['preset']}"
        for suffix in (".png", ".svg"):
            files.append(output.file(name + suffix))
            figures.save(figure, files[-1])
    return files


def check_folder(folder: Path) -> None:
    """Create a folder, and raise ResultsFileError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsFileError(f"the folder {folder} cannot be created: {error.strerror}; choose another") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ResultsFileError(f"the folder {folder} cannot be written to; choose another")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically. Raises ResultsFileError."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # names in the data may be anything
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ResultsFileError(f"{path} cannot be written: {error.strerror}") from error


def command_line(args: argparse.Namespace) -> str:
    """Return the command line of this process, quoted for a shell."""
    return shlex.join([*getattr(args, "program", ("gradellm",)), *args.arguments])
