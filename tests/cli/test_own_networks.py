"""A user's own network through the commands: trained, needed again, changed, refused; nothing left behind."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mnist_ray.cli.main import run_command
from mnist_ray.config.own_code import CODE_VARIABLE, Code
from mnist_ray.data.unlabelled import find_images
from mnist_ray.errors import ConfigError
from mnist_ray.evaluation.predict import make_plan
from mnist_ray.results.run_documents import with_checksum
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing
from tests.support.own_networks import write_nets
from tests.support.ray_jobs import run_apart

Run = Callable[..., tuple[int, str, str]]
TRAIN = ["train", "--dataset", "digits", "--epochs", "1", "--train-limit", "200"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    write_nets(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = run_command(arguments)
        captured = capsys.readouterr()
        assert CODE_VARIABLE not in os.environ
        errors = [
            line for line in without_doing(captured.err).splitlines() if not line.startswith(("dataset ", "images: "))
        ]
        return code, captured.out, "\n".join(errors)

    return command


def test_a_run_is_trained_evaluated_predicted_exported_and_reproduced(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(*TRAIN, "--model", "my_nets.py:make_net", "--set", "model_settings.width=4", "--name", "a")
    assert code == 0
    assert "next: mnist-ray evaluate --run a --storage results --code my_nets.py\n" in out
    document = json.loads(Path("results/runs/a/best/checkpoint.json").read_text())
    assert document["config"]["model"] == "my_nets.py:make_net"
    assert document["config"]["model_settings"] == {"width": 4}
    assert document["config"]["code_sha256"] == Code(tmp_path / "my_nets.py").sha256
    Image.new("L", (28, 28), 80).save("image.png")
    for command in (
        ["evaluate", "--run", "a"],
        ["predict", "--run", "a", "--images", "image.png"],
        ["export", "a", "--to", "torch-export"],
        ["export", "a", "--to", "state-dict"],
        ["reproduce", "a"],
    ):
        needed = (
            "run 'a': the code of its own network my_nets.py:make_net is needed; give it with --code FILE or FOLDER"
        )
        assert run(*command) == (2, "", f"mnist-ray: error: {needed}")
        assert run(*command, "--code", "my_nets.py")[0] == 0, command
    (metrics,) = Path("results/evaluations").glob("*/metrics/part-0.parquet")
    (row,) = pq.read_table(metrics).to_pylist()
    assert (row["model"], row["model_settings"]) == ("my_nets.py:make_net", '{"width":4}')
    assert row["code_sha256"] == document["config"]["code_sha256"]


def test_a_prediction_asks_for_the_code_before_it_looks_at_an_image(run: Run, tmp_path: Path) -> None:
    assert run(*TRAIN, "--model", "my_nets.py:make_net", "--name", "a")[0] == 0
    storage, images = open_storage("results"), find_images(str(tmp_path))
    with pytest.raises(ConfigError, match=r"^run 'a': the code of its own network my_nets\.py:make_net is needed"):
        make_plan(storage, "a", images, polarity="auto", shard_size=1)


def test_an_export_with_its_card_works_in_plain_torch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*TRAIN, "--model", "my_nets.py:make_net", "--set", "model_settings.width=4", "--name", "a")[0] == 0
    for kind in ("safetensors", "torch-export"):
        assert run("export", "a", "--to", kind, "--code", "my_nets.py")[0] == 0
    card = Path("a.safetensors.md").read_text()
    assert "made by the code of `my_nets.py:make_net`, SHA-256 `" in card
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    images = torch.arange(2 * 784, dtype=torch.float32).reshape(2, 1, 28, 28) % 256
    scope = {"images": images}
    monkeypatch.syspath_prepend(".")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    exec(program, scope)
    monkeypatch.delitem(sys.modules, "my_nets")
    exported = torch.export.load("a.pt2").module()(images)
    torch.testing.assert_close(scope["logits"], exported)


def test_an_export_that_torch_refuses_is_one_line(run: Run) -> None:
    branching = "if images.sum() > 0:\n            images = images * 1\n        values"
    text = Path("my_nets.py").read_text().replace("values", branching, 1)
    Path("my_nets.py").write_text(text)
    assert run(*TRAIN, "--model", "my_nets.py:make_net", "--name", "a")[0] == 0
    code, _, said = run("export", "a", "--to", "torch-export", "--code", "my_nets.py")
    assert code == 2
    failed = "mnist-ray: error: --to torch-export: run 'a': its network my_nets.py:make_net can't be exported: "
    assert said.startswith(f"{failed}my_nets.py:15: ")
    assert "\n" not in said
    assert not Path("a.pt2").exists()
    assert not Path("a.pt2.md").exists()


def test_edited_code_under_an_old_name_is_a_conflict_that_says_so(run: Run, tmp_path: Path) -> None:
    named = [*TRAIN, "--model", "my_nets.py:make_net", "--name", "a"]
    assert run(*named)[0] == 0
    then = Code(tmp_path / "my_nets.py").sha256[:12]
    write_nets(tmp_path, "# edited\n")
    now = Code(tmp_path / "my_nets.py").sha256[:12]
    changed = f"the code of its network my_nets.py:make_net has changed: SHA-256 {then} there, {now} here"
    said = f"mnist-ray: error: run 'a': exists with another config ({changed}); choose another --name"
    for command in (named, ["plan", *named]):
        assert run(*command) == (6, "", said)
    code, _, said = run("evaluate", "--run", "a", "--code", "my_nets.py")
    assert code == 3
    assert f"has changed, or was another file or folder (SHA-256 {then} then, {now} of my_nets.py now)" in said
    assert not Path("results/evaluations").exists()


def test_the_place_of_the_code_does_not_matter(run: Run, tmp_path: Path) -> None:
    assert run(*TRAIN, "--model", "my_nets.py:make_net", "--name", "a")[0] == 0
    write_nets(tmp_path / "moved")
    Path("my_nets.py").unlink()
    code, out, _ = run(*TRAIN, "--model", "moved/my_nets.py:make_net", "--name", "a")
    assert (code, out.startswith("a was finished already")) == (0, True)
    assert run("evaluate", "--run", "a", "--code", "moved")[0] == 0


def test_versions_of_a_file_are_evaluated_together(run: Run, tmp_path: Path) -> None:
    for name, width in (("one", 4), ("two", 6)):
        write_nets(tmp_path / name, f"def make(a, b):\n    return Net(a, b, {width})\n")
        assert run(*TRAIN, "--model", f"{name}/my_nets.py:make", "--name", name)[0] == 0
    assert [len(load_file(f"results/runs/{name}/best/model.safetensors")["norm.bias"]) for name in ("one", "two")] == [
        4, 6,
    ]  # fmt: skip
    both = ["evaluate", "--run", "one", "--run", "two"]
    assert run(*both, "--code", "one/my_nets.py")[0] == 3
    code, out, _ = run(*both, "--code", "one/my_nets.py", "--code", "two/my_nets.py", "--json")
    assert code == 0
    assert len(json.loads(out)["metrics"]) == 2


BAD = [
    (["--model", "nosuch.py:make"], "no such file"),
    (["--model", "nosuch.nets:make"], "no module nosuch.nets"),
    (["--model", "my_nets.py:make_nte"], "defines no function make_nte; did you mean make_net?"),
    (["--model", "bad.py:raises"], "bad.py:30: ZeroDivisionError: division by zero"),
    (["--model", "bad.py:number"], "returned int; it must return a torch.nn.Module"),
    (["--model", "bad.py:narrow"], "it must return logits (4, 10), one per image and class"),
    (["--model", "my_nets.py:make_net", "--set", "model_settings.wdth=3"], "did you mean width?"),
    (["--model", "my_nets.py:make_net", "--dropout", "0.3"], "dropout=0.3: only the built-in networks use it"),
    (["--model", "my_nets.py:make_net", "--variant", "dropout"], "hidden_sizes=(256, 128, 64): only the built-in"),
    (["--set", "model_settings.width=3"], "model='mlp' takes none"),
    (["--model", "my_nets.py:make_net", "--code", "nosuch"], "--code 'nosuch': no such file or folder"),
    (
        ["--model", "my_nets.py:make_net", "--set", "code_sha256=" + "f" * 64],
        "has changed, or was another file or folder (SHA-256 ffffffffffff then",
    ),
]


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize(("options", "expected"), BAD, ids=[" ".join(options) for options, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, command: str, options: list[str], expected: str
) -> None:
    bad = (
        "def raises(a, b): return 1 / 0\n\n\ndef number(a, b): return 3\n\n\n"
        "def narrow(a, b): return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))\n"
    )
    write_nets(tmp_path, bad, "bad.py")
    Path("grid.yaml").write_text("dataset: digits\nepochs: 1\nlearning_rate: [0.1, 0.2]\n")
    how = TRAIN if command == "train" else ["tune", "--grid", "grid.yaml"]
    code, out, said = run(*how, "--name", "x", *options)
    assert (code, out) == (3 if "code_sha256" in options[-1] else 2, "")
    assert expected in said
    assert "\n" not in said
    assert not list(Path("results").glob("*/*"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "results") == [
        "bad.py", "grid.yaml", "my_nets.py",
    ]  # fmt: skip


def test_debug_prints_the_users_traceback_below_the_line(run: Run, tmp_path: Path) -> None:
    write_nets(tmp_path, "def raises(a, b):\n    return 1 / 0\n", "bad.py")
    line = "mnist-ray: error: model='bad.py:raises': bad.py:31: ZeroDivisionError: division by zero"
    assert run(*TRAIN, "--model", "bad.py:raises") == (2, "", line)
    code, _, said = run(*TRAIN, "--model", "bad.py:raises", "--debug")
    assert code == 2
    assert said.startswith(f"{line}\nTraceback (most recent call last):\n")
    assert "    return 1 / 0\n" in said
    assert said.splitlines()[-1] == "ZeroDivisionError: division by zero"
    code, _, said = run(*TRAIN, "--set", "dropout=2", "--debug")
    assert "\nTraceback (most recent call last):\n" in said


def test_an_error_in_training_is_a_failed_run_that_the_same_command_goes_on_with(run: Run) -> None:
    counted = "self.steps = getattr(self, 'steps', 0) + 1\n        assert self.steps < 30, 'enough'\n        values"
    Path("my_nets.py").write_text(Path("my_nets.py").read_text().replace("values", counted, 1))
    named = ["--model", "my_nets.py:make_net", "--name", "a", "--set", "epochs=9"]
    code, _, said = run(*TRAIN[:3], "--train-limit", "200", *named)
    assert code == 7
    assert said.splitlines()[-1] == (
        "mnist-ray: error: model='my_nets.py:make_net': my_nets.py:16: AssertionError: enough"
    )
    assert not Path("results/runs/a/status.json").exists()
    assert run(*TRAIN[:3], "--train-limit", "200", *named)[0] == 0


def test_a_storage_that_names_a_function_of_this_machine_makes_nothing_run(run: Run, tmp_path: Path) -> None:
    assert run(*TRAIN, "--model", "my_nets.py:make_net", "--name", "a")[0] == 0
    marker = tmp_path / "was-run"
    write_nets(tmp_path, f"open({str(marker)!r}, 'w').close()\n", "evil.py")
    sha256 = Code(tmp_path / "evil.py").sha256
    for model in ("os:system", "evil.py:make_net", "evil:make_net", "my_nets.py:run"):
        for path in ("config.json", "best/checkpoint.json"):
            file = Path("results/runs/a", path)
            document = json.loads(file.read_text())
            document.pop("document_sha256")
            document["config"] |= {"model": model, "code_sha256": sha256}
            file.write_bytes(with_checksum(document))
        for code in ([], ["--code", "my_nets.py"]):
            exit_code, _, said = run("evaluate", "--run", "a", *code)
            assert exit_code in (2, 3), said
    assert not marker.exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.series
@pytest.mark.usefixtures("blank_charts")
def test_a_grid_over_an_own_setting_is_trained_evaluated_reported_and_compared(run: Run, tmp_path: Path) -> None:
    Path("grid.yaml").write_text(
        "model: my_nets.py:mlp\ndataset: digits\nepochs: 1\nmodel_settings:\n  width: [4, 32]\nseeds: 2\n"
    )
    done = run_apart("tune", "--grid", "grid.yaml", "--name", "g", "--json")
    assert done.code == 0, done.log
    assert [row["model_settings.width"] for row in json.loads(done.output)["leaderboard"]] == [32, 4]
    assert run("evaluate", "--grid", "g")[0] == 2
    code, out, _ = run("evaluate", "--grid", "g", "--code", "my_nets.py", "--json")
    assert code == 0
    evaluation = json.loads(out)["evaluation"]
    code, out, _ = run("report", evaluation, "--json")
    effects = json.loads(out)["effects"]
    assert {(effect["axis"], effect["level"], effect["reference_level"]) for effect in effects} == {
        ("model_settings.width", "32", "4")
    }
    code, out, _ = run("compare", evaluation, "--json")
    pairs = json.loads(out)["comparisons"]
    assert {(pair["first"], pair["second"]) for pair in pairs} == {("width 32", "width 4")}
    assert run("compare", evaluation, "--baseline", "width 4")[0] == 0
    page = Path("results/reports", evaluation, "report.html").read_text()
    assert "width 32" in page
    # On the command line, and another level: the grid grows.
    more = ["--set", "model_settings.width=[4,32,8]"]
    done = run_apart("tune", "--grid", "grid.yaml", "--name", "g", *more, "--json")
    assert (done.code, json.loads(done.output)["trained"]) == (0, 2)
    write_nets(tmp_path, "# edited\n")
    code, _, said = run("tune", "--grid", "grid.yaml", "--name", "g", *more)
    assert code == 6
    assert "grid 'g': the code of its network my_nets.py:mlp has changed: SHA-256 " in said
