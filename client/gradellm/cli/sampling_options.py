"""Flags of sampling and of the chat template. A flag has the name and default of the SDK's keyword."""

from __future__ import annotations

import argparse
import json
from typing import Any

__all__ = ["TEMPLATE", "add_sampling", "add_template", "token_ids"]

TEMPLATE = ("chat_template_kwargs", "add_generation_prompt", "continue_final_message")


def add_template(group: argparse._ArgumentGroup) -> None:
    """Add the flags of the chat template."""
    group.add_argument(
        "--chat-template-kwargs",
        type=_json_object,
        metavar="JSON",
        help="""with --chat: variables of the chat template, such as '{"enable_thinking": false}'""",
    )
    group.add_argument(
        "--add-generation-prompt",
        action=argparse.BooleanOptionalAction,
        help="with --chat: whether the prompt ends with the header of the assistant's turn; it does by default",
    )
    group.add_argument(
        "--continue-final-message",
        action="store_true",
        default=None,
        help="with --chat: continue the message instead of answering it",
    )


def add_sampling(group: argparse._ArgumentGroup) -> None:
    """Add the flags of sampling."""
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="256 by default, or what is left of the context length"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="0, the default, is greedy decoding")
    group.add_argument("--top-k", type=int, metavar="K", help="sample from the K most probable tokens")
    group.add_argument("--top-p", type=float, metavar="P", help="sample from the most probable tokens that hold P")
    group.add_argument(
        "--min-p", type=float, metavar="P", help="sample from tokens with this share of the best one's probability"
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="divide positive logits of tokens in prompt or completion, multiply negative ones; 1 by default",
    )
    group.add_argument(
        "--frequency-penalty", type=float, metavar="X", help="subtract from a logit for each time in the completion"
    )
    group.add_argument("--presence-penalty", type=float, metavar="X", help="subtract from logits in the completion")
    group.add_argument("--logit-bias", type=_biases, metavar="ID:X[,...]", help="add X to a token's logit, -100 to 100")
    group.add_argument("--seed", type=int, metavar="N", help="seed of sampling")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; repeatable")
    group.add_argument("--stop-token-ids", type=token_ids, metavar="1,2,3", help="end with one of these tokens, too")
    group.add_argument("--min-new-tokens", type=int, metavar="N", help="end after N tokens at the earliest")
    group.add_argument("--ignore-eos", action="store_true", default=None, help="the model's own end tokens end nothing")
    group.add_argument(
        "--skip-special-tokens",
        action=argparse.BooleanOptionalAction,
        help="leave special tokens out of the text, which is the default",
    )


def token_ids(text: str) -> list[int]:
    """Parse "1,2,3"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers separated by commas, such as 1,2,3, not {text!r}") from None


def _biases(text: str) -> dict[int, float]:
    """Parse "12:-5,7:100"."""
    try:
        return {int(token_id): float(bias) for token_id, bias in (part.split(":") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be ID:X, separated by commas, such as 12:-5,7:100, not {text!r}"
        ) from None


def _json_object(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, not {text!r}")
    return parsed
