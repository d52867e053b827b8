"""Flags of sampling and of the chat template, parsed."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from gradellm.cli.sampling_options import add_sampling, add_template, token_ids


def parsed(*flags: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    group = parser.add_argument_group("generation")
    add_sampling(group)
    add_template(group)
    return {name: value for name, value in vars(parser.parse_args(flags)).items() if value is not None}


def test_flags_are_keywords() -> None:
    assert parsed() == {}
    assert parsed("--logit-bias", "5:-1,6:2.5", "--stop-token-ids", "1,2") == {
        "logit_bias": {5: -1.0, 6: 2.5},
        "stop_token_ids": [1, 2],
    }
    assert parsed("--ignore-eos", "--no-skip-special-tokens", "--no-add-generation-prompt") == {
        "ignore_eos": True,
        "skip_special_tokens": False,
        "add_generation_prompt": False,
    }
    assert parsed("--chat-template-kwargs", '{"a": [1]}', "--continue-final-message") == {
        "chat_template_kwargs": {"a": [1]},
        "continue_final_message": True,
    }


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--logit-bias", "5"),
        ("--logit-bias", "a:1"),
        ("--stop-token-ids", "1,a"),
        ("--chat-template-kwargs", "{"),
        ("--chat-template-kwargs", "[1]"),
        ("--chat-template-kwargs", "[" * 5000),
    ],
)
def test_other_values_are_refused_with_the_flag(flag: str, value: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=f"argument {flag}: "):
        parsed(flag, value)


def test_token_ids() -> None:
    assert token_ids("1, 2,3") == [1, 2, 3]
