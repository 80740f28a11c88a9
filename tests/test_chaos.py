from pathlib import Path

import pytest

from tests.support.chaos import evaluations_under_fire


@pytest.mark.slow
@pytest.mark.fault
def test_no_reader_ever_sees_a_part_of_an_evaluation_though_its_writers_are_killed(tmp_path: Path) -> None:
    counts = evaluations_under_fire(str(tmp_path), kills=3)
    assert counts.kills >= 1
    assert counts.evaluations >= 1
    assert counts.reads > 10
    assert counts.partial_reads == 0
