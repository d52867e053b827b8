"""Types of command-line arguments: bounds and units."""

from __future__ import annotations

import argparse

import pytest

from gradellm_server.cli_types import count, milliseconds, seconds, size


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("1", 1),
        ("17b", 17),
        ("2kB", 2000),
        ("2KiB", 2048),
        ("512MiB", 512 * 2**20),
        (" 8 GB ", 8 * 10**9),
        ("8gib", 8 * 2**30),
        ("1.5GiB", 3 * 2**29),
        ("3TiB", 3 * 2**40),
        ("0.5B", 0),
    ],
)
def test_a_size_is_in_bytes(text: str, number: int) -> None:
    assert size(text) == number


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e9", "1.MiB", ".5GB", "1 G", "1PB", "1iB", "1MiB2", "9" * 400])
def test_a_malformed_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size such as 512MiB or 8GB"):
        size(text)


def test_a_count_is_at_least_one() -> None:
    assert count("1") == 1
    assert count("0012") == 12
    for text in ("0", "-1", "+1", "1.0", "", " 1", "²", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be at least 1"):
            count(text)


def test_seconds_are_finite_and_not_negative() -> None:
    assert [seconds(text) for text in ("0", "1.5", "1e3")] == [0.0, 1.5, 1000.0]
    for text in ("-0.1", "1e6", "inf", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be at least 0 and less than 1,000,000"):
            seconds(text)
    with pytest.raises(argparse.ArgumentTypeError, match="'soon' is not a number of seconds"):
        seconds("soon")


def test_milliseconds_are_positive_and_given_in_seconds() -> None:
    assert milliseconds("500") == 0.5
    assert milliseconds("0.5") == pytest.approx(0.0005)
    for text in ("0", "-1", "nan", "inf", "1e12"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be more than 0 and less than 1,000,000,000"):
            milliseconds(text)
    with pytest.raises(argparse.ArgumentTypeError, match="'half' is not a number of milliseconds"):
        milliseconds("half")
