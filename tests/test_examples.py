"""The notebooks of examples/: executed as they are, and stored without outputs, which would become stale."""

import shutil
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.name for path in NOTEBOOKS])
def test_a_notebook_is_stored_without_outputs_as_jupyter_writes_it(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert [cell for cell in book.cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert path.read_text() == nbformat.writes(book) + "\n"


def outputs(path: Path, folder: Path) -> list[list[Any]]:
    """Returns the outputs of each code cell of a notebook, executed in a kernel of its own in a folder."""
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in book.cells if cell.cell_type == "code"]


@pytest.mark.ray
@pytest.mark.series
@pytest.mark.timeout(900)
def test_the_regularization_notebook_ends_in_a_chart_and_goes_on_from_what_is_there(tmp_path: Path) -> None:
    notebook = Path(shutil.copy(ROOT / "examples/regularization.ipynb", tmp_path))
    trained, answer, effects, read, chart = outputs(notebook, tmp_path)
    assert trained[0].text.startswith("30 runs, 30 of them trained now; the best by validation is ")
    assert answer[0].text.count("\n") >= 3
    assert len(effects[0].text.splitlines()) == 3
    assert read == []
    assert "image/png" in chart[-1].data
    # Nothing is said on standard error.
    each = [output for cell in (trained, answer, effects, chart) for output in cell]
    assert {output.get("name", "stdout") for output in each} == {"stdout"}
    again = outputs(notebook, tmp_path)
    assert again[0][0].text == trained[0].text.replace("30 of them", "0 of them")
    assert again[1:3] == [answer, effects]
