"""Shards of a run: shard I of N has every N-th example from I on. Their results files are merged into one.

1. A shard's results file has the settings of the whole run; files with equal settings belong to one run.
2. The result of an example does not depend on the server, so that the union of all shards is the run.
3. An example with results in two files is an error. Examples without a result are reported as missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from gradellm.errors import InvalidRequestError
from gradellm.evaluation.examples import DataError, digest
from gradellm.evaluation.results_file import Results, ResultsFileError, differences, read_results, write_results
from gradellm.evaluation.run_results import Output

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gradellm.evaluation.examples import Example

__all__ = ["Shard", "merge_results", "missing_ids", "num_missing", "results_files", "write_merged"]

T = TypeVar("T")

_FOLDER = "shards"
_MAX_LISTED = 5


@dataclass(frozen=True)
class Shard:
    """One of the shards of a run."""

    index: int
    """From 0."""
    count: int

    @classmethod
    def of(cls, text: str) -> Self:
        """Parse "3/8", the fourth of eight. Raises InvalidRequestError."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise InvalidRequestError.of(
                "shard", f"must be INDEX/COUNT, with INDEX from 0 to COUNT - 1, such as 0/8 or 7/8, not {text!r}"
            )
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of_all(self, examples: Sequence[T]) -> Sequence[T]:
        """Return the shard's examples."""
        return examples[self.index :: self.count]

    def output(self, out: str) -> Output:
        """Return the shard's files: below the folder `out` that all shards share, or a results file of its own."""
        unsharded = Output.of(out)
        if Path(out) == unsharded.results:
            return unsharded
        name = f"{self.index}-of-{self.count}"
        return Output(Path(out) / _FOLDER / f"{name}.jsonl", f"{name}.")


def results_files(paths: Iterable[str]) -> list[Path]:
    """Return results files: of a path to a file, that file; of a run's folder, those of its shards, or its own.

    Raises ResultsFileError for an empty folder of shards.
    """
    files: list[Path] = []
    for path_or_folder in paths:
        folder = Path(path_or_folder) / _FOLDER
        if folder.is_dir():
            found = sorted(folder.glob("*.jsonl"))
            if not found:
                raise ResultsFileError(f"{folder} contains no results file: no shard of that run has started")
            files += found
        else:
            files.append(Output.of(path_or_folder).results)
    return files


def merge_results(files: Sequence[Path]) -> Results:
    """Return the merged results of the files of one run.

    Raises ResultsFileError if they belong to several runs, a file is given twice, or an example has two results.
    """
    file_of_path: dict[Path, Path] = {}
    for path in files:
        if path.resolve() in file_of_path:
            raise ResultsFileError(f"{path} is given twice; each results file counts once")
        file_of_path[path.resolve()] = path
    by_file = [(path, read_results(path)) for path in files]
    first_path, first = by_file[0]
    done: dict[str, object] = {}
    where: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for path, results in by_file:
        if differing := list(differences(first.settings, results.settings)):
            raise ResultsFileError(
                f"{first_path} and {path} belong to different runs: {'; '.join(differing)} (from the first to the "
                "second); merge files with the same flags, data and model"
            )
        if duplicates := sorted(results.done.keys() & done.keys()):
            have = "has results" if len(duplicates) == 1 else "have results"
            raise ResultsFileError(
                f"{_examples_text(duplicates)} {have} in {where[duplicates[0]]} and in {path}; leave one of the files "
                "out, or remove those lines from one"
            )
        done |= results.done
        where |= dict.fromkeys(results.done, path)
        failed |= results.failed
    failed = {example_id: error for example_id, error in failed.items() if example_id not in done}
    both = Results(first.settings, done, failed)
    if num_missing(both) < 0:
        raise ResultsFileError(
            f"the files have {len(done) + len(failed)} examples, but the run has {_num_examples(both)}; a file was "
            "changed after it was written"
        )
    return both


def num_missing(results: Results) -> int:
    """Return the number of examples that have neither a result nor a failure."""
    return _num_examples(results) - len(results.done) - len(results.failed)


def missing_ids(results: Results, examples: Sequence[Example]) -> list[str]:
    """Return their ids in the run's order. Raises DataError if the results belong to other examples."""
    expected = str(results.settings["data"].get("sha256"))
    if (actual := digest(examples)) != expected:
        raise DataError(
            f"these are not the examples of the results: their digest is {actual[:12]}, that of the results "
            f"{expected[:12]}; give the same --data, prompt, --sample, --balance and --seed as for the run"
        )
    ids = [example.id for example in examples]
    return [each for each in ids if each not in results.done and each not in results.failed]


def write_merged(output: Output, results: Results, files: Iterable[Path]) -> None:
    """Write the merged results file, and the bad rows of the shards.

    Raises ResultsFileError if the file exists and is not an earlier merge of the same run.
    """
    results_path = output.results
    if results_path.resolve() in {path.resolve() for path in files}:
        raise ResultsFileError(f"{results_path} is one of the merged files; choose another --out")
    if results_path.exists():
        existing = read_results(results_path)
        changed = [each for each, record in existing.done.items() if results.done.get(each) != record]
        if changed or list(differences(existing.settings, results.settings)):
            raise ResultsFileError(
                f"{results_path} has results that the merged files lack"
                f"{f', such as of {changed[0]}' if changed else ''}; choose another --out, or merge it as well"
            )
    write_results(results_path, results)
    bad_rows = [Output.of(str(path)).file("bad_rows.txt") for path in files]
    lines = dict.fromkeys(
        line
        for path in bad_rows
        if path.exists()
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    )
    merged_bad_rows = output.file("bad_rows.txt")
    merged_bad_rows.unlink(missing_ok=True)
    if lines:
        merged_bad_rows.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _num_examples(results: Results) -> int:
    data = results.settings.get("data")
    count = data.get("examples") if isinstance(data, dict) else None
    if type(count) is not int or count < 0:
        raise ResultsFileError(
            "the results were not written by `gradellm evaluate`: their settings lack the number of examples"
        )
    return count


def _examples_text(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MAX_LISTED} more" if len(ids) > _MAX_LISTED else ""
    return f"{'example' if len(ids) == 1 else 'examples'} {', '.join(ids[:_MAX_LISTED])}{more}"
