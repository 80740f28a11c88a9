"""Whole jobs through a proxy that fails, hangs, goes down or flips bits, before a real S3 server process."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.config.settings import EvaluationConfig
from mnist_ray.errors import MnistRayError, StorageError
from mnist_ray.jobs.evaluate import EvaluateJob, evaluate
from mnist_ray.results.listing import evaluation_rows
from mnist_ray.storage import retries
from mnist_ray.storage.storage import Storage, open_storage
from tests.support.doing_lines import without_doing
from tests.support.faulty_proxy import FAILURES, FLIPS, Choice, FaultyProxy, after, by_bucket, drawn, faulty_proxy
from tests.support.grid_runs import train_without_ray
from tests.support.s3_fixtures import S3Server
from tests.support.stored_tables import without_times

pytestmark = [pytest.mark.s3, pytest.mark.slow, pytest.mark.fault]


def nothing(*_: object) -> None:
    """Chooses no fault for any request."""


UNREACHABLE = "the server can't be reached; check the network and AWS_ENDPOINT_URL"


def networks(num_seeds: int) -> dict[str, Choice]:
    """Returns what each network does, by name; all are asked at once, as most of the time is spent in pauses."""
    return {
        "sound": nothing,
        **{f"failing-{seed}": drawn(FAILURES, seed=seed) for seed in range(num_seeds)},
        "losing": drawn(("lost",), seed=0, share=0.4),
        **{f"flipping-{seed}": drawn(FLIPS, seed=seed) for seed in range(num_seeds)},
        "ending": after(10, "reset"),
    }


@dataclass(frozen=True)
class Network:
    """The proxy, and the server behind it."""

    proxy: FaultyProxy
    server: S3Server
    choices: dict[str, Choice]

    def bucket(self, name: str, choice: Choice) -> str:
        """Returns the URI of a storage in a new bucket whose requests meet such faults."""
        self.choices[name] = choice
        client = boto3.Session().client("s3", endpoint_url=self.server.endpoint)
        client.create_bucket(Bucket=name)
        client.close()
        return f"s3://{name}/x"


@pytest.fixture(scope="module")
def network(s3_server: S3Server) -> Iterator[Network]:
    choices: dict[str, Choice] = {}
    with faulty_proxy(s3_server.endpoint, by_bucket(choices)) as proxy, pytest.MonkeyPatch.context() as patch:
        S3Server(proxy.endpoint).use(patch)
        yield Network(proxy, s3_server, choices)


Outcomes = dict[str, str | MnistRayError]


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.series)], ids=["one seed", "three seeds"])
def outcomes(network: Network, request: pytest.FixtureRequest) -> Outcomes:
    """Network -> name of the evaluation of a grid that was trained and evaluated through it, or the error."""
    chosen = networks(request.param)
    uris = [network.bucket(f"{name}-of-{request.param}", choice) for name, choice in chosen.items()]
    with ThreadPoolExecutor(len(uris)) as pool:
        return dict(zip(uris, pool.map(train_and_evaluate, uris), strict=True))


def of_kind(outcomes: Outcomes, *kinds: str) -> list[str]:
    """Returns the storages behind the networks of some kinds."""
    return [uri for uri in outcomes if uri.removeprefix("s3://").startswith(kinds)]


def train_and_evaluate(uri: str) -> str | MnistRayError:
    config = EvaluationConfig(dataset="digits", grid="g", shard_size=200)
    try:
        train_without_ray(uri, "smoke", seeds="1", epochs=1, batch_norm=False)
        return evaluate(EvaluateJob(config, (), uri, Path("unused"), report=False)).name
    except MnistRayError as error:
        return error


@pytest.fixture
def behind(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test looks at is what the server has."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.server.endpoint)


def committed(uri: str) -> dict[str, Any]:
    """Returns each committed evaluation's manifest, without what may vary, every file read and checked."""
    storage = open_storage(uri)
    found = {}
    for row in evaluation_rows(storage):
        assert row["status"] == "committed"
        manifest = storage.read_manifest(f"evaluations/{row['evaluation']}")
        assert manifest is not None
        files = [file["name"] for file in manifest["files"]]
        content = {
            name: without_times(storage.read_committed(f"evaluations/{row['evaluation']}", name)) for name in files
        }
        facts = {key: value for key, value in manifest.items() if key not in ("volatile", "files")}
        found[row["evaluation"]] = {**facts, **content}
    return found


def weights(storage: Storage) -> dict[str, bytes]:
    paths = [entry.path for entry in storage.list_files("runs")]
    return {path: storage.read_bytes(path) for path in paths if path.endswith("best/model.safetensors")}


@pytest.mark.usefixtures("behind")
def test_results_through_a_failing_network_are_those_through_a_sound_one(outcomes: Outcomes, network: Network) -> None:
    (sound,) = of_kind(outcomes, "sound")
    expected = committed(sound)
    assert list(expected) == [outcomes[sound]]
    assert len(weights(open_storage(sound))) == 2
    for uri in of_kind(outcomes, "failing", "losing"):
        storage = open_storage(uri)
        assert outcomes[uri] == outcomes[sound], uri
        assert committed(uri) == expected, uri
        assert weights(storage) == weights(open_storage(sound)), uri
        assert storage.list_files(".staging") == [], uri
    assert {kind for kind in FAILURES if network.proxy.done[kind] > 5} == set(FAILURES)


@pytest.mark.usefixtures("behind")
def test_flipped_bits_give_the_same_results_or_an_error(outcomes: Outcomes, network: Network) -> None:
    (sound,) = of_kind(outcomes, "sound")
    expected = committed(sound)
    for uri in of_kind(outcomes, "flipping"):
        outcome, found = outcomes[uri], committed(uri)
        if isinstance(outcome, MnistRayError):
            assert outcome.exit_code in (3, 4), uri
        assert found in (expected, {}) if isinstance(outcome, MnistRayError) else found == expected, uri
    assert min(network.proxy.done[kind] for kind in FLIPS) > 0


@pytest.mark.usefixtures("behind")
def test_a_network_that_ends_is_an_error_in_one_line_and_leaves_no_evaluation(outcomes: Outcomes) -> None:
    (uri,) = of_kind(outcomes, "ending")
    assert_unreachable(uri, outcomes[uri])


def test_a_network_that_hangs_is_an_error_in_one_line_and_leaves_no_evaluation(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PROBE_TIMEOUT_S", 0.1)
    uri = network.bucket("hanging", after(0, "hang"))
    error = train_and_evaluate(uri)
    assert network.proxy.done["hang"] == retries.TIMEOUT_ATTEMPTS
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.server.endpoint)
    assert_unreachable(uri, error)


def assert_unreachable(uri: str, error: object) -> None:
    assert isinstance(error, StorageError)
    assert str(error).startswith(f"storage='{uri}")
    assert str(error).endswith(UNREACHABLE)
    assert "\n" not in str(error)
    assert committed(uri) == {}


def test_a_run_of_the_command_line_comes_through_a_failing_network(
    network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for name, choice in (("cli-sound", nothing), ("cli-failing", drawn(FAILURES, seed=7))):
        storage = ["--storage", network.bucket(name, choice)]
        assert run_command(["train", "--dataset", "digits", "--epochs", "1", "--name", "a", *storage]) == 0
        capsys.readouterr()
        assert run_command(["evaluate", "--run", "a", "--dataset", "digits", "--no-report", *storage, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.server.endpoint)
    times = ("trained_at", "evaluated_at")
    sound, failing = ({k: v for k, v in one["metrics"][0].items() if k not in times} for one in found)
    assert sound == failing
    assert committed("s3://cli-sound/x") == committed("s3://cli-failing/x") != {}


def test_a_server_that_refuses_connections_ends_in_one_line(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with faulty_proxy(s3_server.endpoint, after(0, "down")) as proxy:
        S3Server(proxy.endpoint).use(monkeypatch)
        assert run_command(["train", "--dataset", "digits", "--storage", "s3://down/x"]) == 4
    assert proxy.done["down"] == 1
    error = without_doing(capsys.readouterr().err)
    assert error.count("\n") == 1
    assert error.startswith("mnist-ray: error: storage='s3://down/x/")
    assert error.endswith(f"can't be written: {UNREACHABLE}\n")
