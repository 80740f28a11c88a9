import pytest

from mnist_ray.text.sizes import is_or_are, range_text


@pytest.mark.parametrize(
    ("least", "most", "text"), [(8, 1_200, "8 to 1,200 runs"), (1_200, 1_200, "1,200 runs"), (1, 1, "1 run")]
)
def test_a_range_of_one_count_is_that_count(least: int, most: int, text: str) -> None:
    assert range_text(least, most, "run") == text


def test_the_verb_follows_the_count() -> None:
    assert [is_or_are(count, "more pair") for count in (1, 2)] == ["1 more pair is", "2 more pairs are"]
