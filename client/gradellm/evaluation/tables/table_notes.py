"""What stands under a table: how many examples, what became of the others, and who computed what, how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradellm.evaluation.run_results import METHOD_TITLES, made_by, method_title

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gradellm.evaluation.run_results import Run
    from gradellm.evaluation.tables.tables import Panel

__all__ = ["answers", "few", "notes", "versions_said"]

_FEW = 20
"""Below so many examples a bootstrap's interval is far too narrow: of three positive differences it never holds 0."""
_MOST_LISTED = 5  # failures and bad rows


def notes(panels: Sequence[Panel], methods: Sequence[str]) -> Iterator[str]:
    """Yield what stands under a table."""
    yield "Methods: " + "; ".join(_legend(name, panels) for name in methods) + "."
    yield (
        "Marks: the best number of a row is bold, the second underlined, the third in italics; numbers that look equal "
        "share a mark."
    )
    yield (
        'Intervals: percentile bootstrap over examples, 10,000 resamples, 95 %. "Less random\'s" is the mean '
        "difference from random, example by example on the same masks; where zero lies inside its interval, the method "
        "is not told from random."
    )
    if warning := few(panels):
        yield warning
    if any(row.run is None for panel in panels for block in panel.blocks for row in block.rows):
        yield "Avg: the mean of the data sets' means; for its interval each data set is resampled by itself."
    if any(block.metric in ("soft_ns", "soft_nc") for panel in panels for block in panel.blocks):
        raw = {run.settings["raw_scores"] for panel in panels for run in panel.runs}
        how = {True: "as they are, clipped to 0..1", False: "brought to 0..1 (min-max)"}
        yield f"Scores are taken {' or '.join(how[one] for one in sorted(raw))}; E[R] is how many tokens they keep."
    for panel in panels:
        for run in panel.runs:
            yield _outcome(run)
            yield f"{run.title}: {_asked(run)}."
            if run.failed:
                yield f"{run.title}, failed: {_listed([f'{one}: {why}' for one, why in run.failed])}"
            if run.bad:
                yield f"{run.title}, bad rows: {_listed(run.bad)}"
        model = panel.runs[0].settings["model"]
        for by, count in made_by(panel.runs):
            revision = f", revision {by['revision']}" if by["revision"] else ""
            yield (
                f"Model: {by['name']}{revision}, weights {model['weights_sha256'][:12] or 'unknown'}, "
                f"{model['dtype']}, quantization {model['quantization'] or 'none'}, attention kernel "
                f"{by['attention_kernel']}, on {by['device']}; {versions_said(by['versions'])} ({count:,} examples)."
            )


def few(panels: Sequence[Panel]) -> str:
    """Warn of intervals over a handful of examples; an empty text where there are enough."""
    counts = [run.title for panel in panels for run in panel.runs if len(run.records) < _FEW]
    return (
        f"Fewer than {_FEW} examples ({', '.join(counts)}): such intervals are too narrow to rely on." if counts else ""
    )


def _legend(name: str, panels: Sequence[Panel]) -> str:
    run = next(run for panel in panels for run in panel.runs if name in run.settings["methods"])
    keywords = run.settings["methods"][name]
    switches = {key: value for key, value in keywords.items() if key not in ("method", "attribution")}
    said = ", ".join(f"{key} {value}" for key, value in switches.items())
    long = METHOD_TITLES[name][1] if name in METHOD_TITLES else ""
    if "attribution" in keywords and not long:
        long = f"Grad-ELLM's preset {keywords['attribution']}, beyond the paper"
    long = f"{long} ({said})" if long and said else long or said
    return f"{method_title(name)} = {long}" if long else method_title(name)


def _outcome(run: Run) -> str:
    """How many examples, and what became of the others."""
    of = answers(run)
    total = run.settings["data"]["examples"]
    parts = [
        f"n = {len(run.records):,} of {total:,} examples",
        f"{len(run.failed):,} failed",
        f"{len(run.bad):,} bad row{'' if len(run.bad) == 1 else 's'}",
        f"{of['skipped']:,} of {of['steps']:,} steps skipped (emptying their text changes too little)",
    ]
    if run.settings["labels"]:
        parts.append(f"{of['outside']:,} answers outside the labels")
    if of["labelled"]:
        parts.append(f"accuracy {of['right'] / of['labelled']:.3f} ({of['right']:,} of {of['labelled']:,})")
    missing = total - len(run.records) - len(run.failed)
    return f"{run.title}: {', '.join(parts)}{f'; {missing:,} are not done yet' if missing else ''}."


def answers(run: Run) -> dict[str, int]:
    """Count steps, those that were skipped, answers outside the labels, and labelled examples with right answers."""
    labelled = [record for record in run.records if record["label"] is not None and record["predicted"] is not None]
    return {
        "steps": sum(record["steps"] for record in run.records),
        "skipped": sum(record["skipped_steps"] for record in run.records),
        "outside": sum(record["outside_labels"] for record in run.records),
        "labelled": len(labelled),
        "right": sum(record["label"] == record["predicted"] for record in labelled),
    }


def _asked(run: Run) -> str:
    """The settings that decide the numbers."""
    of = run.settings
    pis = of["pis"]
    grid = ", ".join(map(str, pis)) if len(pis) < 5 else f"{pis[0]}, {pis[1]} .. {pis[-1]}"
    parts = [f"seed {of['seed']}", f"{of['samples']} masks for each π of {grid}", f"perturbed: {of['perturb']}"]
    if {"insertion", "deletion"} & set(of["metrics"]):
        parts.append(f"removal: {of['removal']}")
    if of["labels"]:
        parts.append(f"token level, labels {', '.join(of['labels'])}")
    else:
        parts.append(
            f"sequence level, tokens {of['offset']}, {of['offset'] + of['stride']} .. of up to {of['max_new_tokens']}"
        )
    parts.append("prompts by the chat template" if of["prompt"]["form"] == "chat" else "raw prompts")
    if of["data"]["sample"]:
        balanced = ", balanced by label" if of["data"]["balance"] else ""
        parts.append(f"a sample of {of['data']['sample']:,}{balanced}")
    return f"{'; '.join(parts)}; data {of['data']['sha256'][:12]}"


def versions_said(versions: Mapping[str, str]) -> str:
    """Return versions as one text."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _listed(what: Sequence[str]) -> str:
    more = f"; and {len(what) - _MOST_LISTED} more" if len(what) > _MOST_LISTED else ""
    return "; ".join(what[:_MOST_LISTED]) + more
