"""Six processes evaluate the same run at once, by the command line: one commit, and five that find it."""

import os
import sys
from pathlib import Path

import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.results.listing import evaluation_rows
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing
from tests.support.warm_processes import call

pytestmark = [pytest.mark.slow, pytest.mark.fault]

NUM_RACERS = 6


def race(folder: Path, arguments: list[str]) -> list[int]:
    """Runs a command in several processes that start when all are there; returns their exit codes.

    Args:
      folder: for NUMBER.out and NUMBER.err, what the processes print.
      arguments: the command.
    """
    ready, go = os.pipe(), os.pipe()
    racers = []
    for number in range(NUM_RACERS):
        racer = os.fork()
        if racer == 0:
            for descriptor, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / f"{number}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
            os.close(go[1])
            os.write(ready[1], b".")
            os.read(go[0], 1)
            code = run_command(arguments)
            sys.stdout.flush()
            os._exit(code)
        racers.append(racer)
    for _ in racers:
        os.read(ready[0], 1)
    os.close(go[1])
    return [os.waitstatus_to_exitcode(os.waitpid(racer, 0)[1]) for racer in racers]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "results") if request.param == "local" else request.getfixturevalue("s3_uri")


def test_of_six_processes_that_evaluate_the_same_one_commits_and_all_end_well(uri: str, tmp_path: Path) -> None:
    storage = open_storage(uri)
    assert run_command(["train", "--dataset", "digits", "--epochs", "1", "--name", "a", "--storage", uri]) == 0
    said = tmp_path / "said"
    said.mkdir()
    evaluate = ["evaluate", "--run", "a", "--dataset", "digits", "--shard-size", "100", "--no-report"]
    codes = call(race, said, [*evaluate, "--storage", uri])
    errors = [(said / f"{number}.err").read_text() for number in range(NUM_RACERS)]
    assert codes == [0] * NUM_RACERS, "".join(errors)
    assert [without_doing(each) for each in errors] == [
        "dataset digits: 10 classes (0, 1, 2, 3, 4 and 5 more); 355 test images\n"
    ] * NUM_RACERS

    [row] = evaluation_rows(storage)
    folder = f"evaluations/{row['evaluation']}"
    # The URI has its own line where it is long.
    printed = [" ".join((said / f"{number}.out").read_text().split()) for number in range(NUM_RACERS)]
    beginning = f"evaluation {row['evaluation']}"
    ends = sorted(text[text.index(beginning) :] for text in printed)
    assert ends == [f"{beginning} committed: {storage.uri_of(folder)}"] + (NUM_RACERS - 1) * [
        f"{beginning} was there already, nothing to do: {storage.uri_of(folder)}"
    ]
    manifest = storage.read_manifest(folder)
    assert manifest is not None
    names = [file["name"] for file in manifest["files"]]
    assert sum(name.startswith("predictions/") for name in names) == 4
    for name in names:
        storage.read_committed(folder, name)
    kept = {f"{folder}/{name}" for name in [*(file["stored_name"] for file in manifest["files"]), "_SUCCESS"]}
    assert {entry.path for entry in storage.list_files("evaluations")} == kept | {f"{folder}/_manifest.json"}
    assert storage.list_files(".staging") == []
