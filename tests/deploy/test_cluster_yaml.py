"""cluster.yaml against Ray's own checks and AWS's own field lists, and its set-up commands in a real shell."""

import copy
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from moto import mock_aws
from moto.iam.policy_validation import IAMPolicyDocumentValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent
from ray.scripts.scripts import cli as ray_cli

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()
PINS = {
    canonicalize_name(name): pin
    for name, pin in (line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
}
WORKERS = ("gpu-spot", "gpu-on-demand")


def config() -> dict[str, Any]:
    return dict(yaml.safe_load(TEXT))


def prepared(changed: dict[str, Any] | None = None) -> dict[str, Any]:
    found = dict(prepare_config(config() if changed is None else changed))
    validate_config(found)
    return found


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray up` finds the mounted files from the folder that it is called in."""
    monkeypatch.chdir(ROOT)


def test_ray_accepts_cluster_yaml_and_no_misspelled_field() -> None:
    assert prepared()["cluster_name"] == "mnist-ray"
    for change in ({"max_worker": 4}, {"available_node_types": {"head": {"resources": {"CPU": "many"}}}}):
        with pytest.raises(jsonschema.ValidationError):
            prepared({**config(), **change})


def node_config_faults(node_config: dict[str, Any]) -> str:
    service = botocore.session.get_session().get_service_model("ec2")
    call = {"MinCount": 1, "MaxCount": 1, **node_config}
    return str(ParamValidator().validate(call, service.operation_model("RunInstances").input_shape).generate_report())


def test_ec2_knows_every_field_of_every_node_config() -> None:
    for name, kind in config()["available_node_types"].items():
        assert node_config_faults(kind["node_config"]) == "", name
        misspelled = {**kind["node_config"], "IamInstanceProfil": {"Name": "x"}}
        assert "IamInstanceProfil" in node_config_faults(misspelled)


def test_workers_start_from_none_and_are_ended_when_idle() -> None:
    found = prepared()
    assert found["idle_timeout_minutes"] == 5
    assert found["provider"]["cache_stopped_nodes"] is False
    assert [found["available_node_types"][name]["min_workers"] for name in WORKERS] == [0, 0]
    assert found["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_spot_nodes_are_preferred_to_on_demand_nodes_that_are_alike_but_for_the_market() -> None:
    spot, on_demand = (copy.deepcopy(config()["available_node_types"][name]) for name in WORKERS)
    assert spot.pop("priority") > on_demand.pop("priority")
    assert (spot.pop("labels"), on_demand.pop("labels")) == ({"market-type": "spot"}, {"market-type": "on-demand"})
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot == on_demand


def test_ray_counts_a_refused_spot_node_for_nothing_as_cluster_yaml_says() -> None:
    monitor = CloudResourceMonitor()

    def report(status: Any) -> dict[str, float]:
        monitor.notify([InstanceUpdateEvent(instance_type="gpu-spot", new_instance_status=status)])
        return dict(monitor.get_recoverable_resource_availabilities())

    assert report(Instance.ALLOCATION_FAILED) == {}
    assert report(Instance.ALLOCATION_TIMEOUT) == {"gpu-spot": 0.0}


def test_ray_starts_with_a_token_and_its_dashboard_on_loopback() -> None:
    found = prepared()
    for kind in ("head", "worker"):
        start = found[f"{kind}_start_ray_commands"][-1]
        assert "RAY_AUTH_MODE=token" in start
        options = re.search(r"ray start (.*)", start)
        assert options
        context = ray_cli.commands["start"].make_context("start", options[1].split())
        assert context.params["head"] is (kind == "head")
        assert kind == "worker" or context.params["dashboard_host"] == "127.0.0.1"
    assert "0.0.0.0" not in str(found)


def test_nothing_of_rays_default_set_up_is_left() -> None:
    found = prepared()
    ours = config()
    assert found["head_setup_commands"] == ours["setup_commands"] + ours["head_setup_commands"]
    assert found["worker_setup_commands"] == ours["setup_commands"]


def test_nodes_get_two_text_files_and_no_secret() -> None:
    assert config()["file_mounts"] == {
        "~/mnist-ray/constraints.txt": "constraints.txt",
        "~/mnist-ray/pyproject.toml": "pyproject.toml",
    }
    files = [ROOT / "cluster.yaml", *(path for path in (ROOT / "deploy").rglob("*") if path.is_file())]
    assert len(files) >= 9
    for path in files:
        assert not re.search(r"AKIA|aws_secret|SECRET_ACCESS_KEY\s*[:=]|PRIVATE KEY", path.read_text()), path


def test_every_requirement_of_a_node_has_a_pin_that_it_accepts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["search"]]
    for requirement in map(Requirement, requirements):
        assert PINS[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_all_files_for_clusters_name_the_version_of_ray_in_constraints_txt() -> None:
    documents = ["cluster.yaml", "docs/cluster.md", *(str(path.relative_to(ROOT)) for path in KUBERAY)]
    named = {
        name: re.findall(r"(?i)\bray(?:version)?[:= ]+\"?(\d+\.\d+(?:\.\d+)?)\b", read(name)) for name in documents
    }
    assert all(named.values()), named
    for name, versions in named.items():
        for found in versions:
            assert PINS["ray"] == found or PINS["ray"].startswith(f"{found}."), f"{name}: Ray {found}"


KUBERAY = sorted((ROOT / "deploy/kuberay").glob("*.yaml"))


def read(name: str) -> str:
    return (ROOT / name).read_text()


def test_nodes_and_image_install_the_same_by_the_same_commands() -> None:
    dockerfile = " ".join(read("deploy/Dockerfile").replace("\\\n", " ").split())
    extract = 'import sys, tomllib; project = tomllib.load(open(sys.argv[1], "rb"))["project"]; '
    extract += 'print(*project["dependencies"], *project["optional-dependencies"]["search"], sep="\\n")'
    assert extract in dockerfile
    assert extract in config()["setup_commands"][2]
    install = "--constraint {0}constraints.txt --requirement {0}requirements.txt"
    assert install.format("") in dockerfile
    assert install.format("~/mnist-ray/") in config()["setup_commands"][3]
    # The Python of Ubuntu 24.04.
    assert "FROM python:3.12-" in dockerfile
    assert "ubuntu/server/24.04" in TEXT


POLICIES = sorted((ROOT / "deploy/aws").glob("*.json"))


@pytest.fixture
def _aws_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty AWS account in this process; Ray keeps the key pair that it makes in HOME."""
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        iam = boto3.client("iam", region_name="us-west-2")
        for role in ("mnist-ray-head", "mnist-ray-worker"):
            iam.create_instance_profile(InstanceProfileName=role)
        yield


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("_aws_account")
def test_rays_own_aws_provider_starts_each_kind_of_node(tmp_path: Path) -> None:
    found = AWSNodeProvider.fillout_available_node_types_resources(prepared())
    found = AWSNodeProvider.bootstrap_config(found)
    provider = AWSNodeProvider(found["provider"], found["cluster_name"])
    for kind, settings in found["available_node_types"].items():
        tags = {TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: kind}
        assert len(provider.create_node(settings["node_config"], tags, 1)) == 1
    answer = boto3.client("ec2", region_name="us-west-2").describe_instances()
    nodes = [node for reservation in answer["Reservations"] for node in reservation["Instances"]]
    profiles = [node["IamInstanceProfile"]["Arn"].rpartition("/")[2] for node in nodes]
    assert profiles == ["mnist-ray-head", "mnist-ray-worker", "mnist-ray-worker"]
    assert [node.get("InstanceLifecycle") for node in nodes] == [None, "spot", None]
    assert {node["MetadataOptions"]["HttpTokens"] for node in nodes} == {"required"}
    assert len(list((tmp_path / ".ssh").glob("*.pem"))) == 1


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_the_roles_policies_are_policies(path: Path) -> None:
    text = path.read_text().replace("BUCKET", "a-bucket")
    if "trust" in path.stem:
        assert yaml.safe_load(text)["Statement"][0]["Principal"] == {"Service": "ec2.amazonaws.com"}
    else:
        IAMPolicyDocumentValidator(text).validate()
        assert '"*"' not in text or path.stem == "autoscaler-policy"


def differs_from_constraints() -> list[str]:
    found = []
    for name, pin in PINS.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        if installed != pin:
            found.append(f"{name} {installed}, not {pin}")
    return found


@pytest.mark.slow
def test_the_set_up_commands_of_a_node_run_in_a_shell_as_ray_runs_them(tmp_path: Path) -> None:
    """All but the download: pip finds the pinned versions of this very environment, and installs nothing."""
    if differs := differs_from_constraints():
        pytest.skip(f"this environment isn't that of constraints.txt: {differs[:3]}")
    home, bin_folder = tmp_path / "home", tmp_path / "bin"
    (home / "mnist-ray").mkdir(parents=True)
    bin_folder.mkdir()
    for target, source in config()["file_mounts"].items():
        (home / target.removeprefix("~/")).write_bytes((ROOT / source).read_bytes())
    # The system's packages are not for a test to install.
    script(bin_folder / "sudo", f'echo "$@" >> {tmp_path}/sudo.log')
    (bin_folder / "python3").symlink_to(sys.executable)
    # A login shell sets its own PATH; Ray reads ~/.bashrc after it.
    (home / ".bashrc").write_text(f"export PATH={bin_folder}:$PATH\n")
    commands = prepared()["head_setup_commands"]
    # Twice those at the end: `ray up` runs all of them again when the file has changed.
    for command in [*commands, *commands[-2:]]:
        run_as_ray_does(command, home)
        if command.endswith("-m venv ~/mnist-ray/venv"):
            borrow_this_environment(home / "mnist-ray/venv")
    assert "install -y python3-venv" in (tmp_path / "sudo.log").read_text()
    assert (home / "mnist-ray/requirements.txt").read_text().startswith("torch>=")
    assert (home / ".bashrc").read_text().count("mnist-ray/venv") == 1
    token = home / ".ray/auth_token"
    assert re.fullmatch("[0-9a-f]{64}", token.read_text())
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def borrow_this_environment(venv: Path) -> None:
    (packages,) = venv.glob("lib/python*/site-packages")
    # Before Python 3.12 a venv has a setuptools of its own, too old for torch.
    for own in packages.glob("setuptools*"):
        shutil.rmtree(own)
    (packages / "borrowed.pth").write_text(f"{next(p for p in sys.path if p.endswith('site-packages'))}\n")
    script(venv / "bin/ray", f'exec {venv}/bin/python -m ray.scripts.scripts "$@"')


def run_as_ray_does(command: str, home: Path) -> None:
    environment = {"HOME": str(home), "PATH": os.defpath, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    line = " ".join(_with_interactive(command))
    done = subprocess.run(["bash", "-c", line], env=environment, cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    assert not re.search("[0-9a-f]{64}", done.stdout + done.stderr)
