"""The trial of replicas on hosts of their own, at its smallest scale."""

from __future__ import annotations

import pytest

from trials.network.hosts import hosts
from trials.network.namespaces import unavailable_reason


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hosts_may_be_added_cut_off_killed_and_far() -> None:
    if reason := unavailable_reason():
        pytest.skip(reason)
    assert [finding for finding in hosts(0.1) if finding.holds is False] == []
