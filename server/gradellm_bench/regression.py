"""Cost of one source tree relative to another: `python -m gradellm_bench.regression OLD_TREE NEW_TREE --model PATH`.

Each round runs both trees, alternately first, each in its own process with the tree's own packages and the current
interpreter. A process decodes greedily per mode (plain, per_token, chunked), one request alone and several at once, and
reports seconds per token after the first token. The result is the median over the rounds of new / old, as a table and
as JSON. Trees may have different modules, so the measuring process uses only names that `gradellm_engine` exports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

Seconds = dict[str, float]  # seconds per token, by case

PACKAGE_FOLDERS = ("client", "", "server")  # of a tree, on PYTHONPATH
EXIT_FAILED = 70
# Runs in each tree. Prints a JSON object of seconds per token by case.
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
print(json.dumps({case: seconds_per_token(*arguments) for case, arguments in cases.items()}))
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
    try:
        rounds = [
            measure_round(options.old_tree, options.new_tree, settings, new_first=bool(number % 2))
            for number in range(options.rounds)
        ]
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


def measure_round(
    old_tree: Path, new_tree: Path, settings: Mapping[str, object], *, new_first: bool
) -> tuple[Seconds, Seconds]:
    """Seconds per token of the old and of the new tree, one measured right after the other."""
    trees = [("old", old_tree), ("new", new_tree)]
    measured = {name: measure_tree(tree, settings) for name, tree in (reversed(trees) if new_first else trees)}
    return measured["old"], measured["new"]


def measure_tree(tree: Path, settings: Mapping[str, object]) -> Seconds:
    """Seconds per token by case, in a process that imports the tree's packages.

    Raises:
        RuntimeError: if the process fails, with the end of its standard error.
    """
    folders = [str((tree / folder).resolve()) for folder in PACKAGE_FOLDERS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", CHILD, json.dumps(settings)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if child.returncode:
        raise RuntimeError(f"the measurement in {tree} failed with {child.returncode}: {child.stderr.strip()[-2000:]}")
    seconds: Seconds = json.loads(child.stdout.strip().splitlines()[-1])
    return seconds


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
