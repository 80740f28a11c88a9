import json
import runpy
import struct
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from mnist_ray.config.yaml_files import read_yaml
from mnist_ray.data.datasets import load_examples
from mnist_ray.data.idx import IMAGES_MAGIC, LABELS_MAGIC, USUAL_NAMES
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.grids.grid import expand, read_grid
from mnist_ray.models.networks import make_network
from tests.support.ray_jobs import run_here

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
VARIANTS = ["baseline", "dropout", "dropout_batchnorm"]
SHORTEST = ("--rounds", "2", "--chunk-seconds", "0.001")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder with the names of MNIST's four files and 200 handwritten digits of another set in each split."""
    for split, (images_name, labels_name) in USUAL_NAMES.items():
        examples = load_examples("digits", split, data_dir=tmp_path)
        images, labels = examples.images[:200].numpy().tobytes(), examples.labels[:200].byte().numpy().tobytes()
        (tmp_path / images_name).write_bytes(struct.pack(">IIII", IMAGES_MAGIC, 200, 28, 28) + images)
        (tmp_path / labels_name).write_bytes(struct.pack(">II", LABELS_MAGIC, 200) + labels)
    return tmp_path


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, data_dir: Path):
    """Runs a benchmark as `python benchmarks/NAME OPTIONS` does, in this process."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(name: str, *options: str, shortest: Sequence[str] = SHORTEST, with_data: bool = True) -> None:
        data = ["--data-dir", str(data_dir)] if with_data else []
        monkeypatch.setattr(sys, "argv", [name, *shortest, *data, *options])
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import timing

    return timing


@pytest.mark.parametrize(
    ("script", "references", "unit"),
    [
        pytest.param(
            "train_throughput.py", ["tutorial", "in_memory", "products"], "samples_per_s", marks=pytest.mark.series
        ),
        ("evaluate_throughput.py", ["data_loader", "in_memory"], "items_per_s"),
    ],
)
def test_a_benchmark_measures_each_variant_in_every_way(run_script, capsys, script, references, unit) -> None:
    run_script(script, "--json")
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert document["hardware"]["threads"] == 1
    assert document["hardware"]["torch"] == torch.__version__
    assert [row["variant"] for row in document["results"]] == VARIANTS
    for row in document["results"]:
        cells = [row[f"{name}_{unit}"] for name in (*references, "mnist_ray")]
        cells += [row[f"ratio_to_{name}"] for name in references]
        assert all(0 < cell["low"] <= cell["median"] <= cell["high"] for cell in cells)
    assert output.err.count("round 2 of 2") == 3


def test_the_table_has_a_hardware_line_a_header_and_one_line_a_variant(run_script, capsys) -> None:
    run_script("evaluate_throughput.py", "--models", "2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cpu ")
    assert lines[1].split()[:2] == ["variant", "models"]
    assert [line.split()[:2] for line in lines[2:]] == [[variant, "2"] for variant in VARIANTS]


def test_contenders_take_turns_and_each_round_starts_with_the_next_one(timing: ModuleType, capsys) -> None:
    calls = []

    def contender(name: str):
        return lambda: calls.append(name) or 1

    timing.interleave(
        {"a": contender("a"), "b": contender("b")}, rounds=3, chunk_seconds=0.0, clock="wall", label="order"
    )
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert capsys.readouterr().err.count("\n") == 3


def test_a_ratio_is_taken_round_by_round(timing: ModuleType) -> None:
    rates = {"ours": [2.0, 9.0, 4.0], "theirs": [1.0, 3.0, 1.0]}
    assert timing.ratios(rates, "ours", "theirs") == timing.Spread(median=3.0, low=2.0, high=4.0)


def test_the_ways_to_train_a_grid_are_compared_round_by_round(
    monkeypatch: pytest.MonkeyPatch, data_dir: Path, capsys
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import grid

    taken = {"conventional": [60.0, 90.0], "in-memory": [30.0, 24.0], "ours": [6.0, 8.0]}
    calls = []

    def train_grid(way: str, arguments: Namespace, mnist_folder: str) -> grid.Outcome:
        assert Path(mnist_folder, "MNIST", "raw").is_dir()
        calls.append(way)
        return grid.Outcome(taken[way][calls.count(way) - 1], [0.5, 0.7])

    monkeypatch.setattr(grid, "train_grid", train_grid)
    monkeypatch.setattr(sys, "argv", ["grid.py", "--rounds", "2", "--data-dir", str(data_dir)])
    grid.main()
    output = capsys.readouterr()
    assert calls == ["conventional", "in-memory", "ours", "in-memory", "ours", "conventional"]
    hardware, *table = output.out.splitlines()
    assert hardware.startswith("cpu ")
    assert [line.split() for line in table] == [
        ["way", "runs", "val_accuracy", "seconds", "ratio_of_seconds_to_ours"],
        ["conventional", "2", "0.6", "75.0", "10.62", "(10.00-11.25)"],
        ["in-memory", "2", "0.6", "27.0", "4.00", "(3.00-5.00)"],
        ["ours", "2", "0.6", "7.0", "1.00", "(1.00-1.00)"],
    ]
    assert "round 2 of 2: conventional: 90.0 s, mean validation accuracy 0.6000" in output.err


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.series
def test_a_grid_is_trained_in_every_way_and_timed(run_script, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    # Train starts sooner so.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    run_script("grid.py", "--axes", "--seeds", "1", "--json", shortest=())
    output = capsys.readouterr()
    rows = json.loads(output.out)["results"]
    assert [(row["way"], row["runs"]) for row in rows] == [("conventional", 1), ("in-memory", 1), ("ours", 1)]
    for row in rows:
        # Shares of 20 validation images.
        assert row["val_accuracy"] * 20 == pytest.approx(round(row["val_accuracy"] * 20), abs=1e-4)
        assert 0 < row["val_accuracy"] <= 1
        ratio = row["seconds"]["median"] / rows[-1]["seconds"]["median"]
        assert row["ratio_of_seconds_to_ours"]["median"] == pytest.approx(ratio)
    assert output.err.count("round 1 of 1: ") == 3


@pytest.mark.usefixtures("blank_charts")
def test_an_evaluation_and_its_report_are_weighed_and_left_behind(
    monkeypatch: pytest.MonkeyPatch, data_dir: Path, capsys, tmp_path: Path, timing: ModuleType
) -> None:
    import commands
    import report

    def run_measured(name: str, *arguments: str) -> commands.Command:
        done = run_here(name, *arguments, "--json")
        assert done.code == 0, done.log
        seconds, peak = {"evaluate": (7.0, 300 << 20), "report": (3.0, 200 << 20)}[name]
        return commands.Command(seconds, seconds, peak, (), json.loads(done.output))

    folder = tmp_path / "left"
    folder.mkdir()
    monkeypatch.setattr(report, "run_measured", run_measured)
    options = ["--seeds", "1", "--epochs", "1", "--train-limit", "100", "--folder", str(folder), "--json"]
    monkeypatch.setattr(sys, "argv", ["report.py", *options, "--data-dir", str(data_dir)])
    report.main()
    rows = {row["what"]: row["figure"] for row in json.loads(capsys.readouterr().out)["results"]}
    assert (rows["runs"], rows["images"]) == (32, 200)
    (evaluation,) = (folder / "storage" / "evaluations").iterdir()
    (part,) = evaluation.glob("predictions/*.parquet")
    assert rows["a prediction, all columns"] == part.stat().st_size / (32 * 200)
    page = folder / "storage" / "reports" / evaluation.name / "report.html"
    assert rows["report.html"] == page.stat().st_size / 2**20
    plain, rounded = rows["its probabilities, plain"], rows["its probabilities, float16"]
    assert 1 < rounded < plain < rows["a prediction, all columns"]
    assert (rows["evaluate"], rows["evaluate, peak"], rows["report"], rows["report, peak"]) == (7, 300, 3, 200)


@pytest.mark.slow
@pytest.mark.series
def test_the_commands_of_an_evaluation_and_its_report_are_timed(run_script, capsys) -> None:
    run_script("report.py", "--seeds", "1", "--epochs", "1", "--train-limit", "100", "--json", shortest=())
    rows = {row["what"]: row["figure"] for row in json.loads(capsys.readouterr().out)["results"]}
    # Libraries alone take more than 50 MiB.
    assert min(rows["evaluate, peak"], rows["report, peak"]) > 50
    assert min(rows["evaluate"], rows["report"]) > 0


class FakeLoop:
    """A process of the bare loop that answers at once: 10 s of CPU for a share of the files."""

    def __init__(self, script: str, *arguments: str) -> None:
        assert Path(script).name == "evaluate_scale.py"
        assert arguments[0] == "--child"

    def ask(self, question: Sequence[str]) -> None:
        assert all(Path(path).is_file() for path in question)

    def answer(self) -> list[float]:
        return [1, 10.0]

    def end(self) -> None:
        """There is nothing to end."""


def test_commands_of_few_and_many_images_are_compared_with_the_bare_loop(
    monkeypatch: pytest.MonkeyPatch, capsys, timing: ModuleType
) -> None:
    import commands
    import evaluate_scale

    def run_measured(name: str, *arguments: str) -> commands.Command | None:
        if name == "train":
            return None
        named = [argument for argument in arguments if argument != "--no-report"]
        options = dict(zip(named[::2], named[1::2], strict=True))
        few = "200" in Path((options.get("--dataset") or options["--images"]).partition(":")[2]).parts
        folder = {"evaluate": "evaluations", "predict": "predictions"}[name]
        Path(options["--storage"], folder).mkdir(parents=True)
        seconds = {"evaluate": 20.0, "predict": 40.0}[name]
        workers = (90 << 20, 70 << 20) if options["--num-workers"] == "2" else ()
        if few:
            return commands.Command(8.0, 5.0, 100 << 20, workers, {})
        return commands.Command(seconds, seconds + 5, 160 << 20, workers, {})

    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(evaluate_scale, "run_measured", run_measured)
    monkeypatch.setattr(evaluate_scale, "Child", FakeLoop)
    monkeypatch.setattr(evaluate_scale, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr(sys, "argv", ["evaluate_scale.py", "--images", "200", "2000", "--rounds", "1"])
    evaluate_scale.main()
    hardware, *table = capsys.readouterr().out.splitlines()
    assert hardware.startswith("cpu ")
    # The bare loop: 2,000 images in 5 s, with 10 s of CPU in each of its processes.
    assert [line.replace(" more", "+").replace("bare loop", "bare-loop").split() for line in table] == [
        ["command", "workers", "images", "seconds", "images_per_s", "ratio_to_bare_loop", "ratio_of_cpu", "peak_mib",
         "worker_peak_mib"],
        *([name, workers, images, seconds, rate, f"{ratio}", f"({ratio}-{ratio})", f"{cpu}", f"({cpu}-{cpu})", *peaks]
          for name, workers, images, seconds, rate, ratio, cpu, *peaks in [
            ("bare-loop", "1", "2,000", "5.0", "400", "1.00", "1.00", "0", "0"),
            ("evaluate", "1", "200", "8.0", "25", "0.06", "0.20", "100", "0"),
            ("evaluate", "1", "2,000", "20.0", "100", "0.25", "0.40", "160", "0"),
            ("evaluate", "1", "1,800+", "12.0", "150", "0.38", "0.45", "60", "0"),
            ("predict", "1", "200", "8.0", "25", "0.06", "0.20", "100", "0"),
            ("predict", "1", "2,000", "40.0", "50", "0.12", "0.22", "160", "0"),
            ("predict", "1", "1,800+", "32.0", "56", "0.14", "0.23", "60", "0"),
            ("bare-loop", "2", "2,000", "5.0", "400", "1.00", "1.00", "0", "0"),
            ("evaluate", "2", "200", "8.0", "25", "0.06", "0.40", "100", "90"),
            ("evaluate", "2", "2,000", "20.0", "100", "0.25", "0.80", "160", "90"),
            ("evaluate", "2", "1,800+", "12.0", "150", "0.38", "0.90", "60", "0"),
            ("predict", "2", "200", "8.0", "25", "0.06", "0.40", "100", "90"),
            ("predict", "2", "2,000", "40.0", "50", "0.12", "0.44", "160", "90"),
            ("predict", "2", "1,800+", "32.0", "56", "0.14", "0.45", "60", "0"),
        ]),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.series
def test_commands_of_few_and_many_images_are_timed_beside_the_bare_loop(run_script, capsys) -> None:
    run_script(
        "evaluate_scale.py", "--images", "200", "2500", "--workers", "1", "--rounds", "1", "--json",
        shortest=(), with_data=False,
    )  # fmt: skip
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(row["command"], row["workers"], row["images"]) for row in rows] == [
        ("bare loop", "1", "2,500"),
        *((name, "1", images) for name in ("evaluate", "predict") for images in ("200", "2,500", "2,300 more")),
    ]
    bare = rows[0]["images_per_s"]
    assert 0 < bare["low"] <= bare["high"]
    for row, count in zip(rows[1:], (200, 2500, 2300, 200, 2500, 2300), strict=True):
        rate = row["images_per_s"]["median"]
        assert rate * row["seconds"]["median"] == pytest.approx(count)
        assert bare["low"] * 0.999 <= rate / row["ratio_to_bare_loop"]["median"] <= bare["high"] * 1.001
    assert rows[0]["ratio_to_bare_loop"]["median"] == rows[0]["ratio_of_cpu"]["median"] == 1
    for few, many, more in (rows[1:4], rows[4:]):
        # Libraries alone take more than 50 MiB.
        assert few["peak_mib"]["median"] > 50
        assert more["peak_mib"]["median"] == pytest.approx(many["peak_mib"]["median"] - few["peak_mib"]["median"])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.series
def test_the_workers_of_a_command_are_weighed_too(run_script, capsys) -> None:
    run_script(
        "evaluate_scale.py", "--images", "20000", "30000", "--workers", "2", "--commands", "evaluate", "--rounds", "1",
        "--json", shortest=(), with_data=False,
    )  # fmt: skip
    bare, few, many, _ = json.loads(capsys.readouterr().out)["results"]
    assert bare["worker_peak_mib"]["median"] == 0
    assert min(few["worker_peak_mib"]["median"], many["worker_peak_mib"]["median"]) > 50


def test_the_images_that_are_made_for_the_scale_are_those_of_ten_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import evaluate_scale

    labels = np.arange(2000) % 10
    images = evaluate_scale.synthetic_images(np.random.default_rng(1), labels)
    assert (images.shape, images.dtype) == ((2000, 784), np.uint8)
    means = np.stack([images[labels == label].mean(axis=0) for label in range(10)])
    distances = ((images[:, None] - means) ** 2).sum(axis=2)
    # Chance would be 0.1.
    assert (distances.argmin(axis=1) == labels).mean() > 0.5
    # As sparse as MNIST, where a fifth of the pixels is ink.
    assert 0.05 < (images > 0).mean() < 0.3


def test_ranks_are_compared_with_one_process_by_what_all_of_them_train(
    monkeypatch: pytest.MonkeyPatch, data_dir: Path, capsys, timing: ModuleType
) -> None:
    import ddp

    seconds = {"single": 2.0, "strong": 5.0, "weak": 2.5, "independent": 2.0}
    now, asked = [0.0], []

    class FakeRank:
        """A process whose epochs take as long as is written above; those of two ranks run at once."""

        def __init__(self, *arguments: str) -> None:
            self.rank = int(arguments[arguments.index("--child") + 1])

        def ask(self, contender: list[str]) -> None:
            variant, name = contender
            asked.append((name, self.rank))
            now[0] += seconds[name] / (2 if (variant, name) == ("resnet", "strong") else 1) if self.rank == 0 else 0

        def answer(self) -> None:
            """It is done."""

        def end(self) -> None:
            """There is nothing to end."""

    monkeypatch.setattr(ddp, "Child", FakeRank)
    monkeypatch.setitem(timing.CLOCKS, "wall", lambda: now[0])
    options = ["--rounds", "2", "--chunk-seconds", "1", "--data-dir", str(data_dir)]
    monkeypatch.setattr(sys, "argv", ["ddp.py", *options])
    ddp.main()
    _, *table, first, second = capsys.readouterr().out.splitlines()
    assert {name for name, rank in asked if rank == 1} == {"strong", "weak", "independent"}
    # 190 of the 200 images are trained on, one of each class is for validation.
    assert [line.split() for line in table] == [
        ["network", "contender", "processes", "batch_size", "samples_per_s", "ratio_to_single"],
        ["dropout_batchnorm", "single", "1", "64", "95", "1.00", "(1.00-1.00)"],
        ["dropout_batchnorm", "strong", "2", "64", "38", "0.40", "(0.40-0.40)"],
        ["dropout_batchnorm", "weak", "2", "128", "76", "0.80", "(0.80-0.80)"],
        ["dropout_batchnorm", "independent", "2", "64", "190", "2.00", "(2.00-2.00)"],
        ["resnet", "single", "1", "128", "95", "1.00", "(1.00-1.00)"],
        ["resnet", "strong", "2", "128", "76", "0.80", "(0.80-0.80)"],
        ["resnet", "weak", "2", "256", "76", "0.80", "(0.80-0.80)"],
        ["resnet", "independent", "2", "128", "190", "2.00", "(2.00-2.00)"],
    ]
    assert first.startswith("dropout_batchnorm: 2 ranks do not pay here: 0.40 times as many samples/s with the same ")
    assert second.startswith("resnet: 2 ranks do not pay here: 0.80 times")


@pytest.mark.slow
@pytest.mark.series
def test_ranks_are_timed_beside_one_process_and_a_sentence_says_what_they_bring(run_script, capsys) -> None:
    run_script("ddp.py", "--json")
    document = json.loads(capsys.readouterr().out)
    rows = document["results"]
    assert [(row["contender"], row["processes"], row["batch_size"]) for row in rows[:4]] == [
        ("single", "1", "64"),
        ("strong", "2", "64"),
        ("weak", "2", "128"),
        ("independent", "2", "64"),
    ]
    assert [row["network"] for row in rows] == ["dropout_batchnorm"] * 4 + ["resnet"] * 4
    for row in rows:
        assert 0 < row["ratio_to_single"]["low"] <= row["ratio_to_single"]["high"]
    assert f"{rows[1]['ratio_to_single']['median']:.2f} times as many samples/s with the same" in document["note"]


def test_a_sentence_says_where_several_ranks_pay(monkeypatch: pytest.MonkeyPatch, timing: ModuleType) -> None:
    import ddp

    monkeypatch.setattr(ddp, "NETWORKS", {"resnet": ddp.NETWORKS["resnet"]})

    def said(strong: float, weak: float) -> str:
        found = {"strong": strong, "weak": weak}
        rows = [
            {"contender": x, "network": "resnet", "ratio_to_single": timing.Spread(y, y, y)} for x, y in found.items()
        ]
        return ddp.verdict(rows, 2)

    assert said(0.44, 0.7).startswith("resnet: 2 ranks do not pay here: 0.44 times")
    assert said(0.9, 1.5).startswith("resnet: 2 ranks pay with larger batches only here: 0.90 times")
    assert said(1.7, 1.95).startswith("resnet: 2 ranks pay here: 1.70 times")


def test_digits_stand_in_for_mnist_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import report

    dataset = report.find_dataset(tmp_path, tmp_path)
    assert "downloading is off" in capsys.readouterr().err
    test = load_examples(dataset, "test", data_dir=tmp_path)
    digits = load_examples("digits", "test", data_dir=tmp_path)
    assert len(test) == 10_000
    assert torch.equal(test.images[: len(digits)], digits.images)
    assert torch.equal(test.labels[len(digits) : 2 * len(digits)], digits.labels)


def test_a_way_that_trains_no_runs_ends_the_benchmark_with_what_it_said(run_script) -> None:
    with pytest.raises(SystemExit, match=r"(?s)1 examples give .*ours: exit code 3, 0 of 24 runs"):
        run_script("grid.py", "--only", "ours", "--train-limit", "1", shortest=())


def test_the_grid_that_is_timed_has_24_runs_whose_networks_are_the_same_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import grid

    arguments = Namespace(axes=list(grid.GRID), seeds=2, workers=2, train_limit=None, data_dir=tmp_path)
    command = grid.our_command(arguments, tmp_path)
    settings = read_yaml(Path(command[command.index("--grid") + 1]))
    seeds = command[command.index("--seeds") + 1]
    runs = expand(read_grid(settings, seeds=seeds, overrides={}, source="test"), name="test", max_runs=24)
    assert len(runs) == 24
    for run in runs:
        cell = {name: getattr(run.config, name) for name in grid.GRID}
        plain, ours = grid.plain_network(cell), make_network(run.config, MNIST_SHAPE, 10)
        assert [repr(layer) for layer in plain] == [repr(layer) for layer in ours]


def test_a_comparison_of_many_settings_is_measured(run_script, capsys) -> None:
    run_script("compare.py", "--case", "20", "3", "200", shortest=(), with_data=False)
    figures = json.loads(capsys.readouterr().out)
    assert figures["pairs"] == 190
    assert figures["after"] >= figures["before"] > 50
    assert figures["seconds"] > 0


@pytest.mark.series
def test_a_large_comparison_takes_at_most_10_seconds_of_a_processor_and_600_megabytes() -> None:
    command = [sys.executable, str(BENCHMARKS / "compare.py"), "--case", "160", "5", "10000"]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert figures["pairs"] == 160 * 159 / 2
    # Seconds of the processor, not of the clock; an AMD EPYC takes 2 to 4.
    assert figures["seconds"] <= 10
    assert figures["after"] * 2**20 <= 600e6


@pytest.mark.slow
@pytest.mark.series
def test_a_publication_is_measured(run_script, capsys) -> None:
    run_script("publish.py", "--evaluations", "2", "--json", shortest=(), with_data=False)
    results = json.loads(capsys.readouterr().out)
    rows = {name: figures["rows"] for name, figures in results.items() if "rows" in figures}
    assert rows == {"iceberg: scan": 2 * 355, "iceberg: duckdb": 2 * 355, "delta: deltalake": 2 * 355}
    assert all(figures["seconds"] > 0 for figures in results.values())
