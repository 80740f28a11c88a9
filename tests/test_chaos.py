from pathlib import Path

import pytest

from tests.support.chaos import evaluations_under_fire


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.series)])
def test_no_reader_ever_sees_a_part_of_an_evaluation_though_its_writers_are_killed(tmp_path: Path, kills: int) -> None:
    counts = evaluations_under_fire(str(tmp_path), kills)
    assert counts.kills >= 1
    assert counts.evaluations >= 1
    # While the writers start, the first evaluation is there.
    assert counts.reads > 0
    assert counts.partial_reads == 0
