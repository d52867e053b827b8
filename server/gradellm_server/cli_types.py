"""Types of command-line arguments: numbers with bounds, and sizes. Imports nothing heavy."""

from __future__ import annotations

import argparse
import re

from gradellm_server.settings import MAX_SECONDS


def seconds(text: str) -> float:
    """A duration of at least 0 s."""
    number = _number(text, "seconds")
    if not 0 <= number < MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"must be at least 0 and less than {MAX_SECONDS:,}, was {text}")
    return number


def milliseconds(text: str) -> float:
    """A duration of more than 0 ms, in seconds."""
    number = _number(text, "milliseconds")
    if not 0 < number < 1000 * MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"must be more than 0 and less than {1000 * MAX_SECONDS:,}, was {text}")
    return number / 1000


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"must be at least 1, was {text}")
    return int(text)


def size(text: str) -> int:
    """A size in bytes, with or without a unit."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*(B|[KMGT]i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512MiB or 8GB")
    number, unit = match[1], (match[2] or "B").upper()
    return int(float(number) * (1024 if "I" in unit else 1000) ** "BKMGT".index(unit[0]))


def _number(text: str, unit: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {unit}") from None
