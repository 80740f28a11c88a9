"""The verdicts of an evaluation on the terminal."""

from collections.abc import Sequence
from statistics import median_low

from mnist_ray.analysis.comparisons import MOST_SEEDS, RESOLUTION, Comparison, Interval, half_width_of_examples
from mnist_ray.analysis.selection import print_selection
from mnist_ray.report.comparison_report import ComparisonReport
from mnist_ray.text.escape import printable
from mnist_ray.text.tables import print_table

_SHOWN_PAIRS = 40


def print_comparisons(found: ComparisonReport) -> None:
    """Prints the settings with their groups of ties, the pairs with their verdicts, and what these rest on."""
    _print_settings(found)
    if found.comparisons:
        _print_pairs(found)
        for line in notes(found.comparisons):
            print(line)
    else:
        print(
            "One setting: nothing to compare." if len(found.settings) == 1 else "No two settings have a seed in common."
        )
    if found.selection:
        print_selection(found.selection)
    for line in remarks(found):
        print(printable(line))


def remarks(found: ComparisonReport) -> list[str]:
    """Returns what was left out and what makes the figures less than they seem, a line each."""
    lines = [f"{found.trained_on[0].upper()}{found.trained_on[1:]}, not on these data."] if found.trained_on else []
    stopped = [row for row in found.settings if row["num_stopped"]]
    if stopped:
        lines.append(
            f"Stopped early by the grid's scheduler: {sum(row['num_stopped'] for row in stopped)} of "
            f"{sum(row['num_seeds'] for row in found.settings)} runs, in {len(stopped)} settings. Their figures are "
            "those of unfinished training, which alone may explain a difference."
        )
    if found.unpaired:
        pairs = ", ".join(f"{first} / {second}" for first, second in found.unpaired[:5])
        more = ", ..." if len(found.unpaired) > 5 else ""
        lines.append(f"Left out, without a seed in common: {len(found.unpaired)} pairs: {pairs}{more}.")
    if found.num_repeated:
        lines.append(
            f"{found.num_repeated} runs repeat the settings and seed of another run; the first by name counts."
        )
    if found.num_earlier:
        lines.append(
            f"Evaluations in this storage that had read the same examples before: {found.num_earlier}. What was chosen "
            "by their results makes this one optimistic."
        )
    return lines


def _print_settings(found: ComparisonReport) -> None:
    names = ["group", "setting", "seeds", "accuracy", "± std", "log loss", "val accuracy"]
    lines = [
        [
            str(row["group"]),
            row["setting"],
            f"{row['num_seeds']} ({row['num_stopped']} stopped)" if row["num_stopped"] else str(row["num_seeds"]),
            f"{row['accuracy_mean']:.4f}",
            "-" if row["accuracy_std"] is None else f"{row['accuracy_std']:.4f}",
            f"{row['log_loss_mean']:.4f}",
            f"{row['val_accuracy_mean']:.4f}",
        ]
        for row in found.settings
    ]
    print_table(
        names, lines, title=f"Settings on {found.num_examples:,} examples; one group: not told apart from its best"
    )


def _print_pairs(found: ComparisonReport) -> None:
    # Verdicts first, then what is nearest to one.
    ordered = sorted(found.comparisons, key=evidence)
    names = ["setting", "is", "against", "accuracy, points (95 %)", "log loss (95 %)", "p", "McNemar p", "seeds"]
    print_table(names, [_line(pair) for pair in ordered[:_SHOWN_PAIRS]], title="Pairs")
    if len(ordered) > _SHOWN_PAIRS:
        print(f"{len(ordered) - _SHOWN_PAIRS} more pairs are in comparisons.parquet.")
    print(
        "Intervals: paired, over seeds and examples, each by itself. better, worse: both p values below 0.05, after "
        f"Holm's correction over these {len(ordered)} pairs; tie: not told apart; unresolved: one seed."
    )
    if found.num_pairs > len(ordered):
        print(f"The groups and comparisons.parquet are corrected over all {found.num_pairs} pairs.")


def evidence(pair: Comparison) -> tuple[bool, float]:
    """Returns what pairs are ordered by: those with a verdict first, then the smallest p values."""
    p_value = pair.accuracy_difference.p_value
    return not pair.is_decided, 1.0 if p_value is None else p_value


def p_text(value: float | None) -> str:
    """Returns a p value with two digits, a dash if there is none."""
    return "-" if value is None else f"{value:.2g}"


def _line(pair: Comparison) -> list[str]:
    return [
        pair.first,
        pair.verdict,
        pair.second,
        _interval_text(pair.accuracy_difference, 100, 2),
        _interval_text(pair.log_loss_difference, 1, 3),
        p_text(pair.p_adjusted),
        p_text(pair.mcnemar_p_adjusted),
        str(pair.num_seeds),
    ]


def _interval_text(interval: Interval, factor: int, digits: int) -> str:
    difference, low, high = (
        "-" if value is None else f"{factor * value:+.{digits}f}"
        for value in (interval.difference, interval.low, interval.high)
    )
    return f"{difference} ({low}, {high})"


def notes(pairs: Sequence[Comparison]) -> list[str]:
    """Returns what the number of seeds allows, in a line or two."""
    single = sum(pair.num_seeds == 1 for pair in pairs)
    lines = []
    if single:
        lines.append(
            f"One seed in {single} of {len(pairs)} pairs: unresolved, for their intervals and p values cover other "
            "examples only, and other seeds may say otherwise; --seeds 5 or more tells."
        )
    several = [pair for pair in pairs if pair.num_seeds > 1]
    needed = [pair.num_seeds_needed for pair in several]
    known = [number for number in needed if number is not None]
    short = sum(number is None or number > pair.num_seeds for number, pair in zip(needed, several, strict=True))
    if short:
        lines.append(f"Too few seeds to tell 0.1 points apart in {short} of {len(several)} pairs.")
    if short and known:
        lines[-1] += f" Where more of them help, it takes {median_low(known)} (median), {max(known)} at most."
    never = [pair for pair in several if pair.num_seeds_needed is None]
    by_examples = [
        pair for pair in never if half_width_of_examples(pair.accuracy_difference, pair.num_examples) > RESOLUTION
    ]
    if by_examples:
        lines.append(
            f"{len(by_examples)} of {len(several)} pairs stay so with any number of seeds: the "
            f"{several[0].num_examples:,} examples alone leave more than 0.1 points."
        )
    if by_seeds := len(never) - len(by_examples):
        lines.append(f"{by_seeds} of {len(several)} pairs vary so much that it takes more than {MOST_SEEDS:,} seeds.")
    return lines
