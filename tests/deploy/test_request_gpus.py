"""deploy/request_gpus.py on Ray's real autoscaler, with the node types of cluster.yaml and no spot capacity."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config

from tests.support.ray_head import RayHead, alive_nodes, ray_head

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy/request_gpus.py"


def autoscaler() -> dict[str, Any]:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    # Nodes are processes here: nothing is copied to them, set up or started over ssh.
    commands = {name: [] for name in config if name.endswith("_commands")}
    provider = {"type": "external", "module": "tests.deploy.fake_ec2.FakeEc2", "launch_multiple": True}
    changed = {"file_mounts": {}, "cluster_synced_files": [], "idle_timeout_minutes": 0.05, "provider": provider}
    return dict(prepare_config({"upscaling_speed": 1.0, "docker": {}, **config, **commands, **changed}))


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(num_cpus=0, autoscaler=autoscaler()) as running:
        yield running


def request_gpus(head: RayHead, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**head.environment, "RAY_ADDRESS": head.gcs_address}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.series
def test_gpus_that_spot_does_not_give_come_on_demand_and_go_when_they_are_let_go(head: RayHead) -> None:
    done = request_gpus(head, "2", "--spot-minutes", "0.1")
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("request_gpus: ")]
    assert said[:2] == [
        "request_gpus: 0 of 2 GPUs after 0.0 minutes",
        "request_gpus: requesting 2 on-demand nodes in place of spot nodes",
    ]
    assert said[-1] == "request_gpus: 2 GPUs are ready"
    assert len(alive_nodes(head.address)) == 3

    assert request_gpus(head, "0").returncode == 0
    deadline = time.monotonic() + 60
    while len(alive_nodes(head.address)) > 1:
        assert time.monotonic() < deadline, "idle nodes were not ended"
        time.sleep(0.5)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.series
def test_gpus_that_do_not_come_are_not_asked_for_any_longer(head: RayHead) -> None:
    done = request_gpus(head, "1", "--timeout-minutes", "0.05")
    assert done.returncode == 5
    assert "error: num_gpus=1: got 0 in 0.05 minutes and released them" in done.stderr


@pytest.mark.parametrize("address", ["", "http://127.0.0.1:8265"])
def test_outside_a_cluster_one_line_says_how_it_is_submitted(address: str) -> None:
    command = [sys.executable, str(SCRIPT), "1"]
    environment = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 5
    assert done.stderr == (
        "request_gpus: error: not a cluster job; "
        "submit it: ray job submit --working-dir deploy -- python request_gpus.py 4\n"
    )
