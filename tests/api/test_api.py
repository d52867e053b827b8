"""What users rely on stays as it is, or changes with a line in CHANGELOG.md."""

from __future__ import annotations

import sys

import pytest

from api.snapshot import FOLDER, SNAPSHOTS


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_the_public_interface_is_unchanged(name: str) -> None:
    if name == "help.txt" and sys.version_info >= (3, 13):
        pytest.skip("argparse lays out its help otherwise since Python 3.13")
    expected = (FOLDER / name).read_text(encoding="utf-8")
    assert SNAPSHOTS[name]() == expected, f"tests/api/{name} differs: say it in CHANGELOG.md, and run `make api`"
