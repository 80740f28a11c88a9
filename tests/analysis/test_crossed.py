import numpy as np
import pytest
from numpy.typing import NDArray

from mnist_ray.analysis.crossed import MeanSquares, mean_squares
from tests.support import moderated_max_t as reference
from tests.support.simulated_scores import simulated

SQUARES = ("seed", "example", "residual")


def answers(*, num_settings: int = 4, num_seeds: int = 3, num_examples: int = 200) -> NDArray[np.bool_]:
    gains = [0.0] * num_settings
    return simulated(np.random.default_rng(0), gains, num_seeds=num_seeds, num_examples=num_examples)


def assert_close(found: MeanSquares, expected: MeanSquares) -> None:
    assert found.means == pytest.approx(expected.means, abs=1e-15)
    for name in SQUARES:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 3, 200), (1, 2, 2), (2, 5, 3), (7, 2, 50)])
def test_right_and_wrong_answers_give_the_squares_of_their_zeros_and_ones(shape: tuple[int, int, int]) -> None:
    correct = np.random.default_rng(1).random(shape) < 0.7
    exact, floats = mean_squares(correct), mean_squares(correct.astype(np.float64))
    assert_close(exact, floats)
    found = (exact.means, exact.seed, exact.example, exact.residual)
    for ours, theirs in zip(found, reference.mean_squares(correct), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_the_squares_of_a_pair_are_the_analysis_of_variance_of_its_differences() -> None:
    values = np.random.default_rng(2).normal(size=(3, 4, 6)) + np.arange(4)[:, None]
    squares = mean_squares(values)
    # Two-way analysis of variance without replicates of d [seeds, examples].
    d = values[2] - values[0]
    total = ((d - d.mean()) ** 2).sum()
    of_seeds = 6 * ((d.mean(axis=1) - d.mean()) ** 2).sum()
    of_examples = 4 * ((d.mean(axis=0) - d.mean()) ** 2).sum()
    expected = of_seeds / 3, of_examples / 5, (total - of_seeds - of_examples) / 15
    for name, square in zip(SQUARES, expected, strict=True):
        products = getattr(squares, name)
        assert products[0, 0] + products[2, 2] - 2 * products[0, 2] == pytest.approx(square, rel=1e-9)


def test_settings_with_equal_counts_have_equal_squares_to_the_bit() -> None:
    # In floats, the means over 7 examples and 3 seeds are rounded differently in another order of the same answers.
    generator = np.random.default_rng(3)
    first = generator.random((3, 7)) < 0.6
    correct = np.stack([first, first[::-1], first[:, ::-1], first[[1, 2, 0]][:, generator.permutation(7)]])
    squares = mean_squares(correct)
    for values in (squares.means, *(np.diag(getattr(squares, name)) for name in SQUARES)):
        assert (values == values[0]).all()


def test_examples_that_all_settings_share_are_exact_zeros_in_the_seeds_square() -> None:
    # Each seed is right on 2 of 7 examples: its mean is no exact float, and there is no seed effect.
    correct = np.zeros((2, 3, 7), dtype=bool)
    correct[:, [0, 0, 1, 1, 2, 2], [0, 1, 2, 3, 4, 5]] = True
    squares = mean_squares(correct)
    assert not squares.seed.any()
    assert (squares.means == 2 / 7).all()


@pytest.mark.parametrize(
    ("shape", "nothing"), [((3, 1, 8), {"seed", "residual"}), ((3, 4, 1), {"example", "residual"})]
)
@pytest.mark.parametrize("dtype", [np.bool_, np.float32])
def test_squares_of_one_seed_or_one_example_are_zero(
    shape: tuple[int, int, int], nothing: set[str], dtype: type[np.generic]
) -> None:
    squares = mean_squares((np.random.default_rng(4).random(shape) < 0.5).astype(dtype))
    (other,) = set(SQUARES) - nothing
    assert not any(getattr(squares, name).any() for name in nothing)
    assert getattr(squares, other).any()


@pytest.mark.parametrize("shape", [(2, 0, 4), (2, 3, 0)])
def test_no_seeds_or_no_examples_are_an_error(shape: tuple[int, int, int]) -> None:
    message = f"{shape[1]} seeds and {shape[2]} examples: nothing to compare"
    with pytest.raises(ValueError, match=message):
        mean_squares(np.zeros(shape, dtype=bool))


@pytest.mark.parametrize("value", [False, True])
def test_settings_that_are_all_right_or_all_wrong_have_no_squares(value: bool) -> None:
    squares = mean_squares(np.full((3, 3, 11), value))
    assert (squares.means == value).all()
    assert not any(getattr(squares, name).any() for name in SQUARES)


def test_the_squares_of_many_answers_stay_exact() -> None:
    # 5 x 300,000 answers: the scaled sums of products exceed 2**40, which float32 can't hold.
    correct = answers(num_settings=2, num_seeds=5, num_examples=300_000)
    assert_close(mean_squares(correct), mean_squares(correct.astype(np.float64)))
