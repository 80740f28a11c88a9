"""The command for the user's own images: predict."""

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from mnist_ray.cli.code import code_options
from mnist_ray.cli.completion import complete_run
from mnist_ray.cli.help import Choice, Command, option
from mnist_ray.cli.options import (
    ClusterOptions,
    as_json_option,
    cluster_options,
    num_workers_option,
    storage_option,
)
from mnist_ray.cli.submission import cluster_to_submit_to, submit_job
from mnist_ray.config.names import check_name
from mnist_ray.data.polarity import POLARITIES, never_inverted_reason
from mnist_ray.text.doing import at_work
from mnist_ray.text.escape import printable, say_line
from mnist_ray.text.sizes import count_text

if TYPE_CHECKING:
    from mnist_ray.data.polarity import Polarity
    from mnist_ray.evaluation.predict import Answer, PredictionPlan
    from mnist_ray.evaluation.prediction_folder import Committed

# Limit of printed classes, the most probable or most frequent first.
_SHOWN_CLASSES = 50
_OLD_POLARITIES = {"dark-ink": "dark-on-bright", "bright-ink": "bright-on-dark"}


class _PolarityChoice(Choice):
    """A choice that recognizes renamed values."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See click.Choice."""
        if value in _OLD_POLARITIES:
            self.fail(f"{value!r} is now called {_OLD_POLARITIES[value]!r}: it describes the images", param, ctx)
        return super().convert(value, param, ctx)


@click.command(cls=Command)
@option("--run", group="Run", metavar="NAME", shell_complete=complete_run, help="The run whose best network predicts.")
@option(
    "--images",
    group="Data",
    metavar="URI",
    help="A folder of image files, Parquet with the column image, an IDX file (raw or .gz) or one image; local or "
    "s3://. A prefix folder:, parquet: or idx: says what it is.",
)
@option(
    "--polarity",
    group="Data",
    type=_PolarityChoice(POLARITIES),
    default="auto",
    show_default=True,
    help="How grey images look: like the training images, dark on bright (pen on paper), bright on dark (MNIST), or "
    "auto: detected for each image. Images of the opposite polarity to the training images are inverted; auto inverts "
    "none if the training images have both polarities.",
)
@option("--strict", group="Data", is_flag=True, help="Exit with code 3 at an image that can't be read; store nothing.")
@option(
    "--name",
    group="Output",
    metavar="NAME",
    help="Name of the predictions.  [default: from the run, images and content]",
)
@option(
    "--shard-size",
    group="Output",
    metavar="N",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Images in one part file.",
)
@num_workers_option
@storage_option
@code_options
@cluster_options
@as_json_option
@click.pass_context
def predict(
    context: click.Context,
    /,
    run: str | None,
    images: str | None,
    polarity: "Polarity",
    strict: bool,
    name: str | None,
    shard_size: int,
    num_workers: int,
    storage: str,
    cluster: ClusterOptions,
    as_json: bool,
) -> None:
    """Classifies your own images: prints the answer for one, writes tables for many.

    Images are brought to the size and colours of the run's images; its setting fit says how. Unreadable images are
    counted, listed in the table image_errors and skipped. The tables are committed atomically to predictions/ in the
    storage; repeating the command changes nothing.
    """
    if run is None or images is None:
        raise click.UsageError("give --run NAME and --images URI")
    check_name(run, "run")
    if name is not None:
        check_name(name)
    target = cluster_to_submit_to(cluster.address, name=name or run, storage=storage)
    if target:
        replace = {"images": _remote_images(images)}
        submit_job(target, context, replace, name=name or run, num_workers=num_workers, is_unique=False)
        return
    with at_work(f"reading run {run}"):
        # torch takes seconds to import.
        from mnist_ray.data.unlabelled import find_images
        from mnist_ray.evaluation.predict import answer_image, make_plan
        from mnist_ray.jobs.predict import PredictJob
        from mnist_ray.jobs.predict import predict as predict_images
        from mnist_ray.storage.storage import open_storage

        opened, source = open_storage(storage), find_images(images)
        plan = make_plan(opened, run, source, polarity=polarity, shard_size=shard_size)
        share, is_grey = plan.checkpoint.document.get("bright_ground_share"), plan.checkpoint.image_shape.channels == 1
        if is_grey and (reason := never_inverted_reason(polarity, share, run)) is not None:
            _note(f"{reason}; --polarity as-trained says that they are like the training images")
        if source.kind == "image" and name is not None:
            raise click.UsageError(f"--name {name!r}: leave it out; a single image's class is printed, not stored")
        if source.kind == "image":
            answer = answer_image(plan, source)
        else:
            left_out = source.left_out()
            if left_out.counts:
                _note(f"skipping {', '.join(left_out.clauses())}")
            committed = predict_images(PredictJob(plan, source, opened, name, num_workers, strict, cluster.placement))
    if source.kind == "image":
        _print_answer(plan, source.paths[0], answer, as_json=as_json)
    else:
        _print_committed(plan, committed, num_left_out=left_out.counts.total(), as_json=as_json)


def _remote_images(images: str) -> str:
    """Checks the URI of images for a job elsewhere, where a relative path would mean another folder."""
    from mnist_ray.data.unlabelled import split_kind

    _, uri = split_kind(images)
    if not uri.startswith("s3://") and uri not in images:
        raise click.UsageError(
            f"--images {images!r}: with --address give s3://..., or an absolute path that every node has"
        )
    return images


def _print_answer(plan: "PredictionPlan", path: str, answer: "Answer", *, as_json: bool) -> None:
    if answer.is_small:
        _note(_small_words(plan, "the ink fills"))
    if as_json:
        click.echo(json.dumps({"images": plan.images, **answer.row, "class_names": plan.checkpoint.class_names}))
        return
    from mnist_ray.text.tables import cell, print_table

    done = ["inverted"] * answer.row["inverted"] + [
        f"converted to {plan.checkpoint.image_shape.words}"
    ] * answer.is_converted
    notes = f" ({' and '.join(done)})" if done else ""
    label, names = printable(answer.row["predicted_label_name"]), plan.checkpoint.class_names
    click.echo(f"{printable(path)}: {label}, probability {answer.row['confidence']:.4f}{notes}")
    probabilities = list(zip(names, answer.row["probabilities"], strict=True))
    if len(probabilities) > _SHOWN_CLASSES:
        probabilities = sorted(probabilities, key=lambda pair: -pair[1])[:_SHOWN_CLASSES]
    print_table(["class", "probability"], [[name, cell(value)] for name, value in probabilities])
    if len(probabilities) < len(names):
        click.echo(f"the first {len(probabilities)} of {len(names):,} classes; --json prints all")


def _small_words(plan: "PredictionPlan", beginning: str) -> str:
    """Returns a hint on images in which the ink fills little of the frame."""
    from mnist_ray.data.ink import MIN_EXTENT

    what = "digit" if all(name.isdigit() for name in plan.checkpoint.class_names) else "object"
    return (
        f"{beginning} less than {MIN_EXTENT:.0%} of the frame's width and height, in the training images more; crop to "
        f"the {what}"
    )


def _print_committed(plan: "PredictionPlan", done: "Committed", *, num_left_out: int, as_json: bool) -> None:
    from mnist_ray.data.decoded_images import one_shade_words
    from mnist_ray.text.tables import print_text

    summary = done.summary
    if done.first_error is not None:
        _note(f"{summary.num_errors} of {summary.num_images + summary.num_errors} images cannot be read, the first is "
              f"{done.first_error}; all are in the table image_errors")  # fmt: skip
    if summary.num_one_shade:
        _note(one_shade_words(summary.first_one_shade, summary.num_one_shade, summary.num_images))
    if summary.num_wide:
        _note(f"{summary.num_wide} of {summary.num_images} images have more than 8 bits, scaled from {_range(plan)}")
    if summary.num_small:
        _note(_small_words(plan, f"in {summary.num_small} of {summary.num_images} images the ink fills"))
    if not summary.num_images:
        _note("no image could be read; name an IDX or Parquet file itself, not its folder")
    if summary.num_labelled < summary.num_images and (summary.num_labelled or summary.has_label_column):
        lack = "have no label" if summary.has_label_column else "are in no folder"
        what = "is a class" if summary.has_label_column else "is named as a class"
        _note(f"no accuracy, as {summary.num_images - summary.num_labelled} of {summary.num_images} images {lack} that "
              f"{what} of the run, the first is {summary.first_unlabelled}")  # fmt: skip
    if as_json:
        facts: dict[str, Any] = {"predictions": done.name, "uri": done.uri, "already_done": done.already_done}
        facts |= {"run": plan.checkpoint.run, "images": plan.images, "num_left_out": num_left_out}
        click.echo(json.dumps({**facts, **summary.facts(), "classes": dict(summary.predicted.most_common())}))
        return
    _print_counts(summary.predicted)
    print_text(
        f"{count_text(summary.num_images, 'image')} predicted, {summary.num_inverted} of them inverted, "
        f"{summary.num_converted} converted to {plan.checkpoint.image_shape.words}; {summary.num_errors} could not be "
        "read"
    )
    if summary.accuracy is not None:
        source = "column label names" if summary.has_label_column else "folders name"
        print_text(f"accuracy {summary.accuracy:.4f} on {summary.num_labelled} images, whose {source} their classes")
    state = "were there already, with the same content" if done.already_done else "committed"
    print_text(f"predictions {done.name} {state}: {done.uri}")


def _print_counts(predicted: Counter[str]) -> None:
    """Prints how many images each class was predicted for, the most frequent first."""
    from mnist_ray.text.tables import print_table

    if predicted:
        shown = predicted.most_common(_SHOWN_CLASSES)
        print_table(["predicted class", "images"], [[name, str(count)] for name, count in shown])
    if len(predicted) > _SHOWN_CLASSES:
        click.echo(f"the first {_SHOWN_CLASSES} of {len(predicted):,} predicted classes; --json prints all")


def _range(plan: "PredictionPlan") -> str:
    if plan.checkpoint.wide_bits is None:
        return f"the 16 bits that they use; those of run {plan.checkpoint.run!r} are not known to have had more than 8"
    return f"{plan.checkpoint.wide_bits} bits, as the training images of run {plan.checkpoint.run!r}"


def _note(line: str) -> None:
    say_line(f"images: {line}")
