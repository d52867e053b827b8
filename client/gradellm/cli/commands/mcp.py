"""`gradellm mcp`: explanations as tools for agents and editors, by the Model Context Protocol on standard input."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from gradellm.aio import AsyncClient
from gradellm.cli import options
from gradellm.errors import InvalidRequestError

if TYPE_CHECKING:
    import argparse

__all__ = ["add_parser", "run"]

_EXAMPLES = """\
  gradellm mcp --target localhost:50051
  claude mcp add gradellm -- gradellm mcp --target localhost:50051
"""


def add_parser(commands: options.SubParsers) -> None:
    """Add the command."""
    text = "serve the tools explain, attribute, citations and evaluate to an MCP client, on standard input and output"
    parser = options.add_command(commands, "mcp", text, _EXAMPLES)
    options.add_server(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until standard input ends."""
    try:
        import mcp as _  # noqa: F401 (the extra is looked for before a server is started)
    except ImportError:
        raise InvalidRequestError("gradellm mcp needs an extra: pip install 'gradellm[mcp]'") from None
    asyncio.run(_serve(args))
    return 0


async def _serve(args: argparse.Namespace) -> None:
    from gradellm.mcp.server import mcp_server

    local = options.local_server_keywords(args)
    if args.target:
        client = AsyncClient(args.target, **options.security(args))
    else:
        print(f"starting a server for {local.get('model', 'the demo model')} ...", file=sys.stderr, flush=True)
        client = await AsyncClient.local(**local, inherit_stderr=args.server_log)
    if sys.stdin.isatty():
        print("serving MCP on standard input, for a program; Ctrl-C ends it", file=sys.stderr, flush=True)
    async with client:
        await mcp_server(client).run_stdio_async()
