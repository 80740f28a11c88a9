"""Compares settings in pairs over their common seeds and examples, jointly, and finds those that may be the best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mnist_ray.analysis.blocks import Blocks, Scores, of_seeds
from mnist_ray.analysis.estimates import MARGIN, Block, Estimate, Estimates, estimate, make_block, placed, unknown
from mnist_ray.analysis.max_t import CONFIDENCE, Chance, Contrasts, Pairs, all_pairs

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Comparison:
    """One pair: the first setting against the second.

    Attributes:
      accuracy, log_loss: the first minus the second.
      first_right, second_right: examples that this setting predicts correctly with more seeds.
      mcnemar_p: p value of McNemar's exact test on these, for this pair alone.
    """

    first: str
    second: str
    accuracy: Estimate
    log_loss: Estimate
    first_right: int
    second_right: int
    mcnemar_p: float

    def reversed(self) -> "Comparison":
        """Returns the second against the first."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            accuracy=self.accuracy.reversed(),
            log_loss=self.log_loss.reversed(),
            first_right=self.second_right,
            second_right=self.first_right,
        )


@dataclass(frozen=True, eq=False)
class Accuracies:
    """A family of pairs, judged together by their accuracies, in columns [pairs].

    Attributes:
      labels: of all settings.
      firsts, seconds: places of the settings.
      accuracy: first minus second.
      first_right, second_right: see Comparison.
      unpaired: pairs without a common seed.
      behind: float64 [settings], by how many standard errors the setting is behind the best of the others; 0 or more.
      may_be_best: bool [settings]: whether the accuracies don't rule out that the setting is the best; None with a
        baseline.
    """

    labels: tuple[str, ...]
    firsts: _Ints
    seconds: _Ints
    accuracy: Estimates
    first_right: _Ints
    second_right: _Ints
    unpaired: list[tuple[str, str]]
    behind: NDArray[np.float64]
    may_be_best: NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.firsts)


@dataclass(frozen=True, eq=False)
class Comparisons(Accuracies):
    """A family of pairs, judged together by their accuracies and, as a family of its own, by their losses.

    Attributes:
      log_loss: first minus second.
      first_accuracy, first_log_loss: means of the first over the common seeds.
    """

    log_loss: Estimates
    first_accuracy: NDArray[np.float64]
    first_log_loss: NDArray[np.float64]

    def mcnemar_p(self) -> NDArray[np.float64]:
        """Returns the two-sided p values of McNemar's exact test, each for its pair alone.

        With several seeds, an example counts once, for the setting that is right with more of them. Tests per seed
        share their examples, so they can't be combined as independent tests.

        Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947.
        """
        # Equals scipy.stats.binomtest, which takes a single pair and is slow.
        lower = np.minimum(self.first_right, self.second_right)
        p_values: NDArray[np.float64] = 2 * stats.binom.cdf(lower, self.first_right + self.second_right, 0.5)
        return np.minimum(p_values, 1.0)

    def rows(self, places: Sequence[int] | _Ints | None = None) -> list[Comparison]:
        """Returns some of the pairs, or all."""
        chosen = np.arange(len(self)) if places is None else np.asarray(places, dtype=np.int64)
        columns = (self.firsts, self.seconds, self.first_right, self.second_right, self.mcnemar_p())
        rows = zip(*(column[chosen].tolist() for column in columns), strict=True)
        return [
            Comparison(self.labels[first], self.labels[second], accuracy, loss, *rest)
            for (first, second, *rest), accuracy, loss in zip(
                rows, self.accuracy.rows(chosen), self.log_loss.rows(chosen), strict=True
            )
        ]


def compare(blocks: Blocks, *, margin: float = MARGIN, baseline: int | None = None) -> Comparisons:
    """Compares each setting with every earlier one, or every setting with one of them; see `compare_accuracies`."""
    accuracies = compare_accuracies(blocks, margin=margin, baseline=baseline)
    firsts, seconds, settings = accuracies.firsts, accuracies.seconds, blocks.settings
    # Losses differ on all examples, also where both settings are right.
    num_examples = np.full(len(firsts), settings[0].correct.shape[1])
    family = _Family(blocks, _groups(blocks, firsts, seconds), firsts, seconds, num_examples, baseline, CONFIDENCE)
    return Comparisons(
        **vars(accuracies),
        log_loss=family.judge("loss", blocks.loss, None)[1],
        first_accuracy=_first_means(settings, "correct", firsts, seconds),
        first_log_loss=_first_means(settings, "loss", firsts, seconds),
    )


def compare_accuracies(
    blocks: Blocks, *, margin: float = MARGIN, baseline: int | None = None, level: float = CONFIDENCE
) -> Accuracies:
    """Compares the accuracies of each setting with every earlier one, or of every setting with one of them.

    A pair is estimated on the seeds that its settings have in common, with the prior and the critical value of the
    blocks.

    Args:
      margin: of accuracy, a fraction; smaller differences don't matter.
      baseline: place of a setting; it is then the second of each pair, and the pairs with it are the family.
      level: joint confidence of the intervals.

    Source: Hothorn, Bretz, Westfall, "Simultaneous inference in general parametric models", 2008; Dunnett 1955 for a
      baseline; Hsu, "Constrained simultaneous confidence intervals for multiple comparisons with the best", 1984.
    """
    settings = blocks.settings
    labels = tuple(scores.label for scores in settings)
    pairs = [(first, second) for second, first in combinations(range(len(settings)), 2)]
    if baseline is not None:
        pairs = [(place, baseline) for place in range(len(settings)) if place != baseline]
    seeds = [set(scores.seeds) for scores in settings]
    paired = [pair for pair in pairs if not seeds[pair[0]].isdisjoint(seeds[pair[1]])]
    unpaired = [pair for pair in pairs if seeds[pair[0]].isdisjoint(seeds[pair[1]])]
    firsts, seconds = np.array(paired, dtype=np.int64).reshape(-1, 2).T
    groups = _groups(blocks, firsts, seconds)
    right = _right(settings, groups, firsts, seconds)
    family = _Family(blocks, groups, firsts, seconds, right.sum(axis=0), baseline, level)
    chance, accuracy = family.judge("correct", blocks.accuracy, margin)
    behind = _behind(len(settings), firsts, seconds, accuracy)
    return Accuracies(
        labels=labels,
        firsts=firsts,
        seconds=seconds,
        accuracy=accuracy,
        first_right=right[0],
        second_right=right[1],
        unpaired=[(labels[first], labels[second]) for first, second in unpaired],
        behind=behind,
        may_be_best=None if baseline is not None else _may_be_best(blocks, behind, chance),
    )


def _first_means(settings: Sequence[Scores], name: str, firsts: _Ints, seconds: _Ints) -> NDArray[np.float64]:
    """Returns the mean of the first setting of each pair over the common seeds [pairs]."""
    seeds = sorted({seed for scores in settings for seed in scores.seeds})
    means = np.zeros((len(settings), len(seeds)))
    exists = np.zeros(means.shape, dtype=np.bool_)
    for place, scores in enumerate(settings):
        at = [seeds.index(seed) for seed in scores.seeds]
        means[place, at], exists[place, at] = getattr(scores, name).mean(axis=1, dtype=np.float64), True
    common = exists[firsts] & exists[seconds]
    computed: NDArray[np.float64] = np.where(common, means[firsts], 0).sum(axis=1) / common.sum(axis=1)
    return computed


@dataclass(frozen=True, eq=False)
class _Group:
    """Pairs whose settings have the same seeds in common.

    Attributes:
      pairs: their places in the family, ascending.
      places: of their settings, ascending.
      seeds: ascending.
    """

    pairs: _Ints
    places: _Ints
    seeds: list[int]

    def values(self, settings: Sequence[Scores], name: str) -> NDArray[Any]:
        """Returns the settings' values of a metric [settings, seeds, examples]."""
        return np.stack([of_seeds(settings[place], self.seeds, name) for place in self.places])


def _groups(blocks: Blocks, firsts: _Ints, seconds: _Ints) -> list[_Group]:
    """Groups pairs by the seeds that their settings have in common."""
    seeds = sorted({seed for scores in blocks.settings for seed in scores.seeds})
    exists = np.array([[seed in scores.seeds for seed in seeds] for scores in blocks.settings])
    # If nothing is known about the seeds, a pair with more of them is judged on one.
    most_seeds = 1 if len(blocks.seeds) == 1 else None
    common, of_pair = np.unique(exists[firsts] & exists[seconds], axis=0, return_inverse=True)
    groups = []
    for number, is_common in enumerate(common):
        pairs = np.flatnonzero(of_pair.ravel() == number)
        places = np.unique(np.concatenate([firsts[pairs], seconds[pairs]]))
        groups.append(_Group(pairs, places, [seeds[place] for place in np.flatnonzero(is_common)][:most_seeds]))
    return groups


def _right(settings: Sequence[Scores], groups: Sequence[_Group], firsts: _Ints, seconds: _Ints) -> _Ints:
    """Returns how many examples each setting of a pair predicts correctly with more seeds than the other [2, pairs]."""
    counts = np.zeros((2, len(firsts)), dtype=np.int64)
    for group in groups:
        # more[i, j]: examples that i predicts correctly with more seeds than j; exact in float32 below 2**24 examples.
        of_examples = group.values(settings, "correct").sum(axis=1, dtype=np.int64)
        more = np.zeros((len(group.places),) * 2, dtype=np.int64)
        for count in range(1, len(group.seeds) + 1):
            equal, fewer = (of_examples == count).astype(np.float32), (of_examples < count).astype(np.float32)
            more += np.rint(equal @ fewer.T).astype(np.int64)
        first, second = (np.searchsorted(group.places, places[group.pairs]) for places in (firsts, seconds))
        counts[:, group.pairs] = more[first, second], more[second, first]
    return counts


@dataclass(frozen=True)
class _Family:
    """Pairs that are judged together; see `compare_accuracies`."""

    blocks: Blocks
    groups: list[_Group]
    firsts: _Ints
    seconds: _Ints
    num_differing: _Ints
    baseline: int | None
    level: float

    def judge(self, name: str, block: Block | None, margin: float | None) -> tuple[Chance | None, Estimates]:
        """Returns the estimates of one metric, and what their largest t value is by chance."""
        chance = None if block is None else block.chance(self._contrasts(block), level=self.level)
        parts = [part for group in self.groups for part in self._estimates(name, group, block, chance, margin)]
        return chance, placed(parts, margin=margin)

    def _contrasts(self, block: Block) -> list[Contrasts]:
        """Returns the pairs of a block."""
        others = block.places != self.baseline
        if self.baseline is None or others.all():
            return all_pairs(len(block.places))
        return [Pairs(np.flatnonzero(others), int(np.flatnonzero(~others)[0]))]

    def _estimates(
        self, name: str, group: _Group, block: Block | None, chance: Chance | None, margin: float | None
    ) -> Iterator[tuple[_Ints, Estimates]]:
        """Yields the estimates of a group, with their places, by the prior and the critical value of the block."""
        values, places = group.values(self.blocks.settings, name), group.places
        firsts, seconds = (np.searchsorted(places, each[group.pairs]) for each in (self.firsts, self.seconds))
        is_finite = np.isfinite(values).all(axis=(1, 2)) & (block is not None)
        is_known = is_finite[firsts] & is_finite[seconds]
        if not is_known.all():
            means = values.mean(axis=(1, 2), dtype=np.float64)
            with np.errstate(invalid="ignore"):
                differences = (means[firsts] - means[seconds])[~is_known]
            yield group.pairs[~is_known], unknown(differences, num_seeds=len(group.seeds), margin=margin)
        if block is None or chance is None or not is_known.any():
            return
        of_group = block
        if group.seeds != list(self.blocks.seeds) or not np.array_equal(places[is_finite], block.places):
            of_group = replace(make_block(places[is_finite], values[is_finite]), prior=block.prior)
        # Pairs come in the order of their second settings.
        pairs, renumbered = group.pairs[is_known], np.cumsum(is_finite) - 1
        firsts, seconds = renumbered[firsts[is_known]], renumbered[seconds[is_known]]
        starts = np.flatnonzero(np.diff(seconds)) + 1
        contrasts: list[Contrasts] = [
            Pairs(some, int(second))
            for some, second in zip(np.split(firsts, starts), seconds[[0, *starts]], strict=True)
        ]
        yield (
            pairs,
            estimate(
                of_group, contrasts, chance, num_differing=self.num_differing[pairs], margin=margin, level=self.level
            ),
        )


def _behind(num_settings: int, firsts: _Ints, seconds: _Ints, accuracy: Estimates) -> NDArray[np.float64]:
    """See Accuracies; 0 with one seed, or if nothing is known about the uncertainty."""
    error = np.sqrt(np.nan_to_num(accuracy.seed_variance) + np.nan_to_num(accuracy.example_variance))
    t = np.where((accuracy.num_seeds > 1) & (error > 0), accuracy.difference / np.where(error > 0, error, 1), 0)
    behind = np.zeros(num_settings)
    np.maximum.at(behind, seconds, t)
    np.maximum.at(behind, firsts, -t)
    return behind


def _may_be_best(blocks: Blocks, behind: NDArray[np.float64], chance: Chance | None) -> NDArray[np.bool_]:
    """Returns which settings stay if each is tested against the best of the others; all with one seed."""
    block, count = blocks.accuracy, len(blocks.settings)
    if block is None or chance is None:
        return np.ones(count, dtype=bool)
    limits = np.full(count, chance.best.max())
    limits[block.places] = chance.best
    return behind <= limits
