"""The flags that commands share. A flag has the name of the SDK's keyword, and its default."""

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
from gradellm.client import Client
from gradellm.errors import GradellmError, InvalidRequestError, UnavailableError
from gradellm.rendering.terminal import ColorMode, Style, Theme, visible
from gradellm.transport.credentials import Tls
from gradellm.transport.retry import Retry
from gradellm.wire.requests import AttributionKeywords

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
    "connected",
    "given",
    "input_keywords",
    "names",
    "numbers",
    "own_server",
    "pairs",
    "refuse",
    "security",
    "style",
    "token_ids",
    "wrapped",
]

TOKEN_VARIABLE = "GRADELLM_TOKEN"  # noqa: S105  (its name, not the token); never a flag, which all processes can see
_SECURITY = ("tls", "tls_ca", "tls_cert", "tls_key", "token_file")
_STARTING_SECONDS = 600.0  # that a server may take to load its model, as one that a command starts itself
_WIDEST = 100  # columns: longer lines are hard to read


def add_command(
    commands: SubParsers, name: str, summary: str, examples: str, usage: str | None = None
) -> argparse.ArgumentParser:
    """Add a command's parser, with examples under its help."""
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=usage and f"%(prog)s {usage}",
        allow_abbrev=False,  # a new flag must not change what an old command line means
    )


# --- the server to ask ----------------------------------------------------------------------------------------------


def add_server(parser: argparse.ArgumentParser, *, model: bool = True, several: bool = False) -> None:
    """Add the flags that choose the server: one that runs, or one for this command alone."""
    group = parser.add_argument_group("server", "Without --target, a server is started for this command alone.")
    meaning = "the server to ask; also unix:/path or dns:///name:port"
    group.add_argument(
        "--target",
        metavar="HOST:PORT[,...]",
        help=f"{meaning}; several, with commas between, {'share a data set' if several else 'take turns'}",
    )
    if not several:  # a data set has its own patience
        group.add_argument("--no-retry", action="store_true", help="do not try again where there is no server or room")
    group.add_argument("--tls", action="store_true", help="connect to --target by TLS")
    group.add_argument("--tls-ca", metavar="FILE", help="who signs the server's certificate (PEM); implies --tls")
    group.add_argument("--tls-cert", metavar="FILE", help="this client's own certificate (PEM); implies --tls")
    group.add_argument("--tls-key", metavar="FILE", help="its private key (PEM)")
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"holds the token that the server knows this client by; or the environment variable {TOKEN_VARIABLE} does",
    )
    if model:
        group.add_argument("--model", metavar="M", help="a path or hub id; by default the demo model that comes along")
    group.add_argument("--dtype", metavar="D", help="what the weights are computed in: float32, bfloat16, ...")
    group.add_argument("--device", metavar="D", help="where the model lies: cpu, cuda, ...")
    group.add_argument("--server-log", action="store_true", help="show the started server's own log")
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after so long; no limit by default")


@contextmanager
def connected(args: argparse.Namespace) -> Iterator[Client]:
    """Connect to --target, or start a server and tell on standard error how that goes."""
    own = own_server(args)
    if args.target:
        patient = Retry(on_wait=_Waiting(), starting_seconds=_STARTING_SECONDS)
        retry = None if getattr(args, "no_retry", False) else patient
        with Client(args.target, **security(args), retry=retry) as client:
            yield client
        return
    began = time.monotonic()
    print(f"starting a server for {own.get('model', 'the demo model')} ...", file=sys.stderr, flush=True)
    with Client.local(**own, inherit_stderr=args.server_log) as client:
        print(f"ready after {time.monotonic() - began:.1f} s\n", file=sys.stderr, flush=True)
        yield client


class _Waiting:
    """Tells what is waited for; of a server that starts, once."""

    def __init__(self) -> None:
        self._told = ""

    def __call__(self, error: GradellmError, seconds: float) -> None:
        """Be told of a pause, as `Retry.on_wait`."""
        said = visible(str(error))
        is_starting = isinstance(error, UnavailableError) and error.is_starting
        if not is_starting:
            print(f"{said}\ntrying again after {seconds:.1f} s ...", file=sys.stderr, flush=True)
        elif said != self._told:
            print(f"{said}\nwaiting for it ...", file=sys.stderr, flush=True)
        self._told = said


def own_server(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags for a server that is started here. Refuses them beside --target."""
    own = given(args, "model", "dtype", "device")
    if args.target and own:
        raise InvalidRequestError.of(next(iter(own)), f"is for a server that is started here, not for {args.target}")
    for name in _SECURITY:
        if not args.target and getattr(args, name):
            raise InvalidRequestError.of(name, "is for a server that runs elsewhere: say which with --target")
    return own


def security(args: argparse.Namespace) -> SecurityKeywords:
    """Return how to connect to --target and by which token, as keywords of a client."""
    tls: bool | Tls = args.tls
    if args.tls_ca or args.tls_cert or args.tls_key:
        tls = Tls(args.tls_ca, args.tls_cert, args.tls_key)
    return {"tls": tls, "token": _token(args)}


class SecurityKeywords(TypedDict):
    """See `Client`."""

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
        raise InvalidRequestError.of("token_file", f"{args.token_file} must hold one token and nothing else")
    return token


# --- the prompt -----------------------------------------------------------------------------------------------------


def add_input(parser: argparse.ArgumentParser) -> None:
    """Add the prompt in its forms."""
    group = parser.add_argument_group("prompt")
    group.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt's text; - reads it from standard input")
    group.add_argument(
        "--chat", action="store_true", help="send PROMPT as a user message, by the model's chat template"
    )
    group.add_argument("--system", metavar="TEXT", help="put a system message before it; implies --chat")
    group.add_argument("--prompt-ids", type=token_ids, metavar="1,2,3", help="token ids in place of PROMPT")
    group.add_argument(
        "--segment",
        type=_segment,
        action="append",
        metavar="NAME=START:END",
        help="name a stretch of PROMPT, in characters; NAME=MESSAGE:START:END for another message; repeatable",
    )


def input_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Return the prompt as the SDK's keywords."""
    prompt = _read_standard_input() if args.prompt == "-" else args.prompt
    chat = prompt is not None and (args.chat or args.system is not None)
    keywords: dict[str, Any] = given(args, "prompt_ids")
    if chat:
        system = [("system", args.system)] if args.system is not None else []
        keywords["messages"] = [*system, ("user", prompt)]
    elif prompt is not None:
        keywords["prompt"] = prompt
    if args.segment:
        in_message = len(keywords["messages"]) - 1 if chat else None
        keywords["segments"] = {
            name: (in_message, *stretch) if in_message is not None and len(stretch) == 2 else stretch
            for name, stretch in args.segment
        }
    return keywords


def _read_standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError.of("prompt", f"standard input is not UTF-8 at byte {error.start}") from error


def token_ids(text: str) -> list[int]:
    """Parse "1,2,3"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers with commas between, such as 1,2,3, not {text!r}") from None


def names(text: str) -> list[str]:
    """Parse "a,b"."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"must be names with commas between, such as a,b, not {text!r}")
    return found


def numbers(text: str) -> list[float]:
    """Parse "0.1,0.5"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be numbers with commas between, such as 0.1,0.5, not {text!r}"
        ) from None


def pairs(text: str) -> dict[str, str]:
    """Parse "a=b,c=d"."""
    found = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and value.strip() for name, _, value in found):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, with commas between, not {text!r}")
    return {name.strip(): value.strip() for name, _, value in found}


def _segment(text: str) -> tuple[str, tuple[int, ...]]:
    match = re.fullmatch(r"(.+)=(?:(\d+):)?(\d+):(\d+)", text, re.DOTALL)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be NAME=START:END or NAME=MESSAGE:START:END, not {text!r}")
    name, *numbers = match.groups()
    return name, tuple(int(number) for number in numbers if number is not None)


# --- attribution ----------------------------------------------------------------------------------------------------

_PRESETS = (*get_args(models.Preset), "none")
_SWITCHES: dict[str, tuple[Any, str]] = {
    "loosening": (models.Loosening, "how attention's token weights enter"),
    "similarity": (models.Similarity, "how query and key are compared"),
    "rotary": (models.Rotary, "query and key after or before the rotary embedding"),
    "rectify": (models.Rectify, "where negative contributions are cut off"),
    "magnitude": (models.Magnitude, "how heads and channels are combined"),
    "normalise_over": (models.NormaliseOver, "the tokens over which token weights are normalised"),
    "objective": (models.Objective, "what of the target is followed; logit by default"),
    "aggregation": (models.Aggregation, "how a token's channels become one score; norm by default"),
    "sources": (models.Sources, "score the prompt (the default), or the completion so far as well"),
    "resolution": (models.Resolution, "what one score stands for; token by default"),
    "delivery": (models.Delivery, "scores with each token (the default), or for several at once, which costs less"),
}


def add_attribution(parser: argparse.ArgumentParser, *, can_be_off: bool) -> None:
    """Add what to explain, and how."""
    group = parser.add_argument_group(
        "attribution",
        "A switch that is not given has its preset's or its method's value; `gradellm info` tells whose it is.",
    )
    group.add_argument(
        "--attribution",
        choices=_PRESETS if can_be_off else _PRESETS[:-1],
        help="the preset; paper by default" + (", none for plain text" if can_be_off else ""),
    )
    group.add_argument("--method", metavar="NAME", help="grad_ellm by default; `gradellm info` lists what there is")
    group.add_argument("--layers", type=_layers, metavar="last:4|0,1|all", help="which layers are summed")
    for name, (values, meaning) in _SWITCHES.items():
        group.add_argument(f"--{name.replace('_', '-')}", choices=get_args(values), help=meaning)
    group.add_argument("--target-token", type=int, dest="target_token", metavar="ID", help="explain this token's logit")
    group.add_argument(
        "--contrast",
        type=_contrast,
        metavar="ID|TEXT|runner_up",
        help="explain why the token and not this one; text:12 where the text is a number",
    )
    group.add_argument("--top-k-sources", type=int, metavar="K", help="only the K largest scores a token")
    group.add_argument("--steps", type=int, metavar="N", help="places on the path of integrated gradients")
    group.add_argument("--samples", type=int, metavar="N", help="samples of methods that draw some")
    group.add_argument("--attribution-seed", type=int, metavar="N", help="of methods that draw; 0 by default")
    group.add_argument("--layer", type=int, metavar="N", help="whose output is taken; -1 is the embedding")
    group.add_argument(
        "--baseline-ids", type=token_ids, metavar="1,2,3", help="token ids in place of the prompt's, one for each"
    )
    group.add_argument("--chunk-size", type=int, metavar="N", help="tokens that are explained at once, 1 to 256")


def attribution_keywords(args: argparse.Namespace) -> dict[str, Any]:
    """Return what to explain as the SDK's keywords."""
    keywords = given(args, *(name for name in AttributionKeywords.__annotations__ if name != "target"))
    keywords.update({"target": args.target_token} if args.target_token is not None else {})
    keywords.update({"attribution": None} if args.attribution == "none" else {})
    return keywords


def _layers(text: str) -> Literal["all"] | int | list[int]:
    if text == "all":
        return "all"
    if match := re.fullmatch(r"last:(\d+)", text):
        return int(match[1])
    return token_ids(text)


def _contrast(text: str) -> int | str:
    return int(text) if re.fullmatch(r"[0-9]+", text) else text.removeprefix("text:")


# --- drawing --------------------------------------------------------------------------------------------------------


def add_drawing(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add how the result is shown, and return the group of flags."""
    group = parser.add_argument_group("output")
    group.add_argument("--color", choices=get_args(ColorMode), default="auto", help="auto by default, by the terminal")
    group.add_argument("--theme", choices=("auto", *get_args(Theme)), default="auto", help="the terminal's background")
    group.add_argument("--width", type=_width, metavar="COLUMNS", help="the terminal's by default, at most 100")
    group.add_argument(
        "--full", action="store_true", help="draw every line of long prompts, not only those that matter"
    )
    return group


def style(args: argparse.Namespace) -> Style:
    """Return how to draw."""
    width = args.width or min(shutil.get_terminal_size().columns, _WIDEST)
    return Style.of(width=width, color=args.color, theme=args.theme, fold=not args.full)


def _width(text: str) -> int:
    if not (text.isdecimal() and 20 <= int(text) <= 10_000):
        raise argparse.ArgumentTypeError(f"must be a number of columns from 20 on, not {text!r}")
    return int(text)


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return those of the flags that were given."""
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def wrapped(text: str) -> str:
    """Return a sentence in lines that fit the terminal, the second and others indented."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    return textwrap.fill(visible(text), width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def refuse(args: argparse.Namespace, names: Sequence[str], beside: str) -> None:
    """Refuse flags that contradict what is done."""
    for name in names:
        if (value := getattr(args, name)) is not None and value is not False:
            raise InvalidRequestError.of(name, f"has no meaning beside {beside}")
