"""The notes below a table: methods, intervals, numbers of examples, settings, and the models that computed them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradellm.evaluation.names import METHOD_TITLES, method_title
from gradellm.evaluation.run_results import computed_by

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gradellm.evaluation.run_results import Run
    from gradellm.evaluation.tables.table_model import Panel

__all__ = ["answer_counts", "format_versions", "notes", "small_sample_warning"]

_MIN_EXAMPLES = 20
"""With fewer examples a bootstrap interval is far too narrow: over three positive differences it never contains 0."""
_MAX_LISTED = 5  # failures and bad rows


def notes(panels: Sequence[Panel], methods: Sequence[str]) -> Iterator[str]:
    """Yield the notes of a table."""
    yield "Methods: " + "; ".join(_legend(name, panels) for name in methods) + "."
    yield (
        "Marks: the best value of a row is bold, the second underlined, the third in italics; equal printed values "
        "share a mark."
    )
    yield (
        'Intervals: percentile bootstrap over examples, 10,000 resamples, 95 %. "Less random\'s" is the mean paired '
        "difference from random, by example on the same masks; if its interval contains zero, the method is not "
        "distinguishable from random."
    )
    if warning := small_sample_warning(panels):
        yield warning
    if any(row.run is None for panel in panels for block in panel.blocks for row in block.rows):
        yield "Avg: the mean of the data sets' means; its interval resamples each data set separately."
    if any(block.metric in ("soft_ns", "soft_nc") for panel in panels for block in panel.blocks):
        raw = {run.settings["raw_scores"] for panel in panels for run in panel.runs}
        how = {True: "clipped to 0..1", False: "min-max normalised to 0..1"}
        forms = " or ".join(how[is_raw] for is_raw in sorted(raw))
        yield f"Scores are {forms}; E[R] is the expected number of kept tokens."
    for panel in panels:
        for run in panel.runs:
            yield _outcome(run)
            yield f"{run.title}: {_settings_text(run)}."
            if run.failed:
                yield f"{run.title}, failed: {_truncated([f'{example}: {why}' for example, why in run.failed])}"
            if run.bad:
                yield f"{run.title}, bad rows: {_truncated(run.bad)}"
        model = panel.runs[0].settings["model"]
        for by, count in computed_by(panel.runs):
            revision = f", revision {by['revision']}" if by["revision"] else ""
            yield (
                f"Model: {by['name']}{revision}, weights {model['weights_sha256'][:12] or 'unknown'}, "
                f"{model['dtype']}, quantization {model['quantization'] or 'none'}, attention kernel "
                f"{by['attention_kernel']}, on {by['device']}; {format_versions(by['versions'])} ({count:,} examples)."
            )


def small_sample_warning(panels: Sequence[Panel]) -> str:
    """Return a warning about intervals over few examples; empty if every run has enough."""
    titles = [run.title for panel in panels for run in panel.runs if len(run.records) < _MIN_EXAMPLES]
    return f"Fewer than {_MIN_EXAMPLES} examples ({', '.join(titles)}): the intervals are too narrow." if titles else ""


def _legend(name: str, panels: Sequence[Panel]) -> str:
    run = next(run for panel in panels for run in panel.runs if name in run.settings["methods"])
    keywords = run.settings["methods"][name]
    switches = {key: value for key, value in keywords.items() if key not in ("method", "attribution")}
    switches_text = ", ".join(f"{key} {value}" for key, value in switches.items())
    long = METHOD_TITLES[name][1] if name in METHOD_TITLES else ""
    if "attribution" in keywords and not long:
        long = f"Grad-ELLM's preset {keywords['attribution']}, beyond the paper"
    long = f"{long} ({switches_text})" if long and switches_text else long or switches_text
    return f"{method_title(name)} = {long}" if long else method_title(name)


def _outcome(run: Run) -> str:
    """Return how many examples were evaluated, failed, or are missing."""
    counts = answer_counts(run)
    total = run.settings["data"]["examples"]
    parts = [
        f"n = {len(run.records):,} of {total:,} examples",
        f"{len(run.failed):,} failed",
        f"{len(run.bad):,} bad row{'' if len(run.bad) == 1 else 's'}",
        f"{counts['skipped']:,} of {counts['steps']:,} steps skipped (removing their text changes too little)",
    ]
    if run.settings["labels"]:
        parts.append(f"{counts['outside']:,} answers outside the labels")
    if counts["labelled"]:
        right, labelled = counts["right"], counts["labelled"]
        parts.append(f"accuracy {right / labelled:.3f} ({right:,} of {labelled:,})")
    missing = total - len(run.records) - len(run.failed)
    return f"{run.title}: {', '.join(parts)}{f'; {missing:,} are missing' if missing else ''}."


def answer_counts(run: Run) -> dict[str, int]:
    """Count steps, skipped steps, answers outside the labels, labelled examples, and correct ones."""
    labelled = [record for record in run.records if record["label"] is not None and record["predicted"] is not None]
    return {
        "steps": sum(record["steps"] for record in run.records),
        "skipped": sum(record["skipped_steps"] for record in run.records),
        "outside": sum(record["outside_labels"] for record in run.records),
        "labelled": len(labelled),
        "right": sum(record["label"] == record["predicted"] for record in labelled),
    }


def _settings_text(run: Run) -> str:
    """Return the settings that affect the values."""
    settings = run.settings
    pis = settings["pis"]
    grid = ", ".join(map(str, pis)) if len(pis) < 5 else f"{pis[0]}, {pis[1]} .. {pis[-1]}"
    parts = [
        f"seed {settings['seed']}",
        f"{settings['samples']} masks for each π of {grid}",
        f"perturbed: {settings['perturb']}",
    ]
    if {"insertion", "deletion"} & set(settings["metrics"]):
        parts.append(f"removal: {settings['removal']}")
    if settings["labels"]:
        parts.append(f"token level, labels {', '.join(settings['labels'])}")
    else:
        first, second = settings["offset"], settings["offset"] + settings["stride"]
        parts.append(f"sequence level, tokens {first}, {second} .. of up to {settings['max_new_tokens']}")
    parts.append("prompts by the chat template" if settings["prompt"]["form"] == "chat" else "raw prompts")
    if settings["data"]["sample"]:
        balanced = ", balanced by label" if settings["data"]["balance"] else ""
        parts.append(f"a sample of {settings['data']['sample']:,}{balanced}")
    return f"{'; '.join(parts)}; data {settings['data']['sha256'][:12]}"


def format_versions(versions: Mapping[str, str]) -> str:
    """Return versions as one text."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _truncated(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _MAX_LISTED} more" if len(texts) > _MAX_LISTED else ""
    return "; ".join(texts[:_MAX_LISTED]) + more
