"""`gradellm evaluate`: how faithful explanations are, of one prompt or over a data set.

A prompt     the server evaluates, a table is printed.
A data set   examples go to one or more servers, tables and a figure come out (evaluate_dataset.py).
A shard      is a part of a data set; --merge makes one run of all parts (evaluation/shards.py).
Tables       are made of several such runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from gradellm import models
from gradellm.cli import evaluate_dataset, options
from gradellm.cli.progress import CallProgress
from gradellm.errors import GradellmError, InvalidRequestError
from gradellm.evaluation import figures
from gradellm.evaluation.presets import PRESETS as DATA_PRESETS
from gradellm.evaluation.report import EvaluationReport
from gradellm.evaluation.run_spec import METRICS, did_you_mean, named_methods
from gradellm.evaluation.tables.tables import aligned, arrow
from gradellm.rendering.terminal import ColorMode, use_color, visible
from gradellm.transport import calls

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from gradellm.models import MetricSummary
    from gradellm.wire.requests import EvaluateKeywords

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

_OF_A_PROMPT = (
    "prompt", "prompt_ids", "chat", "segment", "completion", "completion_ids", "labels", "rationale", "plot",
)  # fmt: skip
_OF_DATA = (
    "preset", "data", "prompt_template", "label_words", "columns", "first_sentences", "name", "raw", "sample",
    "balance", "concurrency", "patience", "shard",
)  # fmt: skip
_EVALUATION = (
    "methods", "metrics", "pis", "samples", "stride", "offset", "seed", "perturb", "removal", "raw_scores",
)  # fmt: skip
_NOT_MERGED = ("shard", "concurrency", "patience", "max_new_tokens", *(name for name in _EVALUATION if name != "seed"))
_SERVER = (
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
    summary = "tell how faithful explanations are, of a prompt or over a data set"
    parser = options.add_command(
        commands,
        "evaluate",
        summary,
        _EXAMPLES,
        "PROMPT | --preset P --data FILE --out DIR | --merge DIR ... --out DIR | --tables DIR ...  [flags]",
    )
    options.add_input(parser)
    group = parser.add_argument_group("completion of PROMPT", "At most one of these; by default the model generates.")
    group.add_argument("--completion", metavar="TEXT", help="explain this text")
    group.add_argument("--completion-ids", type=options.token_ids, metavar="1,2,3", help="these tokens")
    group.add_argument("--labels", type=options.names, metavar="A,B", help="of these words the model's likeliest one")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="generate so many at most; 32 over a data set")

    group = add_evaluation(parser)
    group.add_argument(
        "--rationale", action="append", metavar="NAME", help="a --segment that people gave as the reason"
    )
    group = add_data(parser)
    group.add_argument("--concurrency", type=int, metavar="N", help="examples at a time and server; 2 by default")
    group.add_argument(
        "--patience", type=float, metavar="SECONDS", help="end when no server has answered for so long; 60"
    )
    group.add_argument("--shard", metavar="I/N", help="of N parts the part I, from 0 on: the examples I, I + N, ...")
    group.add_argument(
        "--merge",
        nargs="+",
        metavar="DIR",
        help="make one run of its shards' results files, and tables; with the run's --data and prompt, name what lacks",
    )
    group.add_argument("--tables", nargs="+", metavar="DIR", help="make tables of these runs")

    options.add_server(parser, several=True)
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=("table", "json"), default="table", help="a table (the default), or JSON")
    group.add_argument("--plot", metavar="FILE", help="draw PROMPT's curves into this file: .png, .svg, .pdf")
    group.add_argument("--color", choices=get_args(ColorMode), default="auto", help="auto by default, by the terminal")
    parser.set_defaults(run=run)


def add_evaluation(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add what is measured, and how."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--methods",
        type=options.names,
        metavar="A,B",
        help="methods and Grad-ELLM's presets; paper: the paper's nine and knockout (over a data set the default); "
        "all: whatever the server has; for a prompt grad_ellm,random by default",
    )
    group.add_argument("--metrics", type=options.names, metavar="A,B", help=f"of {', '.join(METRICS)}")
    group.add_argument("--pis", type=options.numbers, metavar="A,B", help="shares of the text that are kept")
    group.add_argument("--samples", type=int, metavar="N", help="masks drawn for each share; 3 by default")
    group.add_argument("--stride", type=int, metavar="N", help="every so many tokens are evaluated; 5 by default")
    group.add_argument("--offset", type=int, metavar="N", help="from this token on; 0 by default")
    group.add_argument("--seed", type=int, metavar="N", help="equal seeds give equal numbers; 0 by default")
    group.add_argument("--perturb", choices=get_args(models.Perturb), help="the tokens that change; user by default")
    group.add_argument("--removal", choices=get_args(models.Removal), help="what insertion and deletion do to a token")
    group.add_argument("--raw-scores", action="store_true", default=None, help="soft_ns and soft_nc by scores as is")
    return group


def add_data(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add which data, asked how, and where results go."""
    group = parser.add_argument_group("data set")
    group.add_argument("--preset", metavar="NAME", help=f"prompt and labels of {', '.join(DATA_PRESETS)}")
    group.add_argument("--data", metavar="FILE", help=".jsonl, .csv, .parquet or hub:ID:SPLIT; else the preset's own")
    group.add_argument("--sample", type=int, metavar="N", help="take so many examples, by --seed")
    group.add_argument("--balance", action="store_true", default=None, help="as many of each label")
    group.add_argument("--prompt-template", metavar="TEXT", help='a prompt of your own: "Text: {text}"')
    group.add_argument("--label-words", type=_label_words, metavar="A,B", help="its answers; A=1|pos,B=0|neg for data")
    group.add_argument("--columns", type=options.pairs, metavar="FIELD=COLUMN", help="where its fields come from")
    group.add_argument("--first-sentences", type=int, metavar="N", help="of its fields take so many sentences")
    group.add_argument("--name", metavar="NAME", help="what tables call the data; by default the file's name")
    group.add_argument(
        "--raw", action="store_true", default=None, help="raw text, though the model has a chat template"
    )
    group.add_argument("--out", metavar="DIR", help="where results, tables and figure go; or a results file, X.jsonl")
    return group


def run(args: argparse.Namespace) -> int:
    """Evaluate a prompt or a data set, or make tables."""
    if args.tables is not None:
        options.refuse(args, (*_OF_A_PROMPT, *_OF_DATA, *_EVALUATION, *_SERVER, "system", "max_new_tokens"), "--tables")
        options.refuse(args, ("merge",), "--tables")
        return evaluate_dataset.make_tables(args)
    check_flags(args)
    if args.merge is not None:
        options.refuse(args, (*_OF_A_PROMPT, *_NOT_MERGED, *_SERVER), "--merge, which computes nothing")
        return evaluate_dataset.merge(args)
    if any(getattr(args, name) is not None for name in ("preset", "data", "prompt_template")):
        options.refuse(args, _OF_A_PROMPT, "a data set")
        return evaluate_dataset.evaluate(args)
    options.refuse(args, (*_OF_DATA, "out"), "a prompt; it is for a data set, which --preset or --prompt-template says")
    return _prompt(args)


def check_flags(args: argparse.Namespace) -> None:
    """Say what is wrong with flags before anything is started."""
    for metric in args.metrics or ():
        if metric not in METRICS:
            raise InvalidRequestError.of("metrics", did_you_mean("metric", metric, METRICS))
    for name in ("methods", "metrics", "labels"):
        given = getattr(args, name, None) or []
        if twice := [one for one in given if given.count(one) > 1]:
            raise InvalidRequestError.of(name, f"{twice[0]} is there twice")
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
    """Parse "a,b", or "a=1|pos,b=0|neg" with what the data calls them."""
    words = options.names(text)
    if not any("=" in word for word in words):
        return words
    parts = [word.partition("=") for word in words]
    return {word.strip(): [one.strip() for one in said.split("|") if one.strip()] for word, _, said in parts}


# --- one prompt -------------------------------------------------------------------------------------------------------


def _prompt(args: argparse.Namespace) -> int:
    """Evaluate one prompt."""
    keywords = options.input_keywords(args) | options.given(
        args, "completion", "completion_ids", "labels", "max_new_tokens", "rationale", "timeout", *_EVALUATION
    )
    if args.target and "," in args.target:
        raise InvalidRequestError.of("target", "one server evaluates a prompt; several share a data set")
    if args.plot and (missing := figures.can_draw()):
        raise GradellmError(missing)
    if args.plot and args.metrics and not any(metric.startswith("pi_") for metric in args.metrics):
        raise InvalidRequestError.of("plot", "draws curves over pi: ask for the metrics pi_soft_ns or pi_soft_nc")
    if args.plot:
        evaluate_dataset.check_folder(Path(args.plot).absolute().parent)
    prompt = keywords.pop("prompt", None)
    calls.evaluate(prompt, cast("EvaluateKeywords", keywords))  # says what is wrong before a server is started for it
    with options.connected(args) as client:
        if args.methods:
            info = client.server_info(**options.given(args, "timeout"))
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
        print("there are no curves to draw: nothing could be measured", file=sys.stderr)
    return 0


def _report_lines(report: EvaluationReport, color: bool) -> Iterator[str]:
    """What one prompt's evaluation came to."""
    summary = report.summary
    yield (
        f"prompt of {len(report.prompt_tokens)} tokens, {summary.perturbable_tokens} of which are perturbed; "
        f"{visible(_answer(report))}"
    )
    steps, skipped = len(summary.steps), len(summary.skipped_steps)
    if skipped:
        yield f"{skipped} of {steps} tokens are skipped: emptying the text changes what comes next too little"
    if not summary.metrics:
        yield "nothing could be measured"
        return
    yield ""
    blocks = []
    for metric in report.metrics:
        block = [of for of in summary.metrics if of.metric == metric]
        blocks.append(aligned([_report_head(metric, block), *(_report_row(of, block) for of in block)]))
    for lines in blocks:
        head, *rows = lines.rstrip("\n").split("\n")
        yield f"\x1b[1m{head}\x1b[0m" if color else head
        yield from rows
        yield ""
    if any(of.interval.low is not None for of in summary.metrics):
        samples = report.provenance.evaluation.samples if report.provenance.evaluation else None
        yield options.wrapped(
            f"Intervals at 95 % are over the {samples or ''} masks that were drawn for each share of this one prompt; "
            "they say nothing about other prompts."
        )


def _answer(report: EvaluationReport) -> str:
    steps = len(report.summary.steps)
    said = f"answer {report.text!r}"
    if report.summary.label_index is not None:
        said = f"predicted label {report.text!r}"
        if report.summary.answer_outside_labels:
            said += ", though the likeliest token begins none of the labels"
        return said
    return f"{said}, {steps} of {len(report.tokens)} tokens evaluated"


def _report_head(metric: str, block: Sequence[MetricSummary]) -> list[str]:
    head = [arrow(metric), "mean"]
    head += ["95 % interval"] if any(of.interval.low is not None for of in block) else []
    if any(of.difference_from_random for of in block):
        head += ["less random's"]
        head += ["95 % interval"] if any(_has_ends(of) for of in block) else []
    return head + (["E[R]"] if any(of.expected_tokens is not None for of in block) else [])


def _report_row(of: MetricSummary, block: Sequence[MetricSummary]) -> list[str]:
    row = [f"  {visible(of.name)}", f"{of.interval.mean:.3f}"]
    if any(each.interval.low is not None for each in block):
        row.append("" if of.interval.low is None else f"{of.interval.low:.3f} to {of.interval.high:.3f}")
    if any(each.difference_from_random for each in block):
        less = of.difference_from_random
        row.append("" if less is None else f"{less.mean:+.3f}")
        if any(_has_ends(each) for each in block):
            row.append("" if less is None or less.low is None else f"{less.low:+.3f} to {less.high:+.3f}")
    if any(each.expected_tokens is not None for each in block):
        row.append("" if of.expected_tokens is None else f"{of.expected_tokens:.1f}")
    return row


def _has_ends(of: MetricSummary) -> bool:
    return of.difference_from_random is not None and of.difference_from_random.low is not None
