"""Prints the verdicts of an evaluation."""

from collections.abc import Sequence
from statistics import median_low

from mnist_ray.analysis.comparisons import MOST_SEEDS, RESOLUTION, Comparison, Interval, half_width_of_examples
from mnist_ray.analysis.selection import print_selection
from mnist_ray.report.comparison_report import ComparisonReport
from mnist_ray.text.escape import printable
from mnist_ray.text.tables import print_table

_SHOWN_PAIRS = 40


def print_comparisons(report: ComparisonReport) -> None:
    """Prints the settings with their groups of ties, the pairs with their verdicts, and the basis of the verdicts."""
    _print_settings(report)
    if report.comparisons:
        _print_pairs(report)
        for line in notes(report.comparisons):
            print(line)
    else:
        print(
            "One setting: nothing to compare."
            if len(report.settings) == 1
            else "No two settings have a seed in common."
        )
    if report.selection:
        print_selection(report.selection)
    for line in remarks(report):
        print(printable(line))


def remarks(report: ComparisonReport) -> list[str]:
    """Returns what was left out and what weakens the figures, one line each."""
    lines = [f"{report.trained_on[0].upper()}{report.trained_on[1:]}, not on these data."] if report.trained_on else []
    stopped = [row for row in report.settings if row["num_stopped"]]
    if stopped:
        lines.append(
            f"Stopped early by the grid's scheduler: {sum(row['num_stopped'] for row in stopped)} of "
            f"{sum(row['num_seeds'] for row in report.settings)} runs, in {len(stopped)} settings. Their figures come "
            "from unfinished training, which alone may explain a difference."
        )
    if report.unpaired:
        pairs = ", ".join(f"{first} / {second}" for first, second in report.unpaired[:5])
        more = ", ..." if len(report.unpaired) > 5 else ""
        lines.append(f"Left out, without a seed in common: {len(report.unpaired)} pairs: {pairs}{more}.")
    if report.num_repeated:
        lines.append(
            f"{report.num_repeated} runs repeat the settings and seed of another run; the first by name counts."
        )
    if report.num_earlier:
        lines.append(
            f"Evaluations in this storage that had read the same examples before: {report.num_earlier}. Choices based "
            "on their results make this one optimistic."
        )
    return lines


def _print_settings(report: ComparisonReport) -> None:
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
        for row in report.settings
    ]
    print_table(
        names, lines, title=f"Settings on {report.num_examples:,} examples; one group: not told apart from its best"
    )


def _print_pairs(report: ComparisonReport) -> None:
    # Verdicts first, then the pairs nearest to a verdict.
    ordered = sorted(report.comparisons, key=evidence)
    names = ["setting", "is", "against", "accuracy, points (95 %)", "log loss (95 %)", "p", "McNemar p", "seeds"]
    print_table(names, [_line(pair) for pair in ordered[:_SHOWN_PAIRS]], title="Pairs")
    if len(ordered) > _SHOWN_PAIRS:
        print(f"{len(ordered) - _SHOWN_PAIRS} more pairs are in comparisons.parquet.")
    print(
        "Intervals: paired, over seeds and examples, each by itself. better, worse: both p values below 0.05, after "
        f"Holm's correction over these {len(ordered)} pairs; tie: not told apart; unresolved: one seed."
    )
    if report.num_pairs > len(ordered):
        print(f"The groups and comparisons.parquet are corrected over all {report.num_pairs} pairs.")


def evidence(pair: Comparison) -> tuple[bool, float]:
    """Returns the sort key of a pair: decided pairs first, then the smallest p values."""
    p_value = pair.accuracy_difference.p_value
    return not pair.is_decided, 1.0 if p_value is None else p_value


def p_text(value: float | None) -> str:
    """Returns a p value with two digits; a dash if there is none."""
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
    """Returns the limits that the number of seeds sets, in a line or two."""
    single = sum(pair.num_seeds == 1 for pair in pairs)
    lines = []
    if single:
        lines.append(
            f"One seed in {single} of {len(pairs)} pairs: unresolved, because their intervals and p values cover other "
            "examples only and other seeds may disagree; use --seeds 5 or more."
        )
    several = [pair for pair in pairs if pair.num_seeds > 1]
    needed = [pair.num_seeds_needed for pair in several]
    known = [number for number in needed if number is not None]
    short = sum(number is None or number > pair.num_seeds for number, pair in zip(needed, several, strict=True))
    if short:
        lines.append(f"Too few seeds to tell 0.1 points apart in {short} of {len(several)} pairs.")
    if short and known:
        lines[-1] += f" Where more seeds help, {median_low(known)} (median) or at most {max(known)} are needed."
    never = [pair for pair in several if pair.num_seeds_needed is None]
    by_examples = [
        pair for pair in never if half_width_of_examples(pair.accuracy_difference, pair.num_examples) > RESOLUTION
    ]
    if by_examples:
        lines.append(
            f"{len(by_examples)} of {len(several)} pairs stay so with any number of seeds: the "
            f"{several[0].num_examples:,} examples alone leave more than ±0.1 points."
        )
    if by_seeds := len(never) - len(by_examples):
        lines.append(f"{by_seeds} of {len(several)} pairs vary so much that they need more than {MOST_SEEDS:,} seeds.")
    return lines
