"""The command plan, and the printing of plans."""

import json
from collections import Counter
from typing import Any

import click

from mnist_ray.cli.help import Choice


# Arguments after train or tune, --help included, belong to that command.
@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", type=Choice(["train", "tune"]), metavar="train|tune")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def plan(context: click.Context, command: str, arguments: tuple[str, ...]) -> None:
    """Shows what a train or tune command would run, and for how long; trains nothing.

    Put `plan` before the command: mnist-ray plan tune --grid smoke. The time is estimated from a probe of a few steps
    on this machine.
    """
    assert context.parent is not None
    group = context.parent.command
    assert isinstance(group, click.Group)
    planned = group.get_command(context, command)
    assert planned is not None
    with planned.make_context(
        command, list(arguments), parent=context.parent, obj={**context.obj, "plan": True}
    ) as inner:
        planned.invoke(inner)


def print_plan(plan: Any, name: str, *, as_json: bool) -> None:
    """Prints a jobs.estimate.GridPlan."""
    from mnist_ray.text.durations import duration
    from mnist_ray.text.sizes import count_text, range_text
    from mnist_ray.text.tables import print_table

    rows = [_stack_row(stack) for stack in plan.stacks]
    if as_json:
        facts = {"runs": plan.num_runs, "done": plan.num_done, "stacks": len(rows), "at_once": plan.at_once}
        device = {"device": plan.device, "seconds": plan.seconds}
        if plan.first_look:
            device |= {"least_runs": plan.first_look.num_runs, "least_seconds": plan.first_look.seconds}
        trains = [{**row, "not_stacked": stack.not_stacked} for row, stack in zip(rows, plan.stacks, strict=True)]
        click.echo(json.dumps({"name": name, **facts, **device, "trains": trains}))
        return
    for reason in sorted({stack.not_stacked for stack in plan.stacks if stack.not_stacked}):
        click.echo(f"engine modules: runs train one after the other, not as one program: {reason}")
    if alike := Counter(tuple(row.values())[1:] for row in rows):
        print_table(
            ["stacks", *list(rows[0])[1:]],
            [[str(n), *("-" if cell is None else str(cell) for cell in cells)] for cells, n in alike.items()],
            optional=("samples_per_s", "engine", "augmentation", "batch norm"),
        )
    click.echo(
        f"{name}: {count_text(plan.num_runs, 'run')}, {plan.num_done} done already; "
        f"{count_text(len(rows), 'stack')} to train, {plan.at_once} at once, on {plan.device}"
    )
    time = duration(plan.seconds)
    if plan.first_look:
        click.echo(f"until settled: {range_text(plan.first_look.num_runs, plan.num_runs, 'run')}")
        least = duration(plan.first_look.seconds)
        time = time if least == time else f"{least} to {time}"
    if rows:
        click.echo(f"about {time} of training, estimated by a probe of a few steps, plus Ray's start")


def _stack_row(stack: Any) -> dict[str, Any]:
    config = stack.runs[0].config
    batch_norm = "yes" if config.batch_norm else "no"
    return {
        "first_run": stack.runs[0].run,
        "runs": len(stack.runs),
        "network": config.network_words(),
        "engine": "modules" if stack.not_stacked else "stack",
        # The user's own network decides itself.
        "batch norm": None if config.is_own_network else batch_norm,
        "augmentation": config.augmentation,
        "batch": config.global_batch_size,
        "epochs": config.epochs,
        "samples_per_s": round(stack.samples_per_s),
        "seconds": round(stack.seconds, 1),
    }
