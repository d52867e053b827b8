"""The command line. `commands` has one module per command; the modules here are shared by several commands.

Exit codes: 0 success; 1 an explanation that `verify` does not reproduce, or missing examples of a merged run; 2 invalid
usage or request; 65 unusable data, explanation or results file; 69 no server answers; 70 a server failed; 75 the server
is overloaded; 77 the server does not accept the caller or does not allow the call; 130 interrupted.
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
    follow,
    gateway,
    info,
    mcp,
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
from gradellm.evaluation.examples import DataError
from gradellm.evaluation.results_file import ResultsFileError
from gradellm.rendering.terminal import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["main", "report_error"]

_DATA, _UNAVAILABLE, _FAILED, _OVERLOADED, _NOT_ALLOWED = 65, 69, 70, 75, 77  # as in sysexits.h
_EXIT_CODES: dict[type[GradellmError], int] = {
    InvalidRequestError: 2,  # as argparse
    DataError: _DATA,
    InvalidExplanationError: _DATA,
    ResultsFileError: _DATA,
    UnavailableError: _UNAVAILABLE,
    DeadlineExceededError: _UNAVAILABLE,
    OverloadedError: _OVERLOADED,
    UnauthenticatedError: _NOT_ALLOWED,
    PermissionDeniedError: _NOT_ALLOWED,
}  # every other error: _FAILED
_EXEC_COMMANDS = {"serve": serve.run, "bench": bench.run, "gateway": gateway.run, "token": token.run}
_BROKEN_PIPE = 141  # a shell's exit code for SIGPIPE

_EXAMPLES = """\
examples:
  gradellm demo                                     three explained prompts on the built-in demo model
  gradellm explain "Once upon a time"               the same for your own prompt
  gradellm serve --model PATH                       host a model on localhost:50051 ...
  gradellm explain "Hello" --target localhost:50051 ... and use it, from here or from Python
  gradellm evaluate "Once upon a time"              faithfulness of such explanations; also over data sets
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = argparse.Namespace(arguments=arguments)
    _escape_unencodable()
    try:
        if arguments and arguments[0] in _EXEC_COMMANDS:  # before argparse, which would parse their flags
            _EXEC_COMMANDS[arguments[0]](arguments[1:])
        args = _parser().parse_args(arguments, args)
        code: int = args.run(args)
        sys.stdout.flush()
    except GradellmError as error:
        return report_error(error, args)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at exit
        return _BROKEN_PIPE
    return code


def report_error(error: GradellmError, args: argparse.Namespace) -> int:
    """Print an error, with flags instead of keywords, and return its exit code."""
    message = _with_flags(error, vars(args).keys())
    print("\n".join(map(visible, f"error: {message}".split("\n"))), file=sys.stderr)  # may quote untrusted text
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), _FAILED)


def _with_flags(error: GradellmError, arguments: Iterable[str]) -> str:
    """Return an error's message with flags instead of keywords and fields."""
    if not isinstance(error, InvalidRequestError) or not error.violations:
        return str(error)
    flags = {name: f"--{name.replace('_', '-')}" for name in arguments if name not in ("prompt", "run", "arguments")}
    flags |= {"seed": "--seed", "path": "--output", "target_token_id": "--target-token", "tls": "--tls-*"}
    named = [(flags.get(each.field.rpartition(".")[2], each.field), each.description) for each in error.violations]
    return "; ".join(f"{field}: {description}" for field, description in named)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradellm",
        description="Generate with a language model, and see which parts of the prompt each word came from.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gradellm {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (demo, explain, attribute, follow, evaluate, verify, info, serve, gateway, mcp, token, bench):
        command.add_parser(commands)
    completion.add_parser(commands, parser)
    return parser


def _escape_unencodable() -> None:
    """Print characters that the terminal's encoding lacks as escapes instead of raising UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
