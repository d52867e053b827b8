"""Flags that several commands share. A flag has the name and default of the SDK's keyword."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from gradellm import models
from gradellm.cli import input_files
from gradellm.cli.sampling_options import TEMPLATE, add_template, token_ids
from gradellm.client import Client
from gradellm.errors import GradellmError, InvalidRequestError, UnavailableError
from gradellm.rendering.colormap import Theme
from gradellm.rendering.terminal import ColorMode, Style, visible
from gradellm.transport.credentials import Tls
from gradellm.transport.retry import Retry
from gradellm.wire.documents import with_documents
from gradellm.wire.keywords import AttributionKeywords

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = [
    "add_attribution",
    "add_command",
    "add_drawing",
    "add_input",
    "add_server",
    "attribution_keywords",
    "connect",
    "given_values",
    "input_keywords",
    "local_server_keywords",
    "names",
    "numbers",
    "pairs",
    "refuse_flags",
    "security",
    "style",
    "token_ids",
    "wrap_text",
]

TOKEN_VARIABLE = "GRADELLM_TOKEN"  # noqa: S105  (a name); not a flag, because other processes can read command lines
_SECURITY = ("tls", "tls_ca", "tls_cert", "tls_key", "token_file")
_STARTING_SECONDS = 600.0  # how long a server may load its model, the same as for a local server
_MAX_WIDTH = 100  # columns; longer lines are hard to read


def add_command(
    commands: SubParsers, name: str, summary: str, examples: str, usage: str | None = None
) -> argparse.ArgumentParser:
    """Add a command's parser, with examples below its help."""
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=usage and f"%(prog)s {usage}",
        allow_abbrev=False,  # a new flag must not change what an old command line means
    )


# --- the server -----------------------------------------------------------------------------------------------------


def add_server(parser: argparse.ArgumentParser, *, model: bool = True, several: bool = False) -> None:
    """Add the flags that choose the server: a running one, or a local one for this command."""
    group = parser.add_argument_group("server", "Without --target, a local server is started for this command.")
    meaning = "the server; also unix:/path or dns:///name:port"
    group.add_argument(
        "--target",
        metavar="HOST:PORT[,...]",
        help=f"{meaning}; several, separated by commas, {'share a data set' if several else 'are used in turn'}",
    )
    if not several:  # a data set has its own retries
        group.add_argument("--no-retry", action="store_true", help="do not retry if there is no server or no capacity")
    group.add_argument("--tls", action="store_true", help="connect to --target with TLS")
    group.add_argument("--tls-ca", metavar="FILE", help="authority of the server's certificate (PEM); implies --tls")
    group.add_argument("--tls-cert", metavar="FILE", help="this client's certificate (PEM); implies --tls")
    group.add_argument("--tls-key", metavar="FILE", help="its private key (PEM)")
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"file with this client's token; or set the environment variable {TOKEN_VARIABLE}",
    )
    if model:
        group.add_argument("--model", metavar="M", help="a path or hub id; by default the demo model")
    group.add_argument("--dtype", metavar="D", help="dtype of computation: float32, bfloat16, ...")
    group.add_argument("--device", metavar="D", help="device of the model: cpu, cuda, ...")
    group.add_argument("--server-log", action="store_true", help="show the local server's log")
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="time limit of a call; no limit by default")


@contextmanager
def connect(args: argparse.Namespace) -> Iterator[Client]:
    """Connect to --target, or start a local server and report its start on standard error."""
    local = local_server_keywords(args)
    if args.target:
        policy = Retry(on_wait=_RetryMessages(), starting_seconds=_STARTING_SECONDS)
        retry = None if getattr(args, "no_retry", False) else policy
        with Client(args.target, **security(args), retry=retry) as client:
            yield client
        return
    began = time.monotonic()
    print(f"starting a server for {local.get('model', 'the demo model')} ...", file=sys.stderr, flush=True)
    with Client.local(**local, inherit_stderr=args.server_log) as client:
        print(f"ready after {time.monotonic() - began:.1f} s\n", file=sys.stderr, flush=True)
        yield client


class _RetryMessages:
    """Prints why a call waits; for a starting server only once."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, error: GradellmError, seconds: float) -> None:
        """Print the error and the delay, as `Retry.on_wait`."""
        message = visible(str(error))
        is_starting = isinstance(error, UnavailableError) and error.is_starting
        if not is_starting:
            print(f"{message}\ntrying again after {seconds:.1f} s ...", file=sys.stderr, flush=True)
        elif message != self._last:
            print(f"{message}\nwaiting for it ...", file=sys.stderr, flush=True)
        self._last = message


def local_server_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keywords of `Client.local`. Raises InvalidRequestError if they are combined with --target."""
    local = given_values(args, "model", "dtype", "device")
    if args.target and local:
        raise InvalidRequestError.of(next(iter(local)), f"is for a local server, not for {args.target}")
    for name in _SECURITY:
        if not args.target and getattr(args, name):
            raise InvalidRequestError.of(name, "needs --target: it does not apply to a local server")
    return local


def security(args: argparse.Namespace) -> SecurityKeywords:
    """Return the keywords of a client for TLS and token."""
    tls: bool | Tls = args.tls
    if args.tls_ca or args.tls_cert or args.tls_key:
        tls = Tls(args.tls_ca, args.tls_cert, args.tls_key)
    return {"tls": tls, "token": _token(args)}


class SecurityKeywords(TypedDict):
    """Keywords of `Client`."""

    tls: bool | Tls
    token: str | None


def _token(args: argparse.Namespace) -> str | None:
    if args.token_file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = Path(args.token_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise InvalidRequestError.of("token_file", f"{args.token_file} cannot be read: {why}") from error
    if len(token.split()) != 1:
        raise InvalidRequestError.of("token_file", f"{args.token_file} must contain one token and nothing else")
    return token


# --- the prompt -----------------------------------------------------------------------------------------------------


def add_input(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the prompt."""
    group = parser.add_argument_group("prompt")
    group.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt's text; - reads it from standard input")
    group.add_argument(
        "--chat", action="store_true", help="send PROMPT as a user message, with the model's chat template"
    )
    group.add_argument("--system", metavar="TEXT", help="system message before PROMPT; implies --chat")
    group.add_argument("--prompt-ids", type=token_ids, metavar="1,2,3", help="token ids in place of PROMPT")
    group.add_argument(
        "--segment",
        type=_segment,
        action="append",
        metavar="NAME=START:END",
        help="name a span of PROMPT, in characters; NAME=MESSAGE:START:END for another message; repeatable",
    )
    add_template(group)
    input_files.add_flags(group)


def input_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Return the prompt as the SDK's keywords."""
    prompt = _read_standard_input() if args.prompt == "-" else args.prompt
    chat = prompt is not None and (args.chat or args.system is not None or args.tools is not None)
    keywords: dict[str, Any] = given_values(args, "prompt_ids", *TEMPLATE)
    if prompt is None and (given := [name for name in input_files.FLAGS if getattr(args, name)]):
        raise InvalidRequestError.of(given[0], "needs PROMPT")
    places: dict[str, tuple[int, int]] = {}
    question = prompt
    if prompt is not None and args.document:
        prompt, places = with_documents(prompt, input_files.read_documents(args.document), "document")
    shift = 0 if prompt is None else len(prompt) - len(question or "")
    if chat:
        system = [("system", args.system)] if args.system is not None else []
        keywords["messages"] = [*system, ("user", prompt)]
    elif prompt is not None:
        keywords["prompt"] = prompt
    if args.tools is not None:
        keywords["tools"] = input_files.read_tools(args.tools)
    spans = [(name, [shift + place for place in span] if len(span) == 2 else span) for name, span in args.segment or ()]
    if named := [*places.items(), *spans]:
        in_message = len(keywords["messages"]) - 1 if chat else None
        keywords["segments"] = {
            name: (in_message, *span) if in_message is not None and len(span) == 2 else tuple(span)
            for name, span in named
        }
    return keywords


def _read_standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError.of("prompt", f"standard input is not UTF-8 at byte {error.start}") from error


def names(text: str) -> list[str]:
    """Parse "a,b"."""
    parsed = [part.strip() for part in text.split(",")]
    if not all(parsed):
        raise argparse.ArgumentTypeError(f"must be names separated by commas, such as a,b, not {text!r}")
    return parsed


def numbers(text: str) -> list[float]:
    """Parse "0.1,0.5"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers separated by commas, such as 0.1,0.5, not {text!r}"
        ) from None


def pairs(text: str) -> dict[str, str]:
    """Parse "a=b,c=d"."""
    parsed = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and value.strip() for name, _, value in parsed):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, separated by commas, not {text!r}")
    return {name.strip(): value.strip() for name, _, value in parsed}


def _segment(text: str) -> tuple[str, tuple[int, ...]]:
    match = re.fullmatch(r"(.+)=(?:(\d+):)?(\d+):(\d+)", text, re.DOTALL)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be NAME=START:END or NAME=MESSAGE:START:END, not {text!r}")
    name, *numbers = match.groups()
    return name, tuple(int(number) for number in numbers if number is not None)


# --- attribution ----------------------------------------------------------------------------------------------------

_PRESETS = (*get_args(models.Preset), "none")
_SWITCHES: dict[str, tuple[Any, str]] = {
    "loosening": (models.Loosening, "use of the attention's token weights"),
    "similarity": (models.Similarity, "similarity of query and key"),
    "rotary": (models.Rotary, "query and key after or before rotary embedding"),
    "rectify": (models.Rectify, "where negative contributions are set to 0"),
    "magnitude": (models.Magnitude, "how heads and channels are combined"),
    "normalise_over": (models.NormaliseOver, "tokens over which token weights are normalised"),
    "sink": (models.Sink, "whether the first token, the attention sink, is a source"),
    "gradient": (models.Gradient, "the gradient by attention's output: the true one, or relevance's"),
    "objective": (models.Objective, "the explained function of the target; logit by default"),
    "aggregation": (models.Aggregation, "reduction over a token's channels; norm by default"),
    "sources": (models.Sources, "score the prompt (the default), or prompt and completion so far"),
    "resolution": (models.Resolution, "one score per token (the default), word or segment"),
    "delivery": (
        models.Delivery,
        "scores with each token (the default), or for several tokens at once, which is cheaper",
    ),
}


def add_attribution(parser: argparse.ArgumentParser, *, can_be_off: bool) -> None:
    """Add the flags of the attribution method."""
    group = parser.add_argument_group(
        "attribution",
        "Without a preset, a method and a switch, the server's default preset applies; `gradellm info` tells it, and "
        "each method's switches. Default values are the preset's, the paper's without one, or the method's.",
    )
    group.add_argument(
        "--attribution",
        choices=_PRESETS if can_be_off else _PRESETS[:-1],
        help="the preset; by default the server's" + (", none for no attribution" if can_be_off else ""),
    )
    group.add_argument("--method", metavar="NAME", help="grad_ellm is the paper's; `gradellm info` lists all")
    group.add_argument("--layers", type=_layers, metavar="last:4|0,1|all", help="the layers to sum over")
    for name, (values, meaning) in _SWITCHES.items():
        group.add_argument(f"--{name.replace('_', '-')}", choices=get_args(values), help=meaning)
    group.add_argument("--target-token", type=int, dest="target_token", metavar="ID", help="explain this token's logit")
    group.add_argument(
        "--contrast",
        type=_contrast,
        metavar="ID|TEXT|runner_up",
        help="contrastive: why the token and not this one; text:12 for the text 12",
    )
    group.add_argument("--top-k-sources", type=int, metavar="K", help="return the K largest scores per token")
    group.add_argument("--steps", type=int, metavar="N", help="steps of integrated gradients")
    group.add_argument("--samples", type=int, metavar="N", help="samples of sampling methods")
    group.add_argument("--attribution-seed", type=int, metavar="N", help="seed of sampling methods; 0 by default")
    group.add_argument("--layer", type=int, metavar="N", help="the attributed layer; -1 is the embedding")
    group.add_argument(
        "--baseline-ids", type=token_ids, metavar="1,2,3", help="baseline token ids, one per prompt token"
    )
    group.add_argument("--chunk-size", type=int, metavar="N", help="tokens per attribution chunk, 1 to 256")
    group.add_argument(
        "--tokens",
        type=_tokens,
        action="extend",
        metavar="1,4:8|TEXT|re:PATTERN",
        help="explain these tokens of the completion only: indexes and ranges START:END; of a given completion also "
        "those of a text (text:12 for the text 12) or of a regular expression's matches; repeatable",
    )


def attribution_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Return the attribution flags as the SDK's keywords."""
    keywords = given_values(args, *(name for name in AttributionKeywords.__annotations__ if name != "target"))
    keywords.update({"target": args.target_token} if args.target_token is not None else {})
    keywords.update({"attribution": None} if args.attribution == "none" else {})
    return keywords


def _layers(text: str) -> Literal["all"] | int | list[int]:
    if text == "all":
        return "all"
    if match := re.fullmatch(r"last:(\d+)", text):
        return int(match[1])
    return token_ids(text)


def _tokens(text: str) -> list[int | range | str | re.Pattern[str]]:
    if re.fullmatch(r"\d+(:\d+)?(,\d+(:\d+)?)*", text):
        spans = [[int(number) for number in part.split(":")] for part in text.split(",")]
        return [range(*span) if len(span) == 2 else span[0] for span in spans]
    if text.startswith("re:"):
        try:
            return [re.compile(text.removeprefix("re:"))]
        except re.error as error:
            raise argparse.ArgumentTypeError(f"must be a regular expression after re:, not {text!r}: {error}") from None
    return [text.removeprefix("text:")]


def _contrast(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[0-9]+", text) else text.removeprefix("text:")


# --- drawing --------------------------------------------------------------------------------------------------------


def add_drawing(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags of the output, and return their group."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--color", choices=get_args(ColorMode), default="auto", help="colours; auto, the default, follows the terminal"
    )
    group.add_argument("--theme", choices=("auto", *get_args(Theme)), default="auto", help="background of the terminal")
    group.add_argument(
        "--width", type=_width, metavar="COLUMNS", help="line width; by default the terminal's, at most 100"
    )
    group.add_argument(
        "--full", action="store_true", help="draw all lines of long prompts, not only those with large scores"
    )
    return group


def style(args: argparse.Namespace) -> Style:
    """Return the drawing style."""
    width = args.width or min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    return Style.of(width=width, color=args.color, theme=args.theme, fold=not args.full)


def _width(text: str) -> int:
    if not (text.isdecimal() and 20 <= int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"must be a number of columns, at least 20, not {text!r}")
    return int(text)


def given_values(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the values of the flags that were given."""
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def wrap_text(text: str) -> str:
    """Wrap a sentence to the terminal's width, with indented continuation lines."""
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    return textwrap.fill(visible(text), width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def refuse_flags(args: argparse.Namespace, names: Sequence[str], other: str) -> None:
    """Raise InvalidRequestError if one of the flags was given."""
    for name in names:
        if (value := getattr(args, name)) is not None and value is not False:
            raise InvalidRequestError.of(name, f"cannot be combined with {other}")
