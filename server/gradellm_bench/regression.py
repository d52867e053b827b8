"""Cost of one source tree relative to another: `python -m gradellm_bench.regression OLD_TREE NEW_TREE --model PATH`.

Each tree gets a process of its own with the tree's packages and the current interpreter. Both load the model and warm
up; then, in each round, each case (plain, per_token and chunked decoding; one request alone and several at once) is
measured in one right after the other, alternately first, so that both meet the same load of the machine. The result is
the median over the rounds of new / old seconds per token after the first, as a table and as JSON. Trees may have
different modules, so the measuring process uses only names that `gradellm_engine` exports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

Seconds = dict[str, float]  # seconds per token, by case

PACKAGE_FOLDERS = ("client", "", "server")  # of a tree, on PYTHONPATH
EXIT_FAILED = 70
# Runs in each tree. Prints the names of the cases; then, for each name that it reads, seconds per token.
CHILD = """
import json, sys, time
from gradellm_engine import AttributionSettings, Delivery, Engine, Sampling

options = json.loads(sys.argv[1])
engine = Engine.load(options["model"], threads=options["threads"], max_running=options["streams"])
MODES = {
    "plain": None,
    "per_token": AttributionSettings(),
    "chunked": AttributionSettings(delivery=Delivery.CHUNKED),
}
PROMPTS = [f"Once upon a time there was a little {name} who" for name in ("cat", "dog", "bear", "girl", "boy", "bird")]


def seconds_per_token(attribution, count):
    sampling = Sampling(max_new_tokens=options["new_tokens"], temperature=0.0)
    generations = [iter(engine.generate(PROMPTS[i % len(PROMPTS)], sampling, attribution)) for i in range(count)]
    for generation in generations:  # prefill and first token
        next(generation)
    start, tokens = time.perf_counter(), 0
    while generations:  # in turn, so that they run in the same batches
        for generation in list(generations):
            if next(generation, None) is None:
                generations.remove(generation)
            else:
                tokens += 1
    return (time.perf_counter() - start) / max(1, tokens)


cases = {
    f"{mode}, {count} at once" if count > 1 else f"{mode}, alone": (attribution, count)
    for mode, attribution in MODES.items()
    for count in sorted({1, options["streams"]})
}
for attribution, count in cases.values():
    seconds_per_token(attribution, count)  # warms up: kernels are chosen, passes traced
print(json.dumps(list(cases)), flush=True)
for case in sys.stdin:
    print(seconds_per_token(*cases[case.rstrip()]), flush=True)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two trees; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gradellm_bench.regression", description="Compare the cost of tokens in two source trees."
    )
    parser.add_argument("old_tree", type=Path, help="a checkout, such as a git worktree of an earlier commit")
    parser.add_argument("new_tree", type=Path, help="the checkout to compare with it")
    parser.add_argument("--model", type=Path, required=True, metavar="PATH", help="checkpoint folder")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--new-tokens", type=int, default=48, metavar="N", help="tokens a request (default: %(default)s)"
    )
    parser.add_argument("--streams", type=int, default=4, metavar="N", help="requests at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one for each core)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here, too")
    options = parser.parse_args(arguments)
    settings = {
        "model": str(options.model.resolve()),
        "threads": options.threads,
        "new_tokens": options.new_tokens,
        "streams": options.streams,
    }
    rounds: list[tuple[Seconds, Seconds]] = []
    try:
        with MeasuredTree(options.old_tree, settings) as old, MeasuredTree(options.new_tree, settings) as new:
            for number in range(options.rounds):
                rounds.append(measure_round(old, new, new_first=bool(number % 2)))
                print(progress(rounds, options.rounds), file=sys.stderr, flush=True)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    ratios = compare(rounds)
    result = {"old": str(options.old_tree), "new": str(options.new_tree), "rounds": options.rounds, "ratios": ratios}
    print(table(ratios))
    print(f"\n{json.dumps(result)}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


class MeasuredTree:
    """A process that imports one tree's packages, has loaded the model, and measures a case on demand.

    Attributes:
        cases: the names of what it measures.
    """

    cases: list[str]

    def __init__(self, tree: Path, settings: Mapping[str, object]) -> None:
        """Load the model and warm up.

        Raises:
            RuntimeError: if the process fails, with the end of its standard error.
        """
        folders = [str((tree / folder).resolve()) for folder in PACKAGE_FOLDERS]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONSAFEPATH": "1"}
        self._tree = tree
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", CHILD, json.dumps(settings)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            self.cases = json.loads(self._answer())
        except BaseException:
            self.close()
            raise

    def seconds_per_token(self, case: str) -> float:
        """Measure a case once.

        Raises:
            RuntimeError: if the process has failed, with the end of its standard error.
        """
        if self._process.stdin is None:
            raise ValueError("the process has no standard input")
        with suppress(BrokenPipeError):  # the answer tells why
            self._process.stdin.write(f"{case}\n")
            self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        """The next line that the process prints and that is not a library's."""
        for line in self._process.stdout or ():
            if line.startswith("[") or line[0].isdigit():
                return line
        code = self._process.wait()
        self._errors.seek(0)
        raise RuntimeError(f"the measurement in {self._tree} failed with {code}: {self._errors.read().strip()[-2000:]}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def measure_round(old: MeasuredTree, new: MeasuredTree, *, new_first: bool) -> tuple[Seconds, Seconds]:
    """Seconds per token of the old and of the new tree by case, measured one right after the other."""
    in_order = (new, old) if new_first else (old, new)
    measured: dict[MeasuredTree, Seconds] = {old: {}, new: {}}
    for case in old.cases:
        for tree in in_order:
            measured[tree][case] = tree.seconds_per_token(case)
    return measured[old], measured[new]


def progress(rounds: Sequence[tuple[Seconds, Seconds]], total: int) -> str:
    """The newest round's ratio new / old of each case, in a line."""
    old, new = rounds[-1]
    return f"round {len(rounds)} of {total}: " + ", ".join(f"{case} {new[case] / old[case]:.3f}" for case in old)


def compare(rounds: Sequence[tuple[Seconds, Seconds]]) -> dict[str, dict[str, float]]:
    """By case: the median, smallest and largest ratio new / old over the rounds, and median milliseconds of both."""
    result = {}
    for case in rounds[0][0]:
        ratios = [new[case] / old[case] for old, new in rounds]
        result[case] = {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
            "old_ms": 1e3 * statistics.median(old[case] for old, _ in rounds),
            "new_ms": 1e3 * statistics.median(new[case] for _, new in rounds),
        }
    return result


def table(ratios: Mapping[str, Mapping[str, float]]) -> str:
    """The result as Markdown."""
    rows = [
        f"| {case} | {figures['median']:.3f} | {figures['min']:.3f} to {figures['max']:.3f} "
        f"| {figures['old_ms']:.2f} | {figures['new_ms']:.2f} |"
        for case, figures in ratios.items()
    ]
    head = ["| | new / old | rounds | old, ms a token | new, ms a token |", "| --- | ---: | ---: | ---: | ---: |"]
    return "\n".join([*head, *rows])


if __name__ == "__main__":
    sys.exit(main())
