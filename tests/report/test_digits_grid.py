"""The README's grid, from its training to its answer."""

import json
from pathlib import Path

import duckdb
import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.storage.storage import open_storage
from tests.support.grid_runs import train_without_ray
from tests.support.report_evaluations import evaluate_runs


@pytest.mark.series
@pytest.mark.timeout(1800)
def test_the_digits_grid_says_that_batch_norm_helps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """32 settings x 3 seeds, 355 images: batch norm helps with p <= .005, and at least 30 of 496 pairs are resolved.

    57 were on an AMD EPYC with AVX2, and 38 on one with AVX-512: processors round differently and give other runs. Each
    of them is a setting with batch norm that is better than one without.
    """
    uri = str(tmp_path)
    train_without_ray(uri, "regularization", seeds="3", dataset="digits")
    evaluation = evaluate_runs(uri, GridFolder(open_storage(uri), "g").run_names(), grid="g")
    assert run_command(["compare", evaluation, "--storage", uri, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_pairs"] == 496
    assert found["answer"][0].startswith("Batch norm helps: +")
    folder = tmp_path / "reports" / evaluation
    norm = "axis = 'batch_norm' AND kind = 'main' AND metric = 'accuracy'"
    assert duckdb.sql(
        f"SELECT level, verdict, p_value <= 0.005 FROM '{folder}/effects/part-0.parquet' WHERE {norm}"
    ).fetchall() == [("true", "better", True)]
    pairs = duckdb.sql(
        f"SELECT first, second, verdict FROM '{folder}/comparisons/part-0.parquet' "
        "WHERE metric = 'accuracy' AND verdict IN ('better', 'worse')"
    ).fetchall()
    assert len(pairs) >= 30
    for first, second, verdict in pairs:
        better, worse = (first, second) if verdict == "better" else (second, first)
        # The setting without any regularization has all its levels in its name.
        assert (better.split(", ")[0], "bn" in worse.split(", ")) == ("bn", False)
