"""The evaluation Jobs: flags and exit codes are those of the command, and the shards cover the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from client.cli.test_evaluate_dataset import numbers
from client.evaluation.fake_evaluator import FakeEvaluator, write_data
from deploy.manifests import Resource, built, of_kind
from gradellm.cli import main

JOB, MERGE = "jobs/evaluation", "jobs/evaluation-merge"


def job(name: str) -> Resource:
    (found,) = of_kind(built(name), "Job")
    spec: Resource = found["spec"]
    return spec


def container(name: str) -> Resource:
    (found,) = job(name)["template"]["spec"]["containers"]
    return dict(found)


def arguments(name: str, folder: Path, **overrides: str) -> list[str]:
    """What a pod runs, with its paths under a folder and some of its words replaced."""
    words = []
    for word in container(name)["args"]:
        word = re.sub(r"=/(data|results)", lambda match: f"={folder}/{match[1]}", word)
        for old, new in {"$(JOB_COMPLETION_INDEX)": overrides.get("index", ""), **overrides}.items():
            word = word.replace(old, new)
        words.append(word)
    return words


def test_the_jobs_produce_the_tables_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    data = write_data(tmp_path / "data" / "sst2.jsonl", 21, e3="long")
    server = FakeEvaluator()
    target = {"dns:///gradellm-headless.gradellm.svc:50051": server.target}
    try:
        for index in range(job(JOB)["completions"]):
            assert main(arguments(JOB, tmp_path, index=str(index), **target)) == 0
            assert main(arguments(MERGE, tmp_path)) == (0 if index + 1 == job(JOB)["completions"] else 1)
        flags = ["--preset", "sst2", "--data", str(data), "--methods", "paper", "--target", server.target]
        assert main(["evaluate", *flags, "--out", str(tmp_path / "whole")]) == 0
    finally:
        server.stop()
    assert len(server.requests) == 2 * 21
    assert numbers(tmp_path / "results") == numbers(tmp_path / "whole")
    lines = (tmp_path / "results" / "results.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines[1:]}) == 21


def test_shards_are_as_many_as_completions() -> None:
    assert job(JOB)["completionMode"] == "Indexed"
    (shard,) = [word for word in container(JOB)["args"] if word.startswith("--shard=")]
    assert shard == f"--shard=$(JOB_COMPLETION_INDEX)/{job(JOB)['completions']}"


@pytest.mark.parametrize("name", [JOB, MERGE])
def test_exit_codes_decide_the_pod_failure_action(name: str) -> None:
    rules = job(name)["podFailurePolicy"]["rules"]
    actions = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", ())}
    assert all(
        rule["onExitCodes"]["containerName"] == container(name)["name"] for rule in rules if "onExitCodes" in rule
    )
    assert not actions.keys() & {69, 70, 75, 137, 143}  # a later retry may succeed
    assert actions[2] == "FailJob"
    assert job(name)["podReplacementPolicy"] == "Failed"


@pytest.mark.parametrize("name", [JOB, MERGE])
def test_data_is_read_only_and_results_lie_on_the_claim(name: str) -> None:
    (claim,) = of_kind(built(JOB), "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    volumes = {item["name"]: item for item in job(name)["template"]["spec"]["volumes"]}
    mounts = {item["mountPath"]: item for item in container(name)["volumeMounts"]}
    assert mounts["/data"]["readOnly"] is True
    assert "readOnly" not in mounts["/results"]
    for path in ("/data", "/results"):
        assert volumes[mounts[path]["name"]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert mounts[path]["subPath"] == path[1:]


def test_servers_are_found_where_the_base_has_them() -> None:
    services = {one["metadata"]["name"]: one["spec"] for one in of_kind(built("base"), "Service")}
    (target,) = [word for word in container(JOB)["args"] if word.startswith("--target=")]
    match = re.fullmatch(r"--target=dns:///([\w-]+)\.gradellm\.svc:(\d+)", target)
    assert match is not None
    assert services[match[1]]["clusterIP"] == "None"
    assert int(match[2]) in {port["port"] for port in services[match[1]]["ports"]}
