"""deploy/kuberay against the fields of KubeRay's own resource, and its command lines against ours."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mnist_ray.cli.main import cli

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy/kuberay").glob("*.yaml"))
SCHEMA = json.loads(Path(__file__).with_name("kuberay_rayjob_fields.json").read_text())["schema"]


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text()))


def test_there_is_a_job_for_training_tuning_and_evaluating() -> None:
    assert [path.name for path in FILES] == ["rayjob-evaluate.yaml", "rayjob-train.yaml", "rayjob-tune.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kuberay_knows_every_field(path: Path) -> None:
    job = read(path)
    jsonschema.validate(job, SCHEMA)
    misspelled = copy.deepcopy(job)
    misspelled["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imag"] = "x"
    wrong = copy.deepcopy(job)
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "four"
    for broken in (misspelled, wrong, {**job, "spec": {**job["spec"], "entrypoints": "x"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_job_has_a_token_an_end_and_groups_of_both_kinds(path: Path) -> None:
    spec = read(path)["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 0
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    limits = {name: container(group)["resources"]["limits"] for name, group in groups.items()}
    assert limits["gpu"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in limits["cpu"]
    # The job starts when all pods are ready, and takes what is there then.
    assert all(group["minReplicas"] == group["replicas"] == group["maxReplicas"] for group in groups.values())
    assert sum(group["replicas"] for group in groups.values()) > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_pod_runs_as_root_and_every_pod_may_use_the_bucket(path: Path) -> None:
    cluster = read(path)["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] == "mnist-ray"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container(group)["image"] == "IMAGE"
        assert container(group)["securityContext"]["allowPrivilegeEscalation"] is False
        assert "env" not in container(group)


def container(group: dict[str, Any]) -> dict[str, Any]:
    (found,) = group["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_line_is_one_of_ours_in_the_image(path: Path) -> None:
    entrypoint = shlex.split(read(path)["spec"]["entrypoint"])
    script = re.fullmatch(r"/opt/mnist-ray/(jobs/(\w+)\.py)", entrypoint[1])
    assert script
    assert (ROOT / script[1]).is_file()
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    assert "WORKDIR /opt/mnist-ray\n" in dockerfile
    assert "COPY jobs ./jobs\n" in dockerfile
    context = cli.commands[script[2]].make_context(script[2], entrypoint[2:])
    assert context.params["storage"] == "s3://BUCKET/results"


def test_the_workers_of_the_evaluation_have_a_cpu_each() -> None:
    spec = read(ROOT / "deploy/kuberay/rayjob-evaluate.yaml")["spec"]
    (group,) = (group for group in spec["rayClusterSpec"]["workerGroupSpecs"] if group["replicas"])
    num_workers = int(re.search(r"--num-workers (\d+)", spec["entrypoint"])[1])  # type: ignore[index]
    assert int(container(group)["resources"]["limits"]["cpu"]) * group["replicas"] == num_workers
