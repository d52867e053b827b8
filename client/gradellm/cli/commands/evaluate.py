"""`gradellm evaluate`: the faithfulness of attributions, for one prompt or over a data set.

PROMPT       one server evaluates; a table is printed.
--preset     a data set is evaluated by one or more servers, into tables and a figure (cli/evaluate_dataset.py).
--shard      evaluates a part of a data set, and --merge merges the parts (evaluation/shards.py).
--tables     makes tables of several finished runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from gradellm import models
from gradellm.cli import evaluate_dataset, options
from gradellm.cli.evaluation_output import check_folder
from gradellm.cli.progress import CallProgress
from gradellm.errors import GradellmError, InvalidRequestError
from gradellm.evaluation import figures
from gradellm.evaluation.names import metric_heading
from gradellm.evaluation.presets import PRESETS as DATA_PRESETS
from gradellm.evaluation.report import EvaluationReport
from gradellm.evaluation.run_spec import METRICS, did_you_mean, named_methods
from gradellm.evaluation.tables.table import align_columns
from gradellm.rendering.terminal import ColorMode, use_color, visible
from gradellm.transport import calls

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from gradellm.models import MetricSummary
    from gradellm.wire.keywords import EvaluateKeywords

__all__ = ["add_data", "add_evaluation", "add_parser", "check_flags", "run"]

_EXAMPLES = """\
  gradellm evaluate "Once upon a time" --max-new-tokens 16
  gradellm evaluate --chat "Text: A joy." --labels Positive,Negative --methods paper --plot curves.png
  gradellm evaluate --preset sst2 --data sst2.jsonl --sample 100 --balance --out runs/sst2 --target a:50051,b:50051
  gradellm evaluate --prompt-template "Review: {text}" --label-words good,bad --columns text=review \\
      --data reviews.csv --methods grad_ellm,random --out runs/reviews
  gradellm evaluate --preset sst2 --data sst2.jsonl --out runs/sst2 --shard 0/8 --target dns:///gradellm:50051
  gradellm evaluate --merge runs/sst2 --out runs/sst2
  gradellm evaluate --tables runs/sst2 runs/imdb --out runs/both
"""

_PROMPT_FLAGS = (
    "prompt", "prompt_ids", "chat", "segment", "tools", "document", "completion", "completion_ids", "labels",
    "rationale", "plot",
)  # fmt: skip
_DATA_FLAGS = (
    "preset", "data", "prompt_template", "label_words", "columns", "first_sentences", "name", "raw", "sample",
    "balance", "concurrency", "patience", "shard",
)  # fmt: skip
_EVALUATION_FLAGS = (
    "methods", "metrics", "pis", "samples", "stride", "offset", "seed", "perturb", "removal", "raw_scores",
)  # fmt: skip
_NOT_WITH_MERGE = (
    "shard",
    "concurrency",
    "patience",
    "max_new_tokens",
    *(name for name in _EVALUATION_FLAGS if name != "seed"),
)
_SERVER_FLAGS = (
    "target",
    "tls",
    "tls_ca",
    "tls_cert",
    "tls_key",
    "token_file",
    "model",
    "dtype",
    "device",
    "server_log",
    "timeout",
)


def add_parser(commands: options.SubParsers) -> None:
    """Add the command."""
    summary = "measure how faithful explanations are, for a prompt or over a data set"
    parser = options.add_command(
        commands,
        "evaluate",
        summary,
        _EXAMPLES,
        "PROMPT | --preset P --data FILE --out DIR | --merge DIR ... --out DIR | --tables DIR ...  [flags]",
    )
    options.add_input(parser)
    group = parser.add_argument_group(
        "completion of PROMPT", "At most one of these; by default the model generates one."
    )
    group.add_argument("--completion", metavar="TEXT", help="the completion as text")
    group.add_argument("--completion-ids", type=options.token_ids, metavar="1,2,3", help="the completion as token ids")
    group.add_argument("--labels", type=options.names, metavar="A,B", help="the most probable of these label words")
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="the most tokens to generate; 32 over a data set"
    )

    group = add_evaluation(parser)
    group.add_argument(
        "--rationale", action="append", metavar="NAME", help="name of a --segment that is a human rationale"
    )
    group = add_data(parser)
    group.add_argument("--concurrency", type=int, metavar="N", help="examples in progress per server; 2 by default")
    group.add_argument(
        "--patience", type=float, metavar="SECONDS", help="end when no server has answered for so long; 60 by default"
    )
    group.add_argument("--shard", metavar="I/N", help="shard I of N, from 0: the examples I, I + N, ...")
    group.add_argument(
        "--merge",
        nargs="+",
        metavar="DIR",
        help="merge the results of shards, and make tables; with the run's --data and prompt, list missing examples",
    )
    group.add_argument("--tables", nargs="+", metavar="DIR", help="make tables of these finished runs")

    options.add_server(parser, several=True)
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=("table", "json"), default="table", help="a table (the default), or JSON")
    group.add_argument("--plot", metavar="FILE", help="write PROMPT's curves to this file: .png, .svg, .pdf")
    group.add_argument("--color", choices=get_args(ColorMode), default="auto", help="auto by default, by the terminal")
    parser.set_defaults(run=run)


def add_evaluation(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags of metrics and methods."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--methods",
        type=options.names,
        metavar="A,B",
        help="methods and presets of Grad-ELLM; paper: the paper's nine and knockout (the default over a data set); "
        "all: all that the server has; the server's default preset and random by default for a prompt",
    )
    group.add_argument("--metrics", type=options.names, metavar="A,B", help=f"of {', '.join(METRICS)}")
    group.add_argument("--pis", type=options.numbers, metavar="A,B", help="retention shares of the text")
    group.add_argument("--samples", type=int, metavar="N", help="masks per retention share; 3 by default")
    group.add_argument("--stride", type=int, metavar="N", help="evaluate every N-th token; 5 by default")
    group.add_argument("--offset", type=int, metavar="N", help="the first token to evaluate; 0 by default")
    group.add_argument("--seed", type=int, metavar="N", help="equal seeds give equal numbers; 0 by default")
    group.add_argument(
        "--perturb", choices=get_args(models.Perturb), help="tokens that may be perturbed; user by default"
    )
    group.add_argument("--removal", choices=get_args(models.Removal), help="how insertion and deletion remove a token")
    group.add_argument("--raw-scores", action="store_true", default=None, help="use raw scores for soft_ns and soft_nc")
    return group


def add_data(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags of data, prompt and output."""
    group = parser.add_argument_group("data set")
    group.add_argument("--preset", metavar="NAME", help=f"prompt and labels of {', '.join(DATA_PRESETS)}")
    group.add_argument(
        "--data", metavar="FILE", help=".jsonl, .csv, .parquet or hub:ID:SPLIT; the preset's data by default"
    )
    group.add_argument("--sample", type=int, metavar="N", help="number of examples to sample, by --seed")
    group.add_argument("--balance", action="store_true", default=None, help="sample equal numbers of each label")
    group.add_argument("--prompt-template", metavar="TEXT", help='a prompt of your own: "Text: {text}"')
    group.add_argument(
        "--label-words", type=_label_words, metavar="A,B", help="its answers; A=1|pos,B=0|neg maps values of the data"
    )
    group.add_argument("--columns", type=options.pairs, metavar="FIELD=COLUMN", help="the columns of its fields")
    group.add_argument("--first-sentences", type=int, metavar="N", help="use only the first N sentences of its fields")
    group.add_argument("--name", metavar="NAME", help="name of the data in tables; by default the file's name")
    group.add_argument(
        "--raw", action="store_true", default=None, help="raw prompts, without the model's chat template"
    )
    group.add_argument("--out", metavar="DIR", help="folder for results, tables and figure; or a results file, X.jsonl")
    return group


def run(args: argparse.Namespace) -> int:
    """Evaluate a prompt or a data set, merge shards, or make tables."""
    if args.tables is not None:
        options.refuse_flags(
            args,
            (*_PROMPT_FLAGS, *_DATA_FLAGS, *_EVALUATION_FLAGS, *_SERVER_FLAGS, "system", "max_new_tokens"),
            "--tables",
        )
        options.refuse_flags(args, ("merge",), "--tables")
        return evaluate_dataset.make_tables(args)
    check_flags(args)
    if args.merge is not None:
        options.refuse_flags(
            args, (*_PROMPT_FLAGS, *_NOT_WITH_MERGE, *_SERVER_FLAGS), "--merge, which evaluates nothing"
        )
        return evaluate_dataset.merge(args)
    if any(getattr(args, name) is not None for name in ("preset", "data", "prompt_template")):
        options.refuse_flags(args, _PROMPT_FLAGS, "a data set")
        return evaluate_dataset.evaluate(args)
    options.refuse_flags(
        args, (*_DATA_FLAGS, "out"), "a prompt; it belongs to a data set, which needs --preset or --prompt-template"
    )
    return _evaluate_prompt(args)


def check_flags(args: argparse.Namespace) -> None:
    """Raise InvalidRequestError for invalid flags, before a server is started."""
    for metric in args.metrics or ():
        if metric not in METRICS:
            raise InvalidRequestError.of("metrics", did_you_mean("metric", metric, METRICS))
    for name in ("methods", "metrics", "labels"):
        values = getattr(args, name, None) or []
        if duplicates := [each for each in values if values.count(each) > 1]:
            raise InvalidRequestError.of(name, f"{duplicates[0]} is given twice")
    pis = args.pis or []
    if not all(0 < pi < 1 for pi in pis) or sorted(set(pis)) != pis:
        raise InvalidRequestError.of("pis", f"must ascend, above 0 and below 1, not {', '.join(map(str, pis))}")
    for name, least in (
        ("samples", 1), ("stride", 1), ("offset", 0), ("seed", 0), ("max_new_tokens", 1), ("sample", 1),
        ("concurrency", 1), ("patience", 0), ("first_sentences", 1),
    ):  # fmt: skip
        value = getattr(args, name, None)
        if value is not None and not least <= value < 2**63:
            raise InvalidRequestError.of(name, f"must be {least} or more, not {value}")


def _label_words(text: str) -> list[str] | dict[str, list[str]]:
    """Parse "a,b", or "a=1|pos,b=0|neg" with the values of the data."""
    words = options.names(text)
    if not any("=" in word for word in words):
        return words
    parts = [word.partition("=") for word in words]
    return {word.strip(): [each.strip() for each in values.split("|") if each.strip()] for word, _, values in parts}


# --- one prompt -------------------------------------------------------------------------------------------------------


def _evaluate_prompt(args: argparse.Namespace) -> int:
    """Evaluate one prompt."""
    keywords = options.input_keywords(args) | options.given_values(
        args, "completion", "completion_ids", "labels", "max_new_tokens", "rationale", "timeout", *_EVALUATION_FLAGS
    )
    if args.target and "," in args.target:
        raise InvalidRequestError.of("target", "a prompt is evaluated by one server; several servers share a data set")
    if args.plot and (missing := figures.missing_package()):
        raise GradellmError(missing)
    if args.plot and args.metrics and not any(metric.startswith("pi_") for metric in args.metrics):
        raise InvalidRequestError.of("plot", "needs curves over pi: request the metrics pi_soft_ns or pi_soft_nc")
    if args.plot:
        check_folder(Path(args.plot).absolute().parent)
    prompt = keywords.pop("prompt", None)
    calls.evaluate(prompt, cast("EvaluateKeywords", keywords))  # refuses an invalid request before a server is started
    with options.connect(args) as client:
        if args.methods:
            info = client.server_info(**options.given_values(args, "timeout"))
            keywords["methods"] = named_methods(args.methods, info, args.metrics or ())
        with CallProgress("evaluated") as progress:
            report = client.evaluate(prompt, on_event=progress, **keywords)
    print(
        report.to_json()
        if args.format == "json"
        else "\n".join(_report_lines(report, use_color(args.color, sys.stdout, os.environ)))
    )
    if args.plot and report.curves:
        figures.save(report.plot(), args.plot)
    elif args.plot:
        print("there are no curves to plot: nothing could be measured", file=sys.stderr)
    return 0


def _report_lines(report: EvaluationReport, color: bool) -> Iterator[str]:
    """Yield the lines that report an evaluation of one prompt."""
    summary = report.summary
    yield (
        f"prompt of {len(report.prompt_tokens)} tokens, {summary.perturbable_tokens} of which may be perturbed; "
        f"{visible(_answer(report))}"
    )
    steps, skipped = len(summary.steps), len(summary.skipped_steps)
    if skipped:
        yield f"{skipped} of {steps} tokens are skipped: removing the text changes the prediction too little"
    if not summary.metrics:
        yield "nothing could be measured"
        return
    yield ""
    blocks = []
    for metric in report.metrics:
        block = [result for result in summary.metrics if result.metric == metric]
        blocks.append(align_columns([_report_head(metric, block), *(_report_row(result, block) for result in block)]))
    for lines in blocks:
        head, *rows = lines.rstrip("\n").split("\n")
        yield f"\x1b[1m{head}\x1b[0m" if color else head
        yield from rows
        yield ""
    if any(result.interval.low is not None for result in summary.metrics):
        samples = report.provenance.evaluation.samples if report.provenance.evaluation else None
        yield options.wrap_text(
            f"Intervals at 95 % are over the {samples or ''} masks per retention share of this prompt; they say "
            "nothing about other prompts."
        )


def _answer(report: EvaluationReport) -> str:
    steps = len(report.summary.steps)
    text = f"answer {report.text!r}"
    if report.summary.label_index is not None:
        text = f"predicted label {report.text!r}"
        if report.summary.answer_outside_labels:
            text += ", though the most probable token begins none of the labels"
        return text
    return f"{text}, {steps} of {len(report.tokens)} tokens evaluated"


def _report_head(metric: str, block: Sequence[MetricSummary]) -> list[str]:
    head = [metric_heading(metric), "mean"]
    head += ["95 % interval"] if any(result.interval.low is not None for result in block) else []
    if any(result.difference_from_random for result in block):
        head += ["less random's"]
        head += ["95 % interval"] if any(_has_bounds(result) for result in block) else []
    return head + (["E[R]"] if any(result.expected_tokens is not None for result in block) else [])


def _report_row(result: MetricSummary, block: Sequence[MetricSummary]) -> list[str]:
    row = [f"  {visible(result.name)}", f"{result.interval.mean:.3f}"]
    if any(each.interval.low is not None for each in block):
        row.append("" if result.interval.low is None else f"{result.interval.low:.3f} to {result.interval.high:.3f}")
    if any(each.difference_from_random for each in block):
        less = result.difference_from_random
        row.append("" if less is None else f"{less.mean:+.3f}")
        if any(_has_bounds(each) for each in block):
            row.append("" if less is None or less.low is None else f"{less.low:+.3f} to {less.high:+.3f}")
    if any(each.expected_tokens is not None for each in block):
        row.append("" if result.expected_tokens is None else f"{result.expected_tokens:.1f}")
    return row


def _has_bounds(result: MetricSummary) -> bool:
    return result.difference_from_random is not None and result.difference_from_random.low is not None
