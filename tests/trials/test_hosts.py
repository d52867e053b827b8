"""The trial of replicas as hosts of their own, at its smallest."""

from __future__ import annotations

import pytest

from trials.hosts import hosts
from trials.network import why_not


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hosts_may_be_added_cut_off_killed_and_far() -> None:
    if reason := why_not():
        pytest.skip(reason)
    assert [finding for finding in hosts(0.1) if finding.holds is False] == []
