"""From the flags of `gradellm evaluate` to a run over a data set: examples, specification and output files."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gradellm.cli import options
from gradellm.cli.evaluation_output import check_folder, write_text
from gradellm.cli.progress import print_status
from gradellm.errors import InvalidRequestError
from gradellm.evaluation.datasets import load_rows
from gradellm.evaluation.examples import sample
from gradellm.evaluation.presets import PRESETS as DATA_PRESETS
from gradellm.evaluation.presets import custom_preset
from gradellm.evaluation.run_results import Output
from gradellm.evaluation.run_spec import PIS, PLAUSIBILITY, RunSpec, did_you_mean, named_methods
from gradellm.transport import calls

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from gradellm.evaluation.examples import Example, Rows
    from gradellm.evaluation.presets import Preset
    from gradellm.evaluation.shards import Shard
    from gradellm.models import ServerInfo

__all__ = ["DatasetRun", "data_preset", "read_dataset_run", "resolve_for_model", "sampled_examples"]

_TEMPLATE_FLAGS = ("system", "label_words", "columns", "first_sentences")


@dataclass(frozen=True)
class DatasetRun:
    """A run over a data set."""

    spec: RunSpec
    """Before `resolve_for_model` with placeholder methods, and with prompts for a chat template."""
    source: str
    """The data's path or hub name."""
    examples: tuple[Example, ...]
    output: Output


def read_dataset_run(args: argparse.Namespace, shard: Shard | None = None) -> DatasetRun:
    """Validate flags, read the data, and check that results can be written."""
    preset, source = data_preset(args)
    if not args.out:
        raise InvalidRequestError.of("out", "must be given: a folder for results and tables, or a file X.jsonl")
    rows = load_rows(source, preset, chat=not args.raw)
    examples = sampled_examples(args, rows)
    spec = _run_spec(args, preset)
    _check_rationales(spec, examples)
    with suppress(InvalidRequestError):  # an error of the first example is not one of the run
        calls.evaluate(*spec.request(examples[0]))
    output = Output.of(args.out) if shard is None else shard.output(args.out)
    check_folder(output.results.parent)
    _write_bad_rows(output, rows)
    return DatasetRun(spec, source, examples, output)


def resolve_for_model(args: argparse.Namespace, run: DatasetRun, info: ServerInfo) -> DatasetRun:
    """Return the run with the methods of a server, and with raw texts for a model without a chat template."""
    chat = info.model.has_chat_template and not args.raw
    if chat != run.spec.chat:
        print_status(f"{info.model.name} has no chat template: prompts are raw texts")
        run = replace(run, examples=sampled_examples(args, load_rows(run.source, run.spec.preset, chat=chat)))
    methods = named_methods(args.methods or ["paper"], info, run.spec.metrics)
    return replace(run, spec=replace(run.spec, chat=chat, methods=methods))


def data_preset(args: argparse.Namespace) -> tuple[Preset, str]:
    """Return the preset of --preset or --prompt-template, and the source of the data."""
    if args.preset is not None and args.prompt_template is not None:
        raise InvalidRequestError.of("prompt_template", f"cannot be combined with --preset {args.preset}; give one")
    if args.preset is not None:
        preset, source = _named_preset(args)
    elif args.prompt_template is not None:
        preset, source = _template_preset(args)
    else:
        raise InvalidRequestError.of(
            "preset", f"must be given with --data, one of {', '.join(DATA_PRESETS)}; or a --prompt-template of your own"
        )
    if preset.label_words and args.max_new_tokens is not None:
        raise InvalidRequestError.of("max_new_tokens", "has no meaning with label words, which are the answers")
    if args.balance and args.sample is None:
        raise InvalidRequestError.of("balance", "needs --sample, the number of examples")
    if args.balance and not preset.label_words:
        raise InvalidRequestError.of("balance", f"needs label words, and {preset.name} has none")
    return preset, source


def _named_preset(args: argparse.Namespace) -> tuple[Preset, str]:
    options.refuse_flags(args, _TEMPLATE_FLAGS, "--preset, which has its own; it belongs to --prompt-template")
    if args.preset not in DATA_PRESETS:
        raise InvalidRequestError.of("preset", did_you_mean("preset", args.preset, DATA_PRESETS))
    preset = replace(DATA_PRESETS[args.preset], name=args.name or args.preset)
    return preset, args.data or str(preset.hub)


def _template_preset(args: argparse.Namespace) -> tuple[Preset, str]:
    if args.data is None:
        raise InvalidRequestError.of("data", "must be given with --prompt-template: a file, or hub:ID:SPLIT")
    source: str = args.data
    preset = custom_preset(
        args.prompt_template,
        system=args.system,
        columns=args.columns,
        label_words=args.label_words or (),
        name=args.name or (Path(source.split(":")[1]).name if source.startswith("hub:") else Path(source).stem),
    )
    if args.first_sentences:
        columns = [column for columns in preset.columns.values() for column in columns if isinstance(column, str)]
        preset = replace(preset, sentences=dict.fromkeys(columns, args.first_sentences))
    return preset, source


def sampled_examples(args: argparse.Namespace, rows: Rows) -> tuple[Example, ...]:
    """Return the examples of --sample and --balance; all without --sample."""
    if args.sample is None:
        return rows.examples
    return sample(rows.examples, args.sample, args.seed or 0, balance_by_label=bool(args.balance))


def _run_spec(args: argparse.Namespace, preset: Preset) -> RunSpec:
    """Return the specification apart from what depends on the server: methods, and whether there is a chat template."""
    settings = {
        "metrics": tuple(args.metrics or ("pi_soft_ns", "pi_soft_nc")),
        "pis": tuple(args.pis or PIS),
        "raw_scores": bool(args.raw_scores),
        "balance": bool(args.balance),
        "chat": not args.raw,
        **options.given_values(
            args, "samples", "stride", "offset", "seed", "perturb", "removal", "max_new_tokens", "sample"
        ),
    }
    return RunSpec(preset, {"random": {"method": "random"}}, **cast("Any", settings))


def _check_rationales(spec: RunSpec, examples: Sequence[Example]) -> None:
    metrics = [metric for metric in spec.metrics if metric in PLAUSIBILITY]
    if metrics and not any(example.rationale for example in examples):
        raise InvalidRequestError.of(
            "metrics",
            f"{metrics[0]} compares with human rationales, but no example has one; leave it out, or name their column: "
            "--columns rationale=COLUMN",
        )


def _write_bad_rows(output: Output, rows: Rows) -> None:
    path = output.file("bad_rows.txt")
    if not rows.bad:
        path.unlink(missing_ok=True)
        return
    write_text(path, "".join(f"{row.origin}: {row.reason}\n" for row in rows.bad))
    first = rows.bad[0]
    count = "1 bad row" if len(rows.bad) == 1 else f"{len(rows.bad):,} bad rows"
    print_status(f"{count}, listed in {path}; the first: {first.origin} {first.reason}")
