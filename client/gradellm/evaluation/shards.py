"""A run in parts: every N-th example is a shard, evaluated somewhere on its own; their results files make one again.

1. A shard's results file has the settings of the whole run: that they are equal says that the files are of one run.
2. What comes of an example does not depend on where it is evaluated, so that the union of all shards is the run.
3. An example that two files hold is an error, for which of its two results counts would be nobody's choice. One that
   none holds is missing, and told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from gradellm.errors import InvalidRequestError
from gradellm.evaluation.datasets import DataError, digest
from gradellm.evaluation.results_file import Results, ResultsFileError, differences, read_results, write_results
from gradellm.evaluation.run_results import Output

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gradellm.evaluation.datasets import Example

__all__ = ["Shard", "merged", "missing_ids", "num_missing", "results_files", "write_merged"]

T = TypeVar("T")

_FOLDER = "shards"
_MOST_LISTED = 5


@dataclass(frozen=True)
class Shard:
    """One of the parts of a run."""

    index: int
    """From 0 on."""
    count: int

    @classmethod
    def of(cls, text: str) -> Self:
        """Read "3/8", the fourth of eight. Raises InvalidRequestError."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise InvalidRequestError.of(
                "shard", f"must be INDEX/COUNT, with INDEX from 0 to COUNT - 1, such as 0/8 or 7/8, not {text!r}"
            )
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of_all(self, examples: Sequence[T]) -> Sequence[T]:
        """Return its part of the examples."""
        return examples[self.index :: self.count]

    def output(self, out: str) -> Output:
        """Return where its files go: for a folder that all shards are given, into one of their own names."""
        whole = Output.of(out)
        if Path(out) == whole.results:
            return whole
        name = f"{self.index}-of-{self.count}"
        return Output(Path(out) / _FOLDER / f"{name}.jsonl", f"{name}.")


def results_files(places: Iterable[str]) -> list[Path]:
    """Return the results files that are meant: a file itself, of a folder those of its shards, or its own.

    Raises ResultsFileError where a folder of shards is empty.
    """
    files: list[Path] = []
    for place in places:
        folder = Path(place) / _FOLDER
        if folder.is_dir():
            found = sorted(folder.glob("*.jsonl"))
            if not found:
                raise ResultsFileError(f"{folder} holds no results file: no shard of that run has begun")
            files += found
        else:
            files.append(Output.of(place).results)
    return files


def merged(files: Sequence[Path]) -> Results:
    """Return what the files of one run hold together.

    Raises ResultsFileError where they are not of one run, one is given twice, or an example is done in two of them.
    """
    given: dict[Path, Path] = {}
    for path in files:
        if path.resolve() in given:
            raise ResultsFileError(f"{path} is given twice; each results file counts once")
        given[path.resolve()] = path
    of = [(path, read_results(path)) for path in files]
    first_path, first = of[0]
    done: dict[str, object] = {}
    where: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for path, results in of:
        if differing := list(differences(first.settings, results.settings)):
            raise ResultsFileError(
                f"{first_path} and {path} are not of one run: {'; '.join(differing)} (from the first to the second); "
                "merge those that were begun with the same flags, data and model"
            )
        if twice := sorted(results.done.keys() & done.keys()):
            raise ResultsFileError(
                f"{_listed(twice)} {'is' if len(twice) == 1 else 'are'} done in {where[twice[0]]} and in {path} too; "
                "an example counts once: leave one of the files out, or take those lines out of one"
            )
        done |= results.done
        where |= dict.fromkeys(results.done, path)
        failed |= results.failed
    left = {one: why for one, why in failed.items() if one not in done}
    both = Results(first.settings, done, left)
    if num_missing(both) < 0:
        raise ResultsFileError(
            f"the files hold {len(done) + len(left)} examples, and the run has {_examples(both)}; one of them was "
            "changed after it was written"
        )
    return both


def num_missing(results: Results) -> int:
    """Return how many examples of the run have neither been done nor failed."""
    return _examples(results) - len(results.done) - len(results.failed)


def missing_ids(results: Results, examples: Sequence[Example]) -> list[str]:
    """Return which those are, in the run's order. Raises DataError where the results are of other examples."""
    its = str(results.settings["data"].get("sha256"))
    if (found := digest(examples)) != its:
        raise DataError(
            f"these are not the examples that the results are of: their digest is {found[:12]}, that of the results "
            f"{its[:12]}; give the same --data, prompt, --sample, --balance and --seed as the run had"
        )
    return [one.id for one in examples if one.id not in results.done and one.id not in results.failed]


def write_merged(output: Output, results: Results, files: Iterable[Path]) -> None:
    """Write the run's results file, and the bad rows that its shards have listed.

    Raises ResultsFileError where the place is taken by anything but an earlier state of the same.
    """
    place = output.results
    if place.resolve() in {path.resolve() for path in files}:
        raise ResultsFileError(f"{place} is one of the files that are merged; choose another --out")
    if place.exists():
        there = read_results(place)
        changed = [one for one, record in there.done.items() if one not in results.done or results.done[one] != record]
        if changed or list(differences(there.settings, results.settings)):
            raise ResultsFileError(
                f"{place} holds results that the merged files do not have"
                f"{f', such as of {changed[0]}' if changed else ''}; choose another --out, or merge it as well"
            )
    write_results(place, results)
    bad = [Output.of(str(path)).file("bad_rows.txt") for path in files]
    lines = dict.fromkeys(
        line
        for path in bad
        if path.exists()
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    )
    listed = output.file("bad_rows.txt")
    listed.unlink(missing_ok=True)
    if lines:
        listed.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _examples(results: Results) -> int:
    data = results.settings.get("data")
    count = data.get("examples") if isinstance(data, dict) else None
    if type(count) is not int or count < 0:
        raise ResultsFileError(
            "the results were not written by `gradellm evaluate`: they do not say how many examples the run has"
        )
    return count


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MOST_LISTED} more" if len(ids) > _MOST_LISTED else ""
    return f"{'example' if len(ids) == 1 else 'examples'} {', '.join(ids[:_MOST_LISTED])}{more}"
