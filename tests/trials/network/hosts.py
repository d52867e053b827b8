"""Replicas on separate hosts with one DNS name: cut off, killed, added, restored, and far away."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradellm import Explanation
from trials.diff import compare, unchanged
from trials.load.callers import Call, read_outcome
from trials.network.cluster import NAME, PORT, CallCounter, Cluster, Replica, run_callers
from trials.network.namespaces import Network, unavailable_reason
from trials.report import Finding
from trials.serving import START_SECONDS, served

STREAMS, FAR_STREAMS, TOKENS = 48, 12, 32
ADDED_SECONDS = 30.0  # in which a new host must receive calls
MAX_UNEVENNESS = 0.2  # of an even share of calls
SILENT_SECONDS = 30.0 + 5.0  # keepalive's 20 s and 10 s, and the resumption on another host
FAR_SECONDS, FAR_LOSS = 0.05, 0.05  # in each direction
SCORE_TOLERANCE = 1e-4  # undisturbed streams differ by some 1e-5 between batches
TARGET = f"dns:///{NAME}:{PORT}"

REQUESTS: list[dict[str, Any]] = [
    {
        "prompt": f"Once upon a time, there was a {('cat', 'dog', 'bear', 'girl')[index % 4]} who",
        "max_new_tokens": TOKENS,
        "num_alternatives": 2,
        "seed": index,
        "temperature": 1.0 if index % 2 else 0.0,
        "delivery": "chunked" if index % 4 >= 2 else "per_token",
    }
    for index in range(STREAMS)
]
LONG_REQUEST: dict[str, Any] = {"prompt": "Once", "max_new_tokens": 200, "num_alternatives": 2}


def hosts(scale: float) -> list[Finding]:
    """48 callers and four hosts; one is added, one cut off in silence, one killed. Then one stream, and a far host."""
    if reason := unavailable_reason():
        return [Finding("not tried", reason)]
    with tempfile.TemporaryDirectory() as folder, Network() as network:
        cluster = Cluster(network, Path(folder))
        references = undisturbed(cluster.folder / "undisturbed")
        return [
            *_many_streams(cluster, references, max(8.0, 20.0 * scale)),
            *_one_stream(cluster, references),
            *_far_host(cluster, references),
        ]


def undisturbed(folder: Path) -> list[Explanation]:
    """Reference explanations of `REQUESTS` and `LONG_REQUEST` from one server without failures, in this order."""
    with served() as server, run_callers(server.address, folder, [*REQUESTS, LONG_REQUEST], 0.0):
        pass
    calls, explanations = read_outcome(folder)
    by_request = {call.request: _explanation_of(call, explanations) for call in calls}
    references = [found for index in range(STREAMS + 1) if (found := by_request[index]) is not None]
    if len(references) <= STREAMS:
        raise RuntimeError("undisturbed streams did not all finish")
    return references


@dataclass
class Disturbances:
    """What was seen while hosts came and went.

    Attributes:
        calls_by_host: counts of calls in each phase, a number a host.
        added_seconds: from the DNS record of the new host to its first call.
        disturbed_at: when the first host was cut off, on the monotonic clock.
        restored_seconds: from the restored link to the first call of the host that had been cut off.
        outcome: folder with the callers' calls and explanations.
    """

    calls_by_host: dict[str, list[int]]
    added_seconds: float
    disturbed_at: float
    restored_seconds: float
    outcome: Path


def _disturb(cluster: Cluster, seconds: float) -> Disturbances:
    """Add, cut off, kill and restore hosts under load; calls are counted for `seconds` in each phase."""
    first = [cluster.start_replica(f"host{number}", 10 + number) for number in range(1, 5)]
    for replica in first:
        replica.wait_until_ready()
    cut, killed = first[:2]
    cluster.set_dns(first)
    phases: dict[str, list[int]] = {}
    with CallCounter(first) as counter, cluster.load(TARGET, "many", REQUESTS) as outcome:
        counter.wait_until(lambda: counter.total >= STREAMS, START_SECONDS)
        phases[f"the first {STREAMS} at once, of a client that has just connected"] = counter.counts(first)
        phases["over 4 hosts"] = counter.during(seconds, first)

        added = cluster.start_replica("host5", 15)
        added.wait_until_ready()
        counter.replicas.append(added)
        cluster.set_dns([*first, added])
        added_seconds = counter.wait_until(lambda: counter.count(added) > 0, 3 * ADDED_SECONDS)
        phases["over 5, one of them new"] = counter.during(seconds, [*first, added])

        disturbed_at = time.monotonic()
        cut.host.cut()
        time.sleep(5)
        killed.process.kill()
        left = [*first[2:], added]
        cluster.set_dns([cut, *left])  # an orchestrator does not yet know of the host that is cut off
        time.sleep(max(0.0, disturbed_at + SILENT_SECONDS - time.monotonic()))
        phases["over the 3 that are left"] = counter.during(seconds, left)

        restored_seconds = _restore(counter, cut)
    return Disturbances(phases, added_seconds, disturbed_at, restored_seconds, outcome)


def _restore(counter: CallCounter, cut: Replica) -> float:
    before = counter.count(cut)
    cut.host.restore()
    return counter.wait_until(lambda: counter.count(cut) > before, 3 * ADDED_SECONDS)


def _many_streams(cluster: Cluster, references: Sequence[Explanation], seconds: float) -> list[Finding]:
    """48 callers without pause while hosts come and go."""
    run = _disturb(cluster, seconds)
    calls, explanations = read_outcome(run.outcome)
    lost = [call for call in calls if call.explanation is None]
    silences = [call.silent_seconds for call in calls if call.ended > run.disturbed_at]
    silence = max(silences)
    pairs = [(_explanation_of(call, explanations), references[call.request]) for call in calls]
    early = compare([pair for pair, call in zip(pairs, calls, strict=True) if call.ended < run.disturbed_at])
    total_seconds = max(call.ended for call in calls) - min(call.started for call in calls)
    return [
        Finding(
            "streams",
            f"{len(calls):,} by {STREAMS} callers in {total_seconds:.0f} s, on 4 hosts behind one name, with "
            f"{cluster.dns.num_queries} DNS queries; one added, one cut off in silence, one killed",
        ),
        Finding("streams lost", f"{len(lost)}{f': {lost[0].error}' if lost else ''}", "none", not lost),
        *_evenness(run.calls_by_host),
        Finding(
            "first call on the new host, after its DNS record",
            f"{run.added_seconds:.1f} s",
            f"{ADDED_SECONDS:.0f} s",
            run.added_seconds <= ADDED_SECONDS,
        ),
        Finding(
            "longest silence of a stream, once a host was cut off and another one killed",
            f"{silence:.1f} s, of {sum(each >= 5 for each in silences)} that waited for 5 s or more",
            f"{SILENT_SECONDS:.0f} s",
            silence <= SILENT_SECONDS,
        ),
        Finding(
            "first call on the host that was cut off, after its link was restored", f"{run.restored_seconds:.1f} s"
        ),
        *unchanged(compare(pairs), SCORE_TOLERANCE),
        Finding("the same, of those that ended before", f"{early.largest:.1e}, of {early.rows:,} rows"),
    ]


def _evenness(calls_by_host: dict[str, list[int]]) -> list[Finding]:
    return [
        Finding(
            f"calls by host, {phase}: furthest from even",
            f"{_unevenness(counts):.0%} ({', '.join(map(str, counts))})",
            f"{MAX_UNEVENNESS:.0%}",
            _unevenness(counts) <= MAX_UNEVENNESS,
        )
        for phase, counts in calls_by_host.items()
    ]


def _one_stream(cluster: Cluster, references: Sequence[Explanation]) -> list[Finding]:
    """One long stream whose host is cut off while the client sends nothing: only keepalive can notice."""
    running = [replica for replica in cluster.replicas if replica.process.poll() is None]
    cluster.set_dns(running)
    with CallCounter(running) as counter:
        time.sleep(1)
        before = {replica: counter.count(replica) for replica in running}

        def called() -> list[Replica]:
            return [replica for replica in running if counter.count(replica) > before[replica]]

        with cluster.load(TARGET, "alone", [LONG_REQUEST], 0.0) as outcome:
            counter.wait_until(lambda: bool(called()), START_SECONDS)
            host = called()[0].host
            time.sleep(0.2)  # for some tokens
            host.cut()
    host.restore()
    (call,), explanations = read_outcome(outcome)
    differences = compare([(_explanation_of(call, explanations), references[STREAMS])])
    is_whole = not (differences.broken or differences.other_texts)
    return [
        Finding(
            f"one stream of {LONG_REQUEST['max_new_tokens']} tokens alone, its host cut off: its silence",
            f"{call.silent_seconds:.1f} s; {'whole and unchanged' if is_whole else call.error or 'changed'}",
            f"{SILENT_SECONDS:.0f} s, whole",
            is_whole and call.silent_seconds <= SILENT_SECONDS,
        )
    ]


def _far_host(cluster: Cluster, references: Sequence[Explanation]) -> list[Finding]:
    """Streams over a slow, lossy link, compared with the same streams over a good one."""
    for replica in cluster.replicas:
        replica.kill()
    near = cluster.start_replica("near", 21)
    far = cluster.start_replica("far", 22, delay_seconds=FAR_SECONDS, loss=FAR_LOSS)
    pairs: list[tuple[Explanation | None, Explanation | None]] = []
    medians: list[str] = []
    for replica in (near, far):
        replica.wait_until_ready()
    for replica in (near, far):
        target = f"{replica.host.address}:{PORT}"
        with cluster.load(target, replica.host.name, REQUESTS[:FAR_STREAMS], 0.0) as outcome:
            pass
        calls, explanations = read_outcome(outcome)
        pairs += [(_explanation_of(call, explanations), references[call.request]) for call in calls]
        wait = statistics.median(call.silent_seconds for call in calls)
        total = statistics.median(call.ended - call.started for call in calls)
        medians.append(f"{total:.1f} s, of which the longest wait for an event {wait:.1f} s")
    differences = compare(pairs)
    link = f"{1000 * FAR_SECONDS:.0f} ms and {FAR_LOSS:.0%} loss in each direction"
    return [
        Finding(
            f"{FAR_STREAMS} streams over a link of {link}: median",
            f"{medians[1]}; over a good link {medians[0]}",
        ),
        Finding(
            "of these lost or changed",
            f"{differences.broken + differences.other_texts}, and {differences.ties} at ties",
            "none but at ties",
            not differences.broken and not differences.other_texts,
        ),
    ]


def _explanation_of(call: Call, explanations: Sequence[Explanation]) -> Explanation | None:
    return None if call.explanation is None else explanations[call.explanation]


def _unevenness(counts: Sequence[int]) -> float:
    """Largest deviation from an even share, relative to that share."""
    share = sum(counts) / len(counts)
    return max(abs(count - share) for count in counts) / max(share, 1.0)
