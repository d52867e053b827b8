"""`gradellm info`: the model, methods and limits of a server."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from gradellm.cli import options
from gradellm.rendering.terminal import visible
from gradellm.serialization import to_plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from gradellm.models import MethodInfo, ServerInfo

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  gradellm info --target localhost:50051
  gradellm info --model PATH --json
"""


def add_parser(commands: options.SubParsers) -> None:
    """Add the command."""
    parser = options.add_command(commands, "info", "show a server's model, limits and methods", _EXAMPLES)
    options.add_server(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the server's information."""
    with options.connect(args) as client:
        info = client.server_info(**options.given_values(args, "timeout"))
    print(json.dumps(to_plain(info), ensure_ascii=False, indent=2) if args.json else "\n".join(_lines(info)))
    return 0


def _lines(info: ServerInfo) -> Iterator[str]:
    yield "model"
    names = {field.name: field.name.replace("num_", "").replace("_", " ") for field in fields(info.model)}
    yield from _table({names[name]: value for name, value in asdict(info.model).items() if value != ""})
    yield "\nlimits"
    yield from _table({field.name.replace("_", " "): getattr(info.limits, field.name) for field in fields(info.limits)})
    if info.default_attribution:
        is_recommended = info.default_attribution == info.recommended_preset
        yield f"\ndefault attribution: {info.default_attribution}{' (recommended)' if is_recommended else ''}"
    if info.memory.weights_bytes:  # zero from older servers
        yield "\nmemory"
        names = {field.name: field.name.removesuffix("_bytes").replace("_", " ") for field in fields(info.memory)}
        sizes = {names[name]: f"{value / 2**20:,.0f} MiB" for name, value in asdict(info.memory).items() if value}
        yield from _table(sizes)
    yield "\nmethods (*: available in generate and explain)"
    for method in info.methods:
        yield from _method(method)
    yield "\nversions"
    yield from _table(info.versions)


def _method(method: MethodInfo) -> Iterator[str]:
    """Yield the lines of a method: name and description, cost and switches."""
    yield f"  {visible(method.name)}{' *' if method.streams else ''}: {visible(method.description)}"
    if method.refusal:
        yield f"      not available: {visible(method.refusal)}"
        return
    if method.forward_passes:  # empty from older servers
        tokens = "the completion" if method.reads_completion_alone else "prompt and completion"
        passes = f"{method.forward_passes} forward, {method.backward_passes} backward"
        yield f"      passes over {tokens}: {visible(passes)}"
    if (estimate := method.estimate) is not None:
        size = f"{estimate.completion_tokens} tokens after {estimate.prompt_tokens}"
        seconds = f"{estimate.seconds:,.0f}" if estimate.seconds >= 10 else f"{estimate.seconds:.2g}"
        yield f"      {size}: about {seconds} s, {estimate.bytes / 2**20:,.0f} MiB"
    if method.switches:
        yield f"      switches: {', '.join(map(visible, method.switches))}"
    if method.error:
        yield f"      error: {visible(method.error)}"


def _table(rows: Mapping[str, object]) -> Iterator[str]:
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        yield f"  {visible(name):{width}}  {visible(shown)}"
