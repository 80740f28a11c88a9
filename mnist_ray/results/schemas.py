"""The tables, documented column by column; `python -m mnist_ray.results.schemas` prints docs/tables.md."""

from dataclasses import replace

from mnist_ray.results.columns import (
    BINARY,
    BOOL,
    FLOAT32,
    FLOAT32S,
    FLOAT64,
    INT64,
    NAME,
    SCHEMA_VERSION,
    STRING,
    TIME,
    Column,
    Table,
    list_of,
    setting_columns,
)

# Name -> table, in the order of the documentation.
TABLES: dict[str, Table] = {}
# In the folder of an evaluation, committed together.
EVALUATION_TABLES = (
    "predictions",
    "metrics",
    "per_class",
    "confusion",
    "calibration",
    "learning_curves",
    "images",
    "lineage",
)
# In the folder of its report, replaced as a whole by each report.
REPORT_TABLES = ("effects", "comparisons")


def _add_table(name: str, row: str, *columns: Column) -> None:
    TABLES[name] = Table(name, row, columns)


_RUN = Column("run", NAME, "", "name of the run")
_EVALUATION = Column("evaluation", NAME, "", "name of the evaluation")
_DATASET = Column("dataset", NAME, "", "data set that the run was evaluated on")
_SPLIT = Column("split", NAME, "", "split of the data set: train or test")
_DATASET_ID = Column(
    "dataset_id",
    NAME,
    "",
    "fingerprint of the split in the form that the run takes, hexadecimal: the same images and labels have the same, "
    "wherever they lie; where no run is named, of all its forms",
)
_DATA = (_DATASET, _SPLIT, _DATASET_ID)
_OF_RUN = (_EVALUATION, _RUN, *_DATA)
_SETTING = Column(
    "setting",
    NAME,
    "",
    "settings in words: the variant and what differs from it, without the seed, such as `dropout, weight decay 0.0001`",
)
_TRAINED_AT = Column(
    "trained_at", TIME, "", "when the training ended; null for a run that an older version trained", nullable=True
)
_EVALUATED_AT = Column(
    "evaluated_at", TIME, "", "when the evaluation began; null in an evaluation by an older version", nullable=True
)
_LABEL = (
    Column("label", INT64, "class", "true class, from 0"),
    Column("label_name", NAME, "", "name of the true class"),
)
_PREDICTED_LABEL = (
    Column("predicted_label", INT64, "class", "most probable class; the first in a tie"),
    Column("predicted_label_name", NAME, "", "name of the predicted class"),
)
_CONFIG_HASH = Column(
    "config_hash", STRING, "", "SHA-256 of the run's settings that differ from the defaults, as JSON, hexadecimal"
)

_add_table(
    "predictions",
    "a run × an example",
    # Written before the fingerprint of the whole split is known.
    *(_EVALUATION, _RUN, _DATASET, _SPLIT),
    Column("example_index", INT64, "", "index of the example in the split, from 0"),
    *_LABEL,
    *_PREDICTED_LABEL,
    Column("correct", BOOL, "", "whether the predicted class is the true one"),
    Column("confidence", FLOAT32, "probability", "probability of the predicted class"),
    Column("label_probability", FLOAT32, "probability", "probability of the true class"),
    Column("loss", FLOAT32, "nats", "cross-entropy: negative logarithm of the true class's probability"),
    Column("probabilities", FLOAT32S, "probability", "probability of each class, in the order of label"),
)

_add_table(
    "metrics",
    "a run",
    *_OF_RUN,
    Column("grid", NAME, "", "evaluated grid; empty for runs that were evaluated by name"),
    *(_SETTING, _TRAINED_AT, _EVALUATED_AT),
    *setting_columns(),
    Column("num_examples", INT64, "examples", "examples evaluated"),
    Column("accuracy", FLOAT64, "fraction", "share of examples whose predicted class is the true one"),
    Column("accuracy_low", FLOAT64, "fraction", "lower end of the 95 % Wilson interval of the accuracy"),
    Column("accuracy_high", FLOAT64, "fraction", "upper end of the 95 % Wilson interval of the accuracy"),
    Column("log_loss", FLOAT64, "nats", "mean cross-entropy"),
    Column("brier", FLOAT64, "", "mean over examples of the probabilities' squared errors, summed over the classes"),
    Column("ece", FLOAT64, "fraction", "expected calibration error over the bins of the calibration table"),
    Column("top2_accuracy", FLOAT64, "fraction", "share of examples whose true class is among the two most probable"),
    Column("precision_macro", FLOAT64, "fraction", "mean precision of the classes; 0 for a class without examples"),
    Column("recall_macro", FLOAT64, "fraction", "mean recall of the classes; 0 for a class without examples"),
    Column("f1_macro", FLOAT64, "fraction", "mean F1 of the classes; 0 for a class without examples"),
    Column("precision_weighted", FLOAT64, "fraction", "mean precision of the classes, weighted by support"),
    Column("recall_weighted", FLOAT64, "fraction", "mean recall of the classes, weighted by support"),
    Column("f1_weighted", FLOAT64, "fraction", "mean F1 of the classes, weighted by support"),
    Column("epoch", INT64, "epochs", "epoch after which the evaluated checkpoint was saved, from 1"),
    _CONFIG_HASH,
    Column("checkpoint_sha256", STRING, "", "SHA-256 of the evaluated weights, hexadecimal"),
    Column("code_version", STRING, "", "version of the code that evaluated the run"),
)

_add_table(
    "per_class",
    "a run × a class",
    *_OF_RUN,
    Column("class", INT64, "class", "class, from 0"),
    Column("class_name", NAME, "", "name of the class"),
    Column("precision", FLOAT64, "fraction", "correct share of the predictions of the class; 0 without predictions"),
    Column("recall", FLOAT64, "fraction", "correctly predicted share of the class's examples; 0 without examples"),
    Column("f1", FLOAT64, "fraction", "harmonic mean of precision and recall; 0 if both are 0"),
    Column("support", INT64, "examples", "examples of the class"),
)

_add_table(
    "confusion",
    "a run × a true class × a predicted class",
    *_OF_RUN,
    *_LABEL,
    *_PREDICTED_LABEL,
    Column("count", INT64, "examples", "examples of the true class with this predicted class"),
)

_add_table(
    "calibration",
    "a run × a bin of the confidence",
    *_OF_RUN,
    Column("confidence_low", FLOAT64, "probability", "lower edge of the bin, exclusive except for 0"),
    Column("confidence_high", FLOAT64, "probability", "upper edge of the bin, inclusive"),
    Column("mean_confidence", FLOAT64, "probability", "mean confidence in the bin", nullable=True),
    Column("accuracy", FLOAT64, "fraction", "accuracy in the bin", nullable=True),
    Column("count", INT64, "examples", "examples whose confidence is in the bin"),
)

_EPOCHS = (
    Column("epoch", INT64, "epochs", "epoch, from 1"),
    Column("train_loss", FLOAT64, "nats", "minimized loss, mean over the epoch's steps while the weights changed"),
    Column("train_accuracy", FLOAT64, "fraction", "accuracy on the training examples over the same steps"),
    Column("val_loss", FLOAT64, "nats", "mean cross-entropy on the validation split after the epoch"),
    Column("val_accuracy", FLOAT64, "fraction", "accuracy on the validation split after the epoch"),
    Column("learning_rate", FLOAT64, "", "learning rate of the epoch's last step"),
    Column("examples", INT64, "examples", "training examples seen in the epoch"),
)

_add_table("learning_curves", "an epoch of an evaluated run", *_OF_RUN, *_EPOCHS)

_add_table(
    "images",
    "an image that a report shows × a reason to show it",
    *(_EVALUATION, *_DATA),
    Column(
        "reason",
        NAME,
        "",
        "hardest: wrong in the most runs; disputed: the runs differ most; sample: the first of the split",
    ),
    Column("rank", INT64, "", "rank among the images with the same reason, from 0"),
    Column("example_index", INT64, "", "index of the example in the split, from 0"),
    *_LABEL,
    Column("image", BINARY, "", "PNG, in the size and colours that the runs take"),
    Column("num_runs_wrong", INT64, "runs", "runs whose predicted class is not the true one"),
    Column("vote_entropy", FLOAT64, "nats", "entropy of the runs' predicted classes, one vote per run; 0 if all agree"),
    Column("mean_loss", FLOAT64, "nats", "cross-entropy, mean over the runs"),
)

_add_table(
    "lineage",
    "a run, with the origin of its evaluated weights",
    *_OF_RUN,
    replace(_SETTING, description=f"{_SETTING.description}; empty in an evaluation by an older version", absent=""),
    *(_TRAINED_AT, _EVALUATED_AT),
    _CONFIG_HASH,
    Column("checkpoint_sha256", STRING, "", "SHA-256 of the evaluated weights, hexadecimal"),
    Column("train_data_sha256", STRING, "", "fingerprint of the training data set, hexadecimal"),
    Column("train_code_version", STRING, "", "version of the code that trained the run"),
    Column("command_line", STRING, "", "command line that trained the run"),
    Column("python", STRING, "", "version of Python that trained the run"),
    Column("libraries", STRING, "", "versions of the libraries that trained the run, as JSON: name -> version"),
    Column("cpu", STRING, "", "processor that trained the run"),
    Column("num_cpus", INT64, "", "number of its logical processors"),
    Column("gpu", STRING, "", "GPU that trained the run", nullable=True),
    Column("os", STRING, "", "operating system that trained the run"),
    Column("num_workers", INT64, "", "data-parallel workers that trained the run"),
)

_add_table(
    "history",
    "an epoch of a run",
    _RUN,
    *_EPOCHS,
    Column("epoch_seconds", FLOAT64, "s", "wall time with validation; in a stack, the run's equal share of it"),
)

_add_table(
    "runs",
    "a run: of a grid in its runs.parquet, of the whole storage in `mnist-ray query`",
    _RUN,
    Column("grid", NAME, "", "grid that the run belongs to; empty for a single run"),
    *(_SETTING, _TRAINED_AT),
    *setting_columns(),
    Column(
        "status",
        NAME,
        "",
        "finished; stopped: ended early by the scheduler; diverged: its loss was not a number; unfinished",
    ),
    Column("reason", STRING, "", "why the run was stopped or diverged", nullable=True),
    Column("epochs_done", INT64, "epochs", "epochs trained"),
    Column("best_epoch", INT64, "epochs", "epoch with the lowest validation loss, from 1", nullable=True),
    Column("best_val_loss", FLOAT64, "nats", "validation loss of the best epoch", nullable=True),
    Column("best_val_accuracy", FLOAT64, "fraction", "validation accuracy of the best epoch", nullable=True),
    Column("seconds", FLOAT64, "s", "training time; in a stack, the run's equal share of each epoch"),
    Column("checkpoint", STRING, "", "folder of the best checkpoint, relative to the storage", nullable=True),
)

_add_table(
    "grids",
    "a grid, only in `mnist-ray query`",
    Column("grid", NAME, "", "name of the grid"),
    Column("axes", STRING, "", "settings that vary, as JSON: setting -> levels, or the range of a search"),
    Column("fixed", STRING, "", "settings of all runs that are not the defaults, as JSON: setting -> value"),
    Column("seeds", list_of(INT64), "", "seeds"),
    Column("search", NAME, "", "grid, or how the settings are chosen: random or optuna"),
    Column("num_runs", INT64, "runs", "runs of the grid"),
    *(
        Column(f"num_{status}", INT64, "runs", f"runs of this status, see the table runs{more}")
        for status, more in (("finished", ""), ("stopped", ""), ("diverged", ""), ("unfinished", "; not begun, too"))
    ),
    Column("num_missing", INT64, "runs", "runs that were begun and are no longer in the storage"),
    Column("num_damaged", INT64, "runs", "runs of which a file is damaged"),
    Column("trained_at", TIME, "", "when the training of its last run ended; null if unknown", nullable=True),
)

_REPORT = (
    Column("evaluation", NAME, "", "evaluation that the predictions come from"),
    *_DATA,
)
# Of a difference between settings.
_ESTIMATE = (
    Column("metric", NAME, "", "accuracy (fraction) or log_loss (nats, lower is better)"),
    Column("difference", FLOAT64, "the metric's", "difference of the means over seeds and examples"),
    Column(
        "low",
        FLOAT64,
        "the metric's",
        "lower end of its 95 % interval, which holds jointly with those of the same metric, table and kind; for other "
        "seeds and other examples, with one seed for other examples only; null if nothing shows the uncertainty",
        nullable=True,
    ),
    Column("high", FLOAT64, "the metric's", "upper end of that interval", nullable=True),
    Column(
        "p_value",
        FLOAT64,
        "probability",
        "p value of no difference, adjusted for the same family; null with one seed or without an interval",
        nullable=True,
    ),
    Column(
        "verdict",
        NAME,
        "",
        "better or worse: the interval excludes 0, with two seeds or more and six examples or more that differ; "
        "equivalent: it lies within the margin; otherwise unresolved",
    ),
    Column("margin", FLOAT64, "fraction", "differences of accuracy up to it don't matter", nullable=True),
    Column("num_seeds", INT64, "seeds", "seeds that were averaged"),
    Column("seed_variance", FLOAT64, "squared", "variance of difference from the seeds", nullable=True),
    Column("example_variance", FLOAT64, "squared", "variance of difference from the examples", nullable=True),
    Column(
        "num_seeds_needed",
        INT64,
        "seeds",
        "seeds needed for an interval half width of the margin; null for log_loss, with one seed, and if no number "
        "of seeds is enough for these examples",
        nullable=True,
    ),
)

_add_table(
    "effects",
    "an effect of a grid's setting on a metric",
    *_REPORT,
    Column("grid", NAME, "", "grid"),
    Column("kind", NAME, "", "main: level against reference_level; interaction: change of that with a second setting"),
    Column(
        "model",
        NAME,
        "",
        "factorial: averaged over all combinations of the other settings; additive: coefficient of a model without "
        "interactions, for incomplete grids and searches, whose lack of fit counts into example_variance",
    ),
    Column("axis", NAME, "", "setting"),
    Column("level", STRING, "", "level of the setting, as JSON; the upper end of a range"),
    Column("reference_level", STRING, "", "level that it is compared with, as JSON; the lower end of a range"),
    Column("second_axis", NAME, "", "second setting of an interaction", nullable=True),
    Column("second_level", STRING, "", "level of the second setting, as JSON", nullable=True),
    Column("second_reference_level", STRING, "", "level that it is compared with, as JSON", nullable=True),
    Column("num_settings", INT64, "settings", "settings that the effect was computed from"),
    *_ESTIMATE,
)

_add_table(
    "comparisons",
    "a pair of settings, compared over the seeds that both have",
    *_REPORT,
    Column("first", NAME, "", "setting, named by what differs"),
    Column("second", NAME, "", "setting that the first is compared with"),
    Column("num_examples", INT64, "examples", "examples evaluated"),
    Column("first_mean", FLOAT64, "the metric's", "mean of the first over the common seeds"),
    Column("second_mean", FLOAT64, "the metric's", "mean of the second over the common seeds"),
    *_ESTIMATE,
    Column(
        "first_right",
        INT64,
        "examples",
        "examples that the first predicts correctly with more seeds; null for log_loss",
        nullable=True,
    ),
    Column("second_right", INT64, "examples", "the same of the second", nullable=True),
    Column(
        "mcnemar_p",
        FLOAT64,
        "probability",
        "p value of McNemar's exact test on these two counts, for this pair alone; null for log_loss",
        nullable=True,
    ),
)

_IMAGE = (
    _RUN,
    Column("path", STRING, "", "file of the image, relative to the images' folder; for a single file, its name"),
    Column("row", INT64, "", "index of the image in a Parquet or IDX file, from 0; otherwise null", nullable=True),
)

_add_table(
    "image_predictions",
    "one of the user's images, in the order of path and row",
    *_IMAGE,
    Column(
        "label",
        INT64,
        "",
        "class named by the image's topmost folder, or by the column label of its Parquet file; null if none",
        nullable=True,
    ),
    *_PREDICTED_LABEL,
    Column("confidence", FLOAT32, "probability", "probability of the predicted class"),
    Column("inverted", BOOL, "", "whether the image was inverted to match the training images' background"),
    Column("probabilities", FLOAT32S, "probability", "probability of each class, in the order of label"),
)

_add_table(
    "image_errors",
    "one of the user's images that can't be read, in the order of path and row",
    *_IMAGE,
    Column("error", STRING, "", "why it can't be read"),
)


def tables_markdown() -> str:
    """Returns the documentation of all tables, in Markdown."""
    return "\n".join([_MARKDOWN_HEAD, *(table.markdown() for table in TABLES.values())])


_MARKDOWN_HEAD = f"""# The tables

Look up what a column of a table means, here or on the terminal.

```sh
mnist-ray tables
```

Made by `python -m mnist_ray.results.schemas > docs/tables.md`; do not edit.

Parquet, zstd, schema version {SCHEMA_VERSION}. Rates are fractions, not percent. No column has nulls unless it says so.
The file's metadata holds `table`, `schema_version` and `code_version`; each column's metadata holds its `description`
and `unit`. A setting is described as in the config, including its unit. A string (dictionary) reads as text everywhere,
and as a categorical in pandas and Polars.

Adding a column keeps the schema version. If a file lacks the column, mnist-ray reads it as null, or as the default if
it is a setting's column; it ignores unknown columns. It rejects a file that has another schema version, lacks a
required column, or has a column of another type.
"""


if __name__ == "__main__":
    print(tables_markdown(), end="")
