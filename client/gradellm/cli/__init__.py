"""The command line, a file a command: serve, explain, attribute, evaluate, verify and others.

Exit codes: 0 done, 1 an explanation that `verify` does not find again or a merged run that lacks examples, 2 wrong
usage or a request that cannot be served, 65 data, an explanation or a results file that cannot be used, 69 no server
answers, 70 a server failed, 75 the server is overloaded and a later try may do, 77 the server does not let the caller
in or does not allow the call, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from gradellm._version import __version__
from gradellm.cli.commands import (
    attribute,
    bench,
    completion,
    demo,
    evaluate,
    explain,
    gateway,
    info,
    serve,
    token,
    verify,
)
from gradellm.errors import (
    DeadlineExceededError,
    GradellmError,
    InvalidExplanationError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from gradellm.evaluation.datasets import DataError
from gradellm.evaluation.results_file import ResultsFileError
from gradellm.rendering.terminal import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["main", "report_error"]

_DATA, _UNAVAILABLE, _FAILED, _OVERLOADED, _NOT_ALLOWED = 65, 69, 70, 75, 77  # as in sysexits.h
_EXIT_CODES: dict[type[GradellmError], int] = {
    InvalidRequestError: 2,  # as argparse has it
    DataError: _DATA,
    InvalidExplanationError: _DATA,
    ResultsFileError: _DATA,
    UnavailableError: _UNAVAILABLE,
    DeadlineExceededError: _UNAVAILABLE,
    OverloadedError: _OVERLOADED,
    UnauthenticatedError: _NOT_ALLOWED,
    PermissionDeniedError: _NOT_ALLOWED,
}  # every other error: _FAILED
_OTHER_PROCESSES = {"serve": serve.run, "bench": bench.run, "gateway": gateway.run, "token": token.run}
_READER_GONE = 141  # what a shell says of SIGPIPE

_EXAMPLES = """\
examples:
  gradellm demo                                     see it work, on the small model that comes with it
  gradellm explain "Once upon a time"               the same for your own prompt
  gradellm serve --model PATH                       host a model on localhost:50051 ...
  gradellm explain "Hello" --target localhost:50051 ... and ask it, from here or from Python
  gradellm evaluate "Once upon a time"              how faithful such explanations are; also over data sets
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = argparse.Namespace(arguments=arguments)
    _never_fail_to_print()
    try:
        if arguments and arguments[0] in _OTHER_PROCESSES:  # before argparse, which would take their flags for its own
            _OTHER_PROCESSES[arguments[0]](arguments[1:])
        args = _parser().parse_args(arguments, args)
        code: int = args.run(args)
        sys.stdout.flush()
    except GradellmError as error:
        return report_error(error, args)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        return _READER_GONE
    return code


def report_error(error: GradellmError, args: argparse.Namespace) -> int:
    """Say what went wrong, by the flags that a command was given; its exit code."""
    said = _by_flags(error, vars(args).keys())
    print("\n".join(map(visible, f"error: {said}".split("\n"))), file=sys.stderr)  # may quote anything
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), _FAILED)


def _by_flags(error: GradellmError, known: Iterable[str]) -> str:
    """What went wrong, with keywords and fields by the flags that they were given by."""
    if not isinstance(error, InvalidRequestError) or not error.violations:
        return str(error)
    flags = {name: f"--{name.replace('_', '-')}" for name in known if name not in ("prompt", "run", "arguments")}
    flags |= {"seed": "--seed", "path": "--output", "target_token_id": "--target-token", "tls": "--tls-*"}
    named = [(flags.get(one.field.rpartition(".")[2], one.field), one.description) for one in error.violations]
    return "; ".join(f"{field}: {description}" for field, description in named)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradellm",
        description="Watch a language model generate, and see which parts of the prompt each word came from.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gradellm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, explain, attribute, evaluate, verify, info, serve, gateway, token, bench):
        command.add_parser(commands)
    completion.add_parser(commands, parser)
    return parser


def _never_fail_to_print() -> None:
    """Print what the terminal's encoding lacks as an escape, instead of ending with a UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
