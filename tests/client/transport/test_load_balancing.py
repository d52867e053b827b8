"""Round robin over several targets."""

from __future__ import annotations

import pytest

from gradellm import Client
from gradellm.errors import InvalidRequestError
from gradellm.transport.load_balancing import Rotation, resolves_to_many, split


@pytest.mark.parametrize(
    ("target", "targets"),
    [
        ("a:1", ("a:1",)),
        ("a:1, b:2", ("a:1", "b:2")),
        (["a:1", "b:2,c:3"], ("a:1", "b:2", "c:3")),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", ("ipv4:10.0.0.1:1,10.0.0.2:1",)),
        ("unix:/a,b", ("unix:/a,b",)),
        ("dns:///name:1", ("dns:///name:1",)),
    ],
)
def test_targets_are_split(target: str | list[str], targets: tuple[str, ...]) -> None:
    assert split(target) == targets


@pytest.mark.parametrize("target", ["", [], "a:1,", [" "]])
def test_none_is_refused(target: str | list[str]) -> None:
    with pytest.raises(InvalidRequestError, match="host:port"):
        split(target)


@pytest.mark.parametrize(
    ("target", "several"),
    [
        ("dns:///name:1", True),
        ("dns://127.0.0.1:53/name:1", True),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", True),
        ("ipv4:10.0.0.1:1", False),
        ("localhost:1", False),
        ("unix:/a,b", False),
    ],
)
def test_one_target_may_be_several_servers(target: str, several: bool) -> None:
    assert resolves_to_many(target) is several


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_targets_are_picked_round_robin() -> None:
    rotation = Rotation(3)
    assert [rotation.pick() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_backoff_grows_until_a_target_works() -> None:
    clock = Clock()
    rotation = Rotation(2, clock)
    for seconds in (1, 2, 4, 8, 16, 30, 30):
        assert rotation.mark_down(0)
        clock.now += seconds - 0.01
        assert {rotation.pick() for _ in range(4)} == {1}
        clock.now += 0.02
        assert {rotation.pick() for _ in range(4)} == {0, 1}
    rotation.mark_up(0)
    assert rotation.mark_down(0)
    clock.now += 1.01
    assert {rotation.pick() for _ in range(4)} == {0, 1}


def test_mark_down_reports_whether_another_target_remains() -> None:
    assert not Rotation(1).mark_down(0, 0.0)
    assert Rotation(2).mark_down(0, 0.0)


def test_a_server_is_skipped_for_its_retry_delay() -> None:
    clock = Clock()
    rotation = Rotation(2, clock)
    rotation.mark_down(1, 7.0)
    clock.now += 6.9
    assert {rotation.pick() for _ in range(4)} == {0}
    clock.now += 0.2
    assert {rotation.pick() for _ in range(4)} == {0, 1}


def test_of_failed_targets_the_first_to_recover_is_picked() -> None:
    clock = Clock()
    rotation = Rotation(3, clock)
    assert rotation.mark_down(0, 5.0)
    assert rotation.mark_down(1, 2.0)
    assert not rotation.mark_down(2, 9.0)
    assert rotation.pick() == 1


@pytest.mark.parametrize("target", ["localhost", "127.0.0.1", "a:1,b", "host:port"])
def test_a_host_without_a_port_is_refused(target: str) -> None:
    with pytest.raises(InvalidRequestError, match="has no port: say"):
        Client(target)


@pytest.mark.parametrize(
    "target", ["localhost:1", "[::1]:50051", "unix:/x", "dns:///name", "ipv4:10.0.0.1:1,10.0.0.2:1"]
)
def test_other_targets_are_passed_to_grpc(target: str) -> None:
    Client(target).close()
