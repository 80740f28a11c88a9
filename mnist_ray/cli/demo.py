"""The whole pipeline on scikit-learn's handwritten digits, offline, in minutes."""

import json
import shlex
import shutil
import sys
from statistics import mean
from typing import TYPE_CHECKING, Any

from mnist_ray.cluster.train_job import TrainJob
from mnist_ray.config.settings import EvaluationConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.datasets import default_data_dir
from mnist_ray.report.classification import report_of_run
from mnist_ray.results.evaluation_folder import open_evaluation
from mnist_ray.storage.storage import open_storage
from mnist_ray.text.tables import print_table

if TYPE_CHECKING:
    from mnist_ray.jobs.evaluate import EvaluateOutcome
    from mnist_ray.jobs.train import TrainOutcome

VARIANTS = ("baseline", "dropout", "dropout_batchnorm")
DATASET = "digits"


def run_demo(storage: str, *, epochs: int, seeds: int) -> "tuple[EvaluateOutcome, dict[str, TrainOutcome]]":
    """Trains the three variants with several seeds and evaluates them.

    Returns:
      The evaluation, and the training of each run.
    """
    from mnist_ray.jobs.evaluate import EvaluateJob, evaluate
    from mnist_ray.jobs.train import TrainOutcome, train

    outcomes: dict[str, TrainOutcome] = {}
    for variant in VARIANTS:
        for seed in range(seeds):
            run = f"demo-{variant}-e{epochs}-s{seed}"
            config = variant_config(variant, {"dataset": DATASET, "epochs": epochs, "seed": seed})
            outcomes[run] = train(TrainJob(config, run, storage, default_data_dir()))
    job = EvaluateJob(EvaluationConfig(dataset=DATASET), tuple(outcomes), storage, default_data_dir())
    return evaluate(job), outcomes


def print_demo(outcome: "EvaluateOutcome", outcomes: "dict[str, TrainOutcome]", storage: str) -> None:
    """Prints what came of the demo, and what to try next."""
    _print_before_and_after(outcome, outcomes)
    best = min(outcome.metrics, key=lambda row: outcomes[row["run"]].best.val_loss)["run"]
    print(f"Classification report of {best} (lowest validation loss) on the test split:\n")
    print(report_of_run(open_evaluation(open_storage(storage), outcome.name), best))
    _print_next(outcome, storage)


def _print_before_and_after(outcome: "EvaluateOutcome", runs: "dict[str, TrainOutcome]") -> None:
    groups: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for row in outcome.metrics:
        groups[row["variant"]].append(row)
    before = mean(row["accuracy"] for row in groups["baseline"])
    lines = []
    for variant, rows in groups.items():
        test = [row["accuracy"] for row in rows]
        train_accuracy = mean(runs[row["run"]].best.train_accuracy for row in rows)
        lines.append(
            [
                variant,
                f"{rows[0]['dropout']:g}",
                "yes" if rows[0]["batch_norm"] else "no",
                f"{rows[0]['weight_decay']:g}",
                f"{train_accuracy:.4f}",
                f"{mean(test):.4f}",
                f"{min(test):.4f}-{max(test):.4f}" if len(test) > 1 else "-",
                f"{100 * (mean(test) - before):+.2f}",
                f"{mean(row['log_loss'] for row in rows):.4f}",
            ]
        )
    names = [
        "variant",
        "dropout",
        "batch norm",
        "weight decay",
        "train acc",
        "test acc",
        "over seeds",
        "points",
        "log loss",
    ]
    seeds, count = len(groups["baseline"]), outcome.metrics[0]["num_examples"]
    print_table(names, lines, title=f"Before and after regularization: {DATASET}, {count} test images, {seeds} seeds")
    print(f"One accuracy on {count} images has a 95 % interval of about +-{_half_width(outcome):.1f} points.\n")


def _half_width(outcome: "EvaluateOutcome") -> float:
    return 100.0 * float(mean((row["accuracy_high"] - row["accuracy_low"]) / 2 for row in outcome.metrics))


def _print_next(outcome: "EvaluateOutcome", storage: str) -> None:
    done = "was there already" if outcome.already_done else "committed"
    print(f"Evaluation {done}: {outcome.uri}")
    print(f"Report, for a browser: {outcome.report}\n")
    print("Next:" if shutil.which("mnist-ray") else f"Next, after `. {shlex.quote(sys.prefix)}/bin/activate`:")
    for command in next_commands(outcome.uri, storage):
        print(f"  {command}")


def next_commands(evaluation_uri: str, storage: str) -> list[str]:
    """Returns commands to try after the demo: the same on MNIST, a grid, a query.

    Args:
      evaluation_uri: folder of the demo's evaluation.
      storage: URI of the storage with the demo's runs.
    """
    where = f"--storage {shlex.quote(storage)}"
    code = (
        f"import duckdb; metrics = duckdb.read_parquet({json.dumps(evaluation_uri + '/metrics/part-0.parquet')}); "
        'print(duckdb.sql("SELECT variant, avg(accuracy), avg(log_loss) FROM metrics GROUP BY variant"))'
    )
    return [
        f"mnist-ray tune --grid variants --dataset mnist --epochs 5 --seeds 2 {where}",
        f"mnist-ray tune --grid regularization --dataset {DATASET} --seeds 3 {where}",
        f"python -c {shlex.quote(code)}",
    ]
