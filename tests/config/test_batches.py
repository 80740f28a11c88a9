import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.config.batches import batch_sizes, images_at_once, largest_batch


@pytest.mark.parametrize(
    ("num_examples", "global_batch_size", "expected"),
    [
        (54_001, 64, (64,) * 843 + (49,)),
        (54_001, 101, (101,) * 534 + (67,)),
        (54_001, 10, (10,) * 5399 + (11,)),
        (54_001, 100, (100,) * 539 + (101,)),
        (54_001, 1000, (1000,) * 53 + (1001,)),
        (1124, 1000, (1124,)),
        (1125, 1000, (1000, 125)),
        (5, 2, (2, 3)),
        (6, 4, (4, 2)),
        (3, 1, (1, 1, 1)),
        (1, 64, (1,)),
        (7, 64, (7,)),
    ],
)
def test_a_small_remainder_joins_the_batch_before_it(
    num_examples: int, global_batch_size: int, expected: tuple[int, ...]
) -> None:
    assert batch_sizes(num_examples, global_batch_size) == expected


@given(st.integers(1, 5000), st.integers(2, 600))
def test_every_example_is_in_one_batch_and_none_is_alone(num_examples: int, global_batch_size: int) -> None:
    sizes = batch_sizes(num_examples, global_batch_size)
    assert sum(sizes) == num_examples
    assert set(sizes[:-1]) <= {global_batch_size}
    assert min(sizes) > 1 or num_examples == 1
    assert max(sizes) <= largest_batch(global_batch_size)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9, 64, 1000])
def test_the_largest_batch_occurs(size: int) -> None:
    assert largest_batch(size) == max(max(batch_sizes(count, size)) for count in range(1, 2 * size + 1))


@pytest.mark.parametrize(
    ("batch_size", "num_values", "expected"),
    [
        (1000, 784, 1000),
        (1024, 3 * 32 * 32, 1024),
        (7, 3 * 32 * 32, 7),
        (1024, 3 * 96 * 96, 112),
        (10, 3 * 96 * 96, 10),
        (1024, 3 * 4096 * 4096, 16),
    ],
)
def test_large_images_are_evaluated_in_smaller_batches(batch_size: int, num_values: int, expected: int) -> None:
    assert images_at_once(batch_size, num_values) == expected
