"""Prints the answer of an evaluation, its effects, its settings and its pairs."""

import json
from collections.abc import Sequence

import numpy as np

from mnist_ray.analysis.comparisons import Comparison, Comparisons
from mnist_ray.analysis.effects import INTERACTION, MAIN, Effect
from mnist_ray.analysis.estimates import BETTER, LEAST_DIFFERING, WORSE, Estimate
from mnist_ray.analysis.selection import print_selection
from mnist_ray.report.comparison_report import ComparisonReport
from mnist_ray.report.evaluated_settings import repeated_words
from mnist_ray.report.findings import Findings
from mnist_ray.report.size_report import left_out_words
from mnist_ray.results.setting_words import value_words
from mnist_ray.text.sizes import count_text, is_or_are
from mnist_ray.text.tables import READING_WIDTH, print_table, print_text

_SHOWN = 10
# Columns of the effects that give way first where the words are long, the last one first.
_LESS_OF_EFFECTS = ("95 % interval", "p", "log loss")
JOINTLY = "The intervals hold jointly, with 95 % confidence, for other seeds and other examples."
_FOR_EXAMPLES = "One seed: the intervals hold jointly, with 95 % confidence, for other examples only."


def print_findings(findings: Findings) -> None:
    """Prints the answer first, then effects, settings, pairs, and what weakens the figures."""
    for sentence in findings.answer:
        print_text(sentence)
    print_effects(findings.grid.effects)
    if findings.grid.grid and findings.grid.note:
        print_text(findings.grid.note)
    report = findings.comparison
    _print_settings(report)
    if report.pairs is None:
        print("One setting: nothing to compare.")
    elif len(report.pairs):
        _print_pairs(report.pairs, report.num_pairs)
    if report.selection:
        print_selection(report.selection)
    for line in remarks(findings):
        print_text(line)


def remarks(findings: Findings) -> list[str]:
    """Returns what was left out and what weakens the figures, one line each."""
    report = findings.comparison
    lines = [f"{report.trained_on[0].upper()}{report.trained_on[1:]}, not on these data."] if report.trained_on else []
    stopped = [row for row in report.settings if row["num_stopped"]]
    if stopped:
        lines.append(
            f"Stopped early by the grid's scheduler: {sum(row['num_stopped'] for row in stopped)} of "
            f"{count_text(sum(row['num_seeds'] for row in report.settings), 'run')}, in "
            f"{count_text(len(stopped), 'setting')}. Their figures come "
            "from unfinished training, which alone may explain a difference."
        )
    if report.left_out:
        lines.append(
            "Not all settings have all seeds: a pair is compared on the seeds that both have, and the spread that all "
            f"settings share is estimated without {report.left_out}."
        )
    if (line := left_out_words(findings.grid.sizes)) is not None:
        lines.append(line)
    if report.pairs is not None and report.pairs.unpaired:
        pairs = ", ".join(f"{first} / {second}" for first, second in report.pairs.unpaired[:5])
        more = ", ..." if len(report.pairs.unpaired) > 5 else ""
        count = count_text(len(report.pairs.unpaired), "pair")
        lines.append(f"Left out, without a seed in common: {count}: {pairs}{more}.")
    if report.num_repeated:
        lines.append(f"{repeated_words(report.num_repeated)}; the first by name counts.")
    if report.num_earlier:
        lines.append(
            f"Evaluations in this storage that had read the same examples before: {report.num_earlier}. Choices based "
            "on their results make this one optimistic."
        )
    return lines


def print_effects(effects: Sequence[Effect]) -> None:
    """Prints the main effects setting by setting, then the largest interactions; nothing without effects."""
    losses = {effect.term: effect for effect in effects if effect.metric == "log_loss"}
    accuracies = [effect for effect in effects if effect.metric == "accuracy"]
    main = [effect for effect in accuracies if effect.term.kind == MAIN]
    interactions = sorted(
        (effect for effect in accuracies if effect.term.kind == INTERACTION),
        key=lambda effect: -abs(effect.estimate.difference),
    )
    names = ["effect of", "against", "points", "95 % interval", "is", "p", "log loss"]
    if main:
        title = "Main effects on accuracy, averaged over the other settings"
        lines = [_effect_line(effect, losses.get(effect.term)) for effect in main]
        print_table(names, lines, title=title, width=READING_WIDTH, optional=_LESS_OF_EFFECTS)
    if interactions:
        title = "Interactions: how much the first effect changes with the second"
        lines = [_effect_line(effect, losses.get(effect.term)) for effect in interactions[:_SHOWN]]
        print_table(
            [names[0], *names[2:]],
            [[line[0], *line[2:]] for line in lines],
            title=title,
            width=READING_WIDTH,
            optional=_LESS_OF_EFFECTS,
        )
    if len(interactions) > _SHOWN:
        print(f"{is_or_are(len(interactions) - _SHOWN, 'smaller interaction')} in the table effects.")


def effect_words(effect: Effect) -> tuple[str, str]:
    """Returns what an effect is of, such as `bn` or `bn x dropout 0.3`, and what it is against."""
    term = effect.term
    parts = [(term.axis, term.level, term.reference_level)]
    if term.second_axis is not None:
        parts.append((term.second_axis, term.second_level or "", term.second_reference_level or ""))
    what, against = (
        " x ".join(value_words(axis, json.loads(texts[place])) for axis, *texts in parts) for place in (0, 1)
    )
    return what, against


def _effect_line(effect: Effect, loss: Effect | None) -> list[str]:
    estimate = effect.estimate
    return [
        *effect_words(effect),
        f"{100 * estimate.difference:+.2f}",
        interval_text(estimate),
        estimate.verdict_words,
        p_text(estimate.p_value),
        "-" if loss is None else f"{loss.estimate.difference:+.4f}",
    ]


def _print_settings(report: ComparisonReport) -> None:
    names = ["setting", "may be best", "seeds", "accuracy", "± std", "log loss", "val accuracy"]
    lines = [
        [
            row["setting"],
            "yes" if row["may_be_best"] else "no",
            f"{row['num_seeds']} ({row['num_stopped']} stopped)" if row["num_stopped"] else str(row["num_seeds"]),
            f"{row['accuracy_mean']:.4f}",
            "-" if row["accuracy_std"] is None else f"{row['accuracy_std']:.4f}",
            f"{row['log_loss_mean']:.4f}",
            f"{row['val_accuracy_mean']:.4f}",
        ]
        for row in report.settings
    ]
    print_table(
        names,
        lines,
        title=f"Settings on {report.num_examples:,} examples",
        width=READING_WIDTH,
        optional=("seeds", "± std", "log loss", "val accuracy"),
    )


def _print_pairs(pairs: Comparisons, num_pairs: int) -> None:
    verdicts = pairs.accuracy.verdicts()
    counts = ", ".join(f"{(verdicts == word).sum()} {word}" for word in np.unique(verdicts))
    chosen = evidence(pairs)
    names = ["setting", "is", "against", "points", "95 % interval"]
    title = f"Pairs: {counts}"
    lines = [_pair_line(pair) for pair in pairs.rows(chosen[:_SHOWN])]
    print_table(names, lines, title=title, width=READING_WIDTH, optional=("95 % interval",))
    if len(pairs) > _SHOWN:
        print(f"{is_or_are(len(pairs) - _SHOWN, 'more pair')} in the table comparisons.")
    print_text(family_words(pairs, num_pairs))


def family_words(pairs: Comparisons, num_pairs: int) -> str:
    """Returns what the intervals of the pairs mean."""
    margin = 100 * (pairs.accuracy.margin or 0.0)
    sentences = [JOINTLY if (pairs.accuracy.num_seeds > 1).any() else _FOR_EXAMPLES]
    sentences.append(
        f"better, worse: the interval excludes 0, and {LEAST_DIFFERING} examples or more differ; equivalent: it lies "
        f"within the margin of {margin:g} points; otherwise unresolved."
    )
    if num_pairs > len(pairs):
        these = "This pair is" if len(pairs) == 1 else f"These {len(pairs)} pairs are"
        sentences.append(f"{these} one family; the table comparisons has all {num_pairs}.")
    return " ".join(sentences)


def evidence(pairs: Comparisons) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Returns the order of the pairs: better and worse first, then the smallest p values."""
    undecided = ~np.isin(pairs.accuracy.verdicts(), [BETTER, WORSE])
    return np.lexsort((-np.abs(pairs.accuracy.difference), np.nan_to_num(pairs.accuracy.p_value, nan=1.0), undecided))


def p_text(value: float | None) -> str:
    """Returns a p value with two digits; a dash if there is none."""
    return "-" if value is None else f"{value:.2g}"


def interval_text(estimate: Estimate, factor: float = 100, digits: int = 2) -> str:
    """Returns an interval, in points of accuracy; a dash if there is none."""
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{factor * estimate.low:+.{digits}f} to {factor * estimate.high:+.{digits}f}"


def _pair_line(pair: Comparison) -> list[str]:
    return [
        pair.first,
        pair.accuracy.verdict_words,
        pair.second,
        f"{100 * pair.accuracy.difference:+.2f}",
        interval_text(pair.accuracy),
    ]
