import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from mnist_ray.analysis.estimates import Block, Estimates, estimate, make_block
from mnist_ray.analysis.max_t import Chance, Pairs, Weighted, all_pairs, chance, trigamma_inverse, variances
from tests.support import moderated_max_t as reference
from tests.support.simulated_scores import real_seeds, simulated

ROWS = (
    ("11111001", "11111101", "01100001"),
    ("01111101", "11111101", "01101101"),
    ("01111100", "01111000", "01011100"),
)
EXAMPLE = np.array([[[answer == "1" for answer in seed] for seed in setting] for setting in ROWS])
AB_AC_BC = Weighted(np.array([[1.0, -1, 0], [1, 0, -1], [0, 1, -1]]))


def block_of(correct: NDArray[np.bool_]) -> Block:
    return make_block(np.arange(len(correct)), correct)


def pairs_of(correct: NDArray[np.bool_]) -> Estimates:
    block = block_of(correct)
    family = all_pairs(len(correct))
    counts = np.full(len(correct) * (len(correct) - 1) // 2, correct.shape[2])
    return estimate(block, family, block.chance(family), num_differing=counts, margin=0.005)


def test_the_worked_example_has_its_mean_squares_and_prior() -> None:
    block = block_of(EXAMPLE)
    squares, prior = block.squares, block.prior
    assert squares.means == pytest.approx([0.6667, 0.75, 0.5417], abs=5e-5)
    for square, diagonal in (
        (squares.seed, [0.5417, 0.1250, 0.0417]),
        (squares.example, [0.3810, 0.4524, 0.6607]),
        (squares.residual, [0.1131, 0.0774, 0.0893]),
    ):
        assert np.diag(square) == pytest.approx(diagonal, abs=5e-5)
    assert squares.residual[[0, 0, 1], [1, 2, 2]] == pytest.approx([0.0357, -0.0536, 0.0], abs=5e-5)
    assert (prior.scale, prior.scale_df, prior.df) == pytest.approx((1.4, 3.0012, 4.0), abs=5e-5)


def test_the_worked_example_has_its_variances_interval_and_p_values() -> None:
    block = block_of(EXAMPLE)
    parts = variances(block.squares, block.prior, AB_AC_BC, are_counts=True)
    own = AB_AC_BC.variances(block.squares.seed) / AB_AC_BC.variances(block.squares.residual)
    assert own == pytest.approx([1.4, 1.6154, 1.0], abs=5e-5)
    assert parts.seed / parts.unit == pytest.approx([1.4, 1.4718, 1.2667], abs=5e-5)
    assert parts.seed == pytest.approx([0.0069, 0.0190, 0.0088], abs=5e-5)
    assert parts.example == pytest.approx([0.0216, 0.0342, 0.0283], abs=5e-5)
    found = estimate(block, [AB_AC_BC], block.chance([AB_AC_BC]), num_differing=np.full(3, 8), margin=0.005)
    assert found.difference == pytest.approx([-0.0833, 0.1250, 0.2083], abs=5e-5)
    assert found.critical == pytest.approx(2.113, abs=0.06)
    assert found.p_value == pytest.approx([0.792, 0.756, 0.360], abs=0.015)
    assert found.high - found.difference == pytest.approx(found.critical * np.array([0.1689, 0.2307, 0.1925]), abs=3e-4)


@pytest.mark.parametrize(("value", "expected"), [(1.0, 1.4263), (0.1, 10.4917), (np.pi**2 / 6, 1.0)])
def test_the_inverse_of_trigamma(value: float, expected: float) -> None:
    assert trigamma_inverse(value) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("y", [0.05, 0.3, 2.5, 40.0, 1e6])
def test_the_inverse_of_trigamma_undoes_it(y: float) -> None:
    assert trigamma_inverse(float(special.polygamma(1, y))) == pytest.approx(y, rel=1e-6)


SHAPES = [(2, 2, 2), (2, 3, 40), (3, 2, 400), (5, 4, 300), (8, 3, 100), (6, 10, 50)]


@pytest.mark.parametrize("shape", SHAPES)
def test_pairs_of_simulated_settings_are_those_of_the_second_implementation(shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(sum(shape))
    num_settings, num_seeds, num_examples = shape
    spread = generator.uniform(0, 2, num_settings).tolist()
    gains = generator.uniform(-0.2, 0, num_settings).tolist()
    correct = simulated(generator, gains, num_seeds=num_seeds, num_examples=num_examples, seed_spread=spread)
    assert_as_the_reference(correct, critical=0.04)


def test_seeds_that_vary_less_than_the_residuals_count_as_much_as_these() -> None:
    correct = simulated(np.random.default_rng(0), [0.0] * 5, num_seeds=3, num_examples=300, seed_spread=0)
    expected = reference.compare(correct, reference.pair_contrasts(5))
    # Some pairs vary less than the common ratio of 1.
    assert expected.own.min() < 0.5
    assert expected.phi.min() == expected.phi0 == 1
    assert_as_the_reference(correct, critical=0.04)


@pytest.mark.parametrize("first_seed", [0, 7, 14])
def test_pairs_of_real_seeds_are_those_of_the_second_implementation(first_seed: int) -> None:
    assert_as_the_reference(real_seeds()[:, first_seed : first_seed + 3], critical=0.04)


def assert_as_the_reference(correct: NDArray[np.bool_], *, critical: float) -> None:
    """critical: relative difference that is left to the draws of 95 % quantiles."""
    expected = reference.compare(correct, reference.pair_contrasts(len(correct)))
    block, found = block_of(correct), pairs_of(correct)
    assert block.prior.scale == pytest.approx(expected.phi0, rel=1e-9)
    assert block.prior.scale_df == pytest.approx(expected.nu0, rel=1e-9)
    assert block.prior.df == pytest.approx(expected.d0, rel=1e-6)
    assert found.difference == pytest.approx(expected.d, abs=1e-12)
    assert found.seed_variance == pytest.approx(expected.v_seed, rel=1e-6)
    assert found.example_variance == pytest.approx(expected.v_example, rel=1e-6)
    assert found.critical == pytest.approx(expected.crit, rel=critical)
    half_widths = np.minimum(found.critical * expected.se, 1 - expected.d)
    assert found.high - found.difference == pytest.approx(half_widths, rel=1e-6)
    assert found.p_value == pytest.approx(expected.p, abs=0.02)
    family = all_pairs(len(correct))
    assert block.chance(family).best == pytest.approx(expected.best, rel=1.5 * critical)


def test_no_spread_among_the_settings_is_an_infinite_weight_or_its_limit() -> None:
    # Two settings show no spread of their variances.
    assert block_of(EXAMPLE[:2]).prior.df == np.inf
    # All right: no variance at all.
    prior = block_of(np.ones((4, 3, 9), dtype=bool)).prior
    assert (prior.scale, prior.scale_df, prior.df) == (1.0, 6.0, np.inf)
    # Twenty settings alike: half of the degrees of freedom of the scale.
    alike = simulated(np.random.default_rng(0), [0.0] * 20, num_seeds=3, num_examples=2_000, seed_spread=0.5)
    prior = block_of(alike).prior
    assert prior.df == prior.scale_df / 2
    assert 4 < prior.df < 19


def test_a_family_of_one_pair_with_many_seeds_has_the_normal_critical_value() -> None:
    correct = simulated(np.random.default_rng(0), [0.0, 0.0], num_seeds=200, num_examples=200)
    assert 1.959963 < pairs_of(correct).critical < 2.0


def test_contrasts_of_one_kind_are_judged_as_the_other_kind() -> None:
    correct = simulated(np.random.default_rng(0), [0.0] * 4, num_seeds=3, num_examples=200)
    block, pairs = block_of(correct), all_pairs(4)
    weighted = Weighted(reference.pair_contrasts(4))
    means, squares = block.squares.means, block.squares.seed
    assert np.concatenate([each.of(means) for each in pairs]) == pytest.approx(weighted.of(means), abs=1e-15)
    of_pairs = np.concatenate([each.variances(squares) for each in pairs])
    assert of_pairs == pytest.approx(weighted.variances(squares), abs=1e-15)
    assert weighted.squared_norms.tolist() == [pairs[0].squared_norms] * 6
    assert weighted.bounds.tolist() == [pairs[0].bounds] * 6
    one, other = block.chance(pairs), block.chance([weighted])
    np.testing.assert_allclose(one.largest, other.largest, rtol=1e-4)
    # Only all pairs say which settings may be the best.
    assert (len(one.best), len(other.best)) == (4, 0)
    assert len(block.chance([Pairs(np.array([0, 2, 3]), 1)]).best) == 0


def test_p_values_count_the_draws_at_or_above() -> None:
    drawn = Chance(np.arange(1, 20, dtype=np.float32), np.zeros(0))
    # 20 draws with the data's own; never below the normal distribution's.
    assert drawn.p_values(np.array([0.0, 1.0, 2.0, 18.5, 30.0])) == pytest.approx([1, 1, 0.95, 0.1, 0.05])
    few = Chance(np.zeros(999, dtype=np.float32), np.zeros(0))
    assert few.p_values(np.array([1.0])) == pytest.approx(2 * stats.norm.sf(1.0))
    assert few.critical(0.95) == pytest.approx(1.959964)
    assert drawn.critical(0.5) == 10


@pytest.mark.parametrize(("num_settings", "num_draws"), [(3, 20_000), (101, 4_000), (201, 2_000)])
def test_larger_families_take_fewer_draws(num_settings: int, num_draws: int) -> None:
    block = block_of(np.random.default_rng(0).random((num_settings, 2, 20)) < 0.9)
    family = all_pairs(num_settings) if num_settings < 200 else [Pairs(np.arange(1, 4), 0)]
    drawn = chance(block.squares, block.prior, family, are_counts=True)
    assert len(drawn.largest) == num_draws
    assert (np.diff(drawn.largest) >= 0).all()
